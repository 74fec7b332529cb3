"""Knowledge evolution by kernels on the bundled images: the first 80 % of the channels of every layer are kept.

Taha et al. 2021 (arXiv:2103.05152) claim that on small data this beats dense training, and that the slim network of the
kept channels alone ends up as good as the dense one.
"""

from dataclasses import replace

from long_small import config as long

from llf_ray.cli import main_job
from llf_ray.recipes.knowledge_evolution import KnowledgeEvolution

config = replace(
    long, name="kels-small", recipe=KnowledgeEvolution(generations=4, epochs=20, split="kernels", keep=0.8)
)

if __name__ == "__main__":
    main_job(__file__)
