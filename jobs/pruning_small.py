"""Iterative magnitude pruning on the bundled images: three levels of a half each, rewound to the start.

Frankle & Carbin 2019 (arXiv:1803.03635) claim that what is left trains to the accuracy of the dense network; the
controls `recipe.control=reinit` and `recipe.control=random` should not.
"""

from dataclasses import replace

from long_small import config as long

from llf_ray.cli import main_job
from llf_ray.recipes.pruning import IterativePruning

config = replace(long, name="pruning-small", recipe=IterativePruning(generations=4, epochs=20, rate=0.5))

if __name__ == "__main__":
    main_job(__file__)
