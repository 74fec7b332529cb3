"""CUB-200 with ResNet18: one long run of 2,200 epochs against eleven generations of 200.

The comparison of Zhou et al. 2022 (arXiv:2202.00155), Table 1, with three seeds: 72.47 % for later-layer forgetting
after ten further generations. Both of its thresholds are here, and its rival, layer-wise re-initialisation, whose
normalisers change no bit in the other arms.
"""

from dataclasses import replace

from later_layer_cub_resnet18 import config as published
from layer_wise_cub_resnet18 import config as layer_wise

from llf_ray.cli import main_job
from llf_ray.recipes.knowledge_evolution import KnowledgeEvolution
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.recipes.long import Long
from llf_ray.recipes.restarts import Restarts
from llf_ray.run import Comparison

assert isinstance(published.recipe, LaterLayer)
comparison = Comparison(
    name="compare-cub-resnet18",
    base=replace(published, task=layer_wise.task),
    arms={
        "long": Long(generations=11, epochs=200, warmup_epochs=5),
        "restarts": Restarts(generations=11, epochs=200, warmup_epochs=5),
        "knowledge_evolution": KnowledgeEvolution(
            generations=11, epochs=200, warmup_epochs=5, split="kernels", keep=0.8
        ),
        "layer_wise": layer_wise.recipe,
        "later_layer4": published.recipe,
        "later_layer3": replace(published.recipe, threshold="layer3"),
    },
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main_job(__file__)
