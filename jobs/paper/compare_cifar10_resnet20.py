"""ResNet-20 on CIFAR-10, errors of 8.4 % plain, 8.2 % born again and 7.8 % dense-sparse-dense.

Figures of Prakash et al. 2019 (arXiv:1811.07275), Table 3, on Furlanello et al. 2018 (arXiv:1805.04770) and Han et al.
2017 (arXiv:1607.04381); here every arm has as many steps as the four networks of the born-again one.
"""

from born_again_cifar10_resnet20 import config as published

from llf_ray.cli import main_job
from llf_ray.recipes.dense_sparse import DenseSparse
from llf_ray.recipes.long import Long
from llf_ray.recipes.restarts import Restarts
from llf_ray.run import Comparison

comparison = Comparison(
    name="compare-cifar10-resnet20",
    base=published,
    arms={
        "long": Long(generations=4, epochs=160, warmup_epochs=0),
        "restarts": Restarts(generations=4, epochs=160, warmup_epochs=0),
        "born_again": published.recipe,
        "dense_sparse": DenseSparse(generations=4, epochs=160, warmup_epochs=0, sparsity=0.3),
    },
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main_job(__file__)
