"""Knowledge evolution by weights on the bundled images: a fixed random 80 % of the weights are kept.

Taha et al. 2021 (arXiv:2103.05152) claim that on small data this beats dense training.
"""

from dataclasses import replace

from long_small import config as long

from llf_ray.cli import main_job
from llf_ray.recipes.knowledge_evolution import KnowledgeEvolution

config = replace(
    long, name="wels-small", recipe=KnowledgeEvolution(generations=4, epochs=20, split="weights", keep=0.8)
)

if __name__ == "__main__":
    main_job(__file__)
