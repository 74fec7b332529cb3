"""Later-layer forgetting in a transformer that loses tokens: the later half is redrawn between generations.

A Cropr module (Bergner et al., arXiv:2412.00965) goes with the block that it follows: under later-layer forgetting
(Zhou et al. 2022, arXiv:2202.00155) those behind blocks 1 to 3 keep what they know about which patches matter, the
later ones are drawn anew with their blocks. No published counterpart.
"""

from dataclasses import replace

from cropr_small import config as cropr

from llf_ray.cli import main_job
from llf_ray.recipes.later_layer import LaterLayer

config = replace(
    cropr,
    name="cropr-later-layer-small",
    recipe=LaterLayer(generations=4, epochs=10, warmup_epochs=1, threshold="blocks.3"),
)

if __name__ == "__main__":
    main_job(__file__)
