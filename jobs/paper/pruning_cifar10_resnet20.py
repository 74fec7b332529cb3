"""Iterative magnitude pruning of ResNet-20 on CIFAR-10: 20 % of what is left at each level, rewound to step 500.

Frankle & Carbin 2019 (arXiv:1803.03635) and Frankle et al. 2020 (arXiv:1912.05671): the network, the 160 epochs with
drops at 80 and 120, and weight decay are those of the public code (open_lth). Eleven levels leave 10.7 % of the
weights. The claim is accuracy over sparsity no worse than the dense network's; the controls are
`recipe.control=reinit` and `recipe.control=random`, all beside one another in `compare_pruning_cifar10_resnet20.py`.
Rewinding is in epochs: 1.42 of 351 steps are 500 (5,000 of the 50,000 images are cut off for validation).
"""

from llf_ray.cli import main_job
from llf_ray.data import Augment, Torchvision
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.pruning import IterativePruning
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import Classification, SmallResNet

config = RunConfig(
    name="pruning-cifar10-resnet20",
    task=Classification(
        model=SmallResNet(widths=(16, 32, 64), blocks=(3, 3, 3)),
        data=Torchvision(name="CIFAR10", root="torchvision"),
        augment=Augment(size=32, shift=4, flip=0.5),
        label_smoothing=0.0,
    ),
    recipe=IterativePruning(
        generations=11, epochs=160, warmup_epochs=0, drops=(0.5, 0.75), rate=0.2, rewind_epochs=500 / 351
    ),
    optim=Optim(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4),
    engine=EngineSettings(batch=128, channels_last=True),
    resources=Resources(workers=1, cpus=4, gpus=1),
    tracking=Tracking(log_every=50, evaluate_every=10),
)

if __name__ == "__main__":
    main_job(__file__)
