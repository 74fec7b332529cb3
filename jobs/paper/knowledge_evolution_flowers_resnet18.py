"""Knowledge evolution by kernels on Flowers102 with ResNet18: 52.76 % after one generation, 61.86 % after ten.

Taha et al. 2021 (arXiv:2103.05152), half of the channels kept, 200 epochs a generation: their code's own figure gives
the dense network 52.76, 55.68, 56.16, 57.23, 57.85, 59.23, 59.55, 60.37, 60.92, 61.86 and the slim one 1.53, 22.51,
54.50, 57.26, 57.78, 59.26, 59.54, 60.34, 60.92, 61.86. `llf-ray slim` takes the slim network out of the run. The
official parts are used as they are: 1,020 images each for training and validation.
"""

from dataclasses import replace

from later_layer_cub_resnet18 import config as later_layer

from llf_ray.cli import main_job
from llf_ray.data import Flowers102, TimmAugment
from llf_ray.recipes.knowledge_evolution import KnowledgeEvolution
from llf_ray.tasks import Classification

assert isinstance(later_layer.task, Classification)
config = replace(
    later_layer,
    name="knowledge-evolution-flowers-resnet18",
    task=replace(
        later_layer.task,
        data=Flowers102(root="flowers-102"),
        augment=TimmAugment(size=224),
    ),
    recipe=KnowledgeEvolution(generations=10, epochs=200, warmup_epochs=5, split="kernels", keep=0.5),
)

if __name__ == "__main__":
    main_job(__file__)
