"""Layer-wise re-initialisation on CUB-200 with ResNet18, at the budget of later-layer forgetting after 10 generations.

The rival in Zhou et al. 2022 (arXiv:2202.00155), Table 1, where later-layer forgetting beats it on all five sets; the
method is that of Alabdulmohsin et al. 2021 (arXiv:2109.00267). Its numbers could not be checked in any source.
"""

from dataclasses import replace

from later_layer_cub_resnet18 import config as later_layer

from llf_ray.cli import main_job
from llf_ray.recipes.layer_wise import LayerWise
from llf_ray.tasks.models import Normalised

BLOCKS = tuple(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1))

config = replace(
    later_layer,
    name="layer-wise-cub-resnet18",
    task=replace(later_layer.task, model=Normalised(model=later_layer.task.model, after=BLOCKS)),
    recipe=LayerWise(generations=11, epochs=200, warmup_epochs=5, blocks=(*BLOCKS, "fc")),
)

if __name__ == "__main__":
    main_job(__file__)
