"""Fine-tuning on CUB-200 with a new head halfway, with a rate of the head's own, and without: 0.5 to 2 points.

Li et al. 2020 (arXiv:2007.03349). All arms take 40 epochs from the same ImageNet weights.
"""

from dataclasses import replace

from rifle_cub_resnet50 import config as published

from llf_ray.cli import main_job
from llf_ray.recipes.long import Long
from llf_ray.recipes.rifle import Rifle
from llf_ray.run import Comparison

assert isinstance(published.recipe, Rifle)
comparison = Comparison(
    name="compare-rifle-cub-resnet50",
    base=published,
    arms={
        "long": Long(generations=2, epochs=20, warmup_epochs=0),
        "rifle": published.recipe,
        "rifle_cyclic": replace(published.recipe, cyclic=True),
        "rifle_twice": Rifle(generations=4, epochs=10, warmup_epochs=0),
    },
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main_job(__file__)
