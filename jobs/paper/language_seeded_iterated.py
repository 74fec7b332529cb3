"""Seeded iterated learning for as many steps of the game as eighty generations of neural iterated learning.

Lu et al. 2020 (arXiv:2003.12694) do not publish lengths for this game; these are those of `SeededIteratedLearning`.
"""

from dataclasses import replace

from language_neural_iterated import config as neural

from llf_ray.cli import main_job
from llf_ray.recipes.seeded_learning import SeededIteratedLearning

config = replace(neural, name="language-seeded-iterated", recipe=SeededIteratedLearning(generations=172))

if __name__ == "__main__":
    main_job(__file__)
