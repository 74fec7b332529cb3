"""Layer-wise re-initialisation on the bundled images: blocks settle one after the other, the rest starts anew.

Alabdulmohsin et al. 2021 (arXiv:2109.00267) claim that it generalises better than plain training on small data; Zhou et
al. 2022 (arXiv:2202.00155) find it behind later-layer forgetting on every data set that they considered.
"""

from dataclasses import replace

from long_small import config as long

from llf_ray.cli import main_job
from llf_ray.recipes.layer_wise import LayerWise
from llf_ray.tasks.models import Normalised

BLOCKS = ("layer1", "layer2", "layer3", "layer4")

config = replace(
    long,
    name="layer-wise-small",
    task=replace(long.task, model=Normalised(model=long.task.model, after=BLOCKS)),
    recipe=LayerWise(generations=4, epochs=20, blocks=(*BLOCKS, "fc")),
)

if __name__ == "__main__":
    main_job(__file__)
