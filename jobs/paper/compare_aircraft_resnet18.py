"""FGVC-Aircraft with ResNet18: long run, knowledge evolution, later-layer forgetting, 11 generations of 200 epochs.

A column of Table 1 of Zhou et al. 2022 (arXiv:2202.00155), with three seeds; we have no copy of its figures for this
set, only the order: later-layer forgetting > knowledge evolution and the long run. The official parts are used as they
are: 3,334 images for training, 3,333 for validation.
"""

from dataclasses import replace

from compare_cub_resnet18 import comparison as cub

from llf_ray.cli import main_job
from llf_ray.data import Torchvision
from llf_ray.run import Comparison
from llf_ray.tasks import Classification

assert isinstance(cub.base.task, Classification)
comparison: Comparison = replace(
    cub,
    name="compare-aircraft-resnet18",
    base=replace(cub.base, task=replace(cub.base.task, data=Torchvision(name="FGVCAircraft", root="."))),
)

if __name__ == "__main__":
    main_job(__file__)
