"""Later-layer forgetting whose three resets come two epochs apart, on the bundled images: a control.

Zhou et al. 2022 (arXiv:2202.00155) explain their gain by relearning under varying conditions; then resets that are
spread over the run should be worth more than the same number in a bunch.
"""

from dataclasses import replace

from long_small import config as long

from llf_ray.cli import main_job
from llf_ray.recipes.bunched import BunchedResets

config = replace(
    long, name="bunched-small", recipe=BunchedResets(generations=4, epochs=20, threshold="layer3", gap_epochs=2)
)

if __name__ == "__main__":
    main_job(__file__)
