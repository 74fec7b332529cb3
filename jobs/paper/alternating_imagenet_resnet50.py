"""Alternating compressed and decompressed training of ResNet50 on ImageNet, 100 epochs at 80 % sparsity.

AC/DC, Peste et al. 2021 (arXiv:2106.12379): 10 epochs dense, then 5 sparse and 5 dense in turn, masks by magnitude
over the whole network, one curve over the run. The paper ends on a sparse phase and reports the sparse network; here
the last phase is dense, and the scores at the ends of sparse phases are the sparse network's.
"""

from dataclasses import replace

from dense_sparse_imagenet_resnet50 import config as dense_sparse

from llf_ray.cli import main_job
from llf_ray.recipes.dense_sparse import DenseSparse

config = replace(
    dense_sparse,
    name="alternating-imagenet-resnet50",
    recipe=DenseSparse(
        generations=10, epochs=10, warmup_epochs=5, sparsity=0.8, scope="global", last_rate=1.0, one_curve=True
    ),
)

if __name__ == "__main__":
    main_job(__file__)
