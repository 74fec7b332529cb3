"""RIFLE on CUB-200: an ImageNet ResNet50 is fine-tuned for 40 epochs, and its head drawn anew halfway.

Li et al. 2020 (arXiv:2007.03349) claim 0.5 to 2 points over plain fine-tuning (`compare_rifle_cub_resnet50.py`): batch
32, rate 0.01, weight decay 1e-4. Their code draws the head once more behind the last epoch and would save that; here
the run ends with the head that was trained. Data as in `later_layer_cub_resnet18.py`.
"""

from dataclasses import replace

from later_layer_cub_resnet18 import config as later_layer

from llf_ray.cli import main_job
from llf_ray.data import TimmAugment
from llf_ray.engine.base import Optim
from llf_ray.recipes.rifle import Rifle
from llf_ray.tasks import Classification, TimmModel
from llf_ray.tasks.classification import Pretrained

assert isinstance(later_layer.task, Classification)
config = replace(
    later_layer,
    name="rifle-cub-resnet50",
    task=replace(
        later_layer.task,
        model=TimmModel(name="resnet50.tv_in1k"),
        start=Pretrained(),
        augment=TimmAugment(size=224),
        label_smoothing=0.0,
    ),
    recipe=Rifle(generations=2, epochs=20, warmup_epochs=0),
    optim=Optim(name="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4),
)

if __name__ == "__main__":
    main_job(__file__)
