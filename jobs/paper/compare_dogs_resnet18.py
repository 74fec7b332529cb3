"""Stanford Dogs with ResNet18: long run, knowledge evolution, later-layer forgetting, 11 generations of 200 epochs.

A column of Table 1 of Zhou et al. 2022 (arXiv:2202.00155), with three seeds; we have no copy of its figures for this
set, only the order: later-layer forgetting > knowledge evolution and the long run. The archives are
unpacked into `dogs/` in the folder that LLF_RAY_DATA names, as docs/data.md says.
"""

from dataclasses import replace

from compare_cub_resnet18 import comparison as cub

from llf_ray.cli import main_job
from llf_ray.data import StanfordDogs
from llf_ray.run import Comparison
from llf_ray.tasks import Classification

assert isinstance(cub.base.task, Classification)
comparison: Comparison = replace(
    cub,
    name="compare-dogs-resnet18",
    base=replace(cub.base, task=replace(cub.base.task, data=StanfordDogs(root="dogs", validation=0.05))),
)

if __name__ == "__main__":
    main_job(__file__)
