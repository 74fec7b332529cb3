"""AC/DC on the bundled images: half of each generation is trained at a sparsity of 80 %, under one curve over the run.

Peste et al. 2021 (arXiv:2106.12379) claim that sparse and dense phases in turn give an accurate sparse network as well
as a dense one. The scores at the ends of sparse phases are the sparse network's.
"""

from dataclasses import replace

from long_small import config as long

from llf_ray.cli import main_job
from llf_ray.recipes.dense_sparse import DenseSparse

config = replace(
    long,
    name="alternating-small",
    recipe=DenseSparse(generations=4, epochs=20, sparsity=0.8, scope="global", last_rate=1.0, one_curve=True),
)

if __name__ == "__main__":
    main_job(__file__)
