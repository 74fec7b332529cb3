"""Iterative training on Ray: forget, relearn, anneal, prune and rewind over generations."""

__version__ = "0.1.0"
