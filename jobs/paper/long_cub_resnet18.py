"""One long run on CUB-200 with ResNet18: 2,200 epochs under one cosine, the baseline of eleven generations of 200.

Zhou et al. 2022 (arXiv:2202.00155); scored where the generations of the others end. Data as in
`later_layer_cub_resnet18.py`.
"""

from dataclasses import replace

from later_layer_cub_resnet18 import config as later_layer

from llf_ray.cli import main_job
from llf_ray.recipes.long import Long

config = replace(later_layer, name="long-cub-resnet18", recipe=Long(generations=11, epochs=200, warmup_epochs=5))

if __name__ == "__main__":
    main_job(__file__)
