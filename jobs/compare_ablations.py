"""The published ablations beside their methods, at the budget of the main job.

Zhou et al. 2022 (arXiv:2202.00155): what helps is a fresh draw of the later layers in each generation; the early
layers in their place, or layers held at one draw, do worse (one draw that trains on is a question of ours). Sarfi et
al. 2023 (arXiv:2304.04858): ascending later layers does not work.
"""

import later_layer_fixed_held_small
import later_layer_fixed_small
import later_layer_hold_early_small
import later_layer_hold_later_small
import later_layer_reverse_small
import later_layer_small
import long_small
import seal_hold_late_small
import seal_later_layer_small
import seal_reverse_small
import seal_small

from llf_ray.cli import main_job
from llf_ray.run import Comparison

comparison = Comparison(
    name="compare-ablations",
    base=long_small.config,
    arms={
        "long": long_small.config.recipe,
        "later_layer": later_layer_small.config.recipe,
        "later_layer_reverse": later_layer_reverse_small.config.recipe,
        "later_layer_hold_later": later_layer_hold_later_small.config.recipe,
        "later_layer_hold_early": later_layer_hold_early_small.config.recipe,
        "later_layer_fixed_held": later_layer_fixed_held_small.config.recipe,
        "later_layer_fixed": later_layer_fixed_small.config.recipe,
        "seal": seal_small.config.recipe,
        "seal_reverse": seal_reverse_small.config.recipe,
        "seal_hold_late": seal_hold_late_small.config.recipe,
        "seal_later_layer": seal_later_layer_small.config.recipe,
    },
    seeds=(0, 1),
)

if __name__ == "__main__":
    main_job(__file__)
