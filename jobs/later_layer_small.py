"""Later-layer forgetting on the bundled images: layer3, layer4 and fc are redrawn between generations.

Zhou et al. 2022 (arXiv:2202.00155) claim that on small data this beats one long run of the same budget.
"""

from dataclasses import replace

from long_small import config as long

from llf_ray.cli import main_job
from llf_ray.recipes.later_layer import LaterLayer

config = replace(long, name="later-layer-small", recipe=LaterLayer(generations=4, epochs=20, threshold="layer3"))

if __name__ == "__main__":
    main_job(__file__)
