"""Both together: later layers are redrawn while early layers ascend.

"fortuitous+ascend" in the code of Sarfi et al. 2023 (arXiv:2304.04858).
"""

from dataclasses import replace

from seal_small import config as seal

from llf_ray.cli import main_job
from llf_ray.recipes.seal import Seal

assert isinstance(seal.recipe, Seal)
config = replace(seal, name="seal-later-layer-small", recipe=replace(seal.recipe, forget_later=True))

if __name__ == "__main__":
    main_job(__file__)
