"""The main job: four schedules, one network, one budget of optimizer steps, two seeds.

`long` is one cosine over the whole budget, `restarts` four of them, `seal` lets early layers ascend at the start of
each generation but the first, `later_layer` redraws the later layers there. Claim (Zhou et al. 2022, arXiv:2202.00155,
Table 1): on small data later-layer forgetting beats the long run of the same budget.

More seeds: `llf-ray compare jobs/compare_schedules.py --seeds 5`.
"""

import later_layer_small
import long_small
import restarts_small
import seal_small

from llf_ray.cli import main_job
from llf_ray.run import Comparison

comparison = Comparison(
    name="compare-schedules",
    base=long_small.config,
    arms={
        "long": long_small.config.recipe,
        "restarts": restarts_small.config.recipe,
        "seal": seal_small.config.recipe,
        "later_layer": later_layer_small.config.recipe,
    },
    seeds=(0, 1),
)

if __name__ == "__main__":
    main_job(__file__)
