"""SEAL whose ascent ends when the training loss has grown to 1.3 times what it was, on the bundled images.

Beyond Sarfi et al. 2023 (arXiv:2304.04858): what acts is rate x learning rate x steps of ascent, so a strength for one
set is nothing or ruin for another; a ratio carries over. Unused steps go to the descent.
"""

from dataclasses import replace

from seal_small import config as seal

from llf_ray.cli import main_job
from llf_ray.recipes.seal import Seal

assert isinstance(seal.recipe, Seal)
config = replace(seal, name="seal-adaptive-small", recipe=replace(seal.recipe, ascent_rate=0.1, loss_ratio=1.3))

if __name__ == "__main__":
    main_job(__file__)
