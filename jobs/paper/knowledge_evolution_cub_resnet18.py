"""Knowledge evolution by kernels on CUB-200 with ResNet18, as Zhou et al. 2022 (arXiv:2202.00155) run it beside theirs.

Taha et al. 2021 (arXiv:2103.05152); from scratch, 200 epochs a generation, 80 % of the channels kept.
`CUB_200_2011`, as its archive unpacks, lies in the folder that LLF_RAY_DATA names; validation is cut from train, 2
images a class, and test is scored once. `llf-ray slim` takes the slim network out of the run.
"""

from dataclasses import replace

from later_layer_cub_resnet18 import config as later_layer

from llf_ray.cli import main_job
from llf_ray.recipes.knowledge_evolution import KnowledgeEvolution

config = replace(
    later_layer,
    name="knowledge-evolution-cub-resnet18",
    recipe=KnowledgeEvolution(generations=11, epochs=200, warmup_epochs=5, split="kernels", keep=0.8),
)

if __name__ == "__main__":
    main_job(__file__)
