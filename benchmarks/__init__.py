"""Speed and size, each a ratio inside one run against something run beside it. Nothing here is a test.

One file a benchmark, with ``measure(size) -> Report``; `python -m benchmarks [NAME]` finds it.
"""
