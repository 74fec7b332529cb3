"""Nine tenths of sender and receiver forgotten every 3,000 steps, 100 lives.

Zhou et al. 2022 (arXiv:2202.00155), section 5: more compositional than no reset and than receiver resets (figures
only).
"""

from dataclasses import replace

from language_none import config as none

from llf_ray.cli import main_job
from llf_ray.recipes.partial_balanced import PartialBalancedForgetting

config = replace(none, name="language-partial-balanced", recipe=PartialBalancedForgetting(generations=100, epochs=30))

if __name__ == "__main__":
    main_job(__file__)
