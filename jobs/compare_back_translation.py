"""Is iterating worth it? Pairs alone, back-translation once, and again in every generation, at one budget of steps.

Claims of Hoang et al. 2018 (W18-2703): text that is translated back helps (Sennrich et al. 2016, arXiv:1511.06709), and
doing it again with the better networks helps more. `long` learns from the 200 pairs alone for as many steps; `once`
translates the text once and then learns from that for as many generations; `iterated` translates it anew in each.
Both start as a fresh network in each generation; `iterated_warm` forgets nothing.
"""

from dataclasses import replace

import back_translation_small

from llf_ray.cli import main_job
from llf_ray.recipes.back_translation import BackTranslation
from llf_ray.recipes.long import Long
from llf_ray.run import Comparison

iterated = back_translation_small.config.recipe
assert isinstance(iterated, BackTranslation)
comparison = Comparison(
    name="compare-back-translation",
    base=back_translation_small.config,
    arms={
        "long": Long(generations=4, epochs=50),
        "once": replace(iterated, iterated=False),
        "iterated": iterated,
        "iterated_warm": replace(iterated, forget="nothing"),
    },
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main_job(__file__)
