"""Born-again networks on the bundled images: each generation starts fresh and learns from labels and the one before.

Furlanello et al. 2018 (arXiv:1805.04770) claim that students of their own kind beat their teachers.
"""

from dataclasses import replace

from long_small import config as long

from llf_ray.cli import main_job
from llf_ray.recipes.born_again import BornAgain

config = replace(long, name="born-again-small", recipe=BornAgain(generations=4, epochs=20))

if __name__ == "__main__":
    main_job(__file__)
