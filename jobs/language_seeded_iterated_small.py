"""Ten generations in which a copy of the players plays on and teaches.

Lu et al. 2020 (arXiv:2003.12694) claim that languages drift less; a tenth of the steps is the seed.
"""

from dataclasses import replace

from language_small import config as none

from llf_ray.cli import main_job
from llf_ray.recipes.seeded_learning import SeededIteratedLearning

config = replace(
    none,
    name="language-seeded-iterated-small",
    recipe=SeededIteratedLearning(generations=10, seed=3000, interact=2000, imitate=1200, listen=1000),
)

if __name__ == "__main__":
    main_job(__file__)
