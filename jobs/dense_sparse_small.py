"""Dense-sparse-dense on the bundled images: 30 % of each tensor is pruned for half a generation, then grows back.

Han et al. 2017 (arXiv:1607.04381) claim a gain over dense training of the same length.
"""

from dataclasses import replace

from long_small import config as long

from llf_ray.cli import main_job
from llf_ray.recipes.dense_sparse import DenseSparse

config = replace(long, name="dense-sparse-small", recipe=DenseSparse(generations=4, epochs=20, sparsity=0.3))

if __name__ == "__main__":
    main_job(__file__)
