"""Knowledge evolution by weights on Flowers102 with ResNet18: a random half of the weights is kept, ten generations.

Taha et al. 2021 (arXiv:2103.05152): WELS splits any network, KELS one whose kernels can be taken out; on small data
both should rise from generation to generation. Figures by generation are known of KELS alone
(`knowledge_evolution_flowers_resnet18.py`), with which this job shares all but the split.
"""

from dataclasses import replace

from knowledge_evolution_flowers_resnet18 import config as kernels

from llf_ray.cli import main_job
from llf_ray.recipes.knowledge_evolution import KnowledgeEvolution

config = replace(
    kernels,
    name="wels-flowers-resnet18",
    recipe=KnowledgeEvolution(generations=10, epochs=200, warmup_epochs=5, split="weights", keep=0.5),
)

if __name__ == "__main__":
    main_job(__file__)
