"""Shrink and perturb: ResNet18 on CIFAR-10, of which 1,000 more images arrive in each of 45 rounds.

Ash & Adams 2020 (arXiv:1910.08475): 0.4 x the weights + 0.1 x a fresh network, Adam at 1e-3 without decay, each round
until 99 % of what has arrived are right, at most as long as eight epochs of all images take. The claim is that it
closes the gap between a warm start and training anew (`compare_shrink_perturb_cifar10_resnet18.py`). 5,000 of the
50,000 images are cut off for validation.
"""

from llf_ray.cli import main_job
from llf_ray.data import Augment, Torchvision
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.shrink_perturb import ShrinkAndPerturb
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import Classification, SmallResNet

config = RunConfig(
    name="shrink-perturb-cifar10-resnet18",
    task=Classification(
        model=SmallResNet(widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2)),
        data=Torchvision(name="CIFAR10", root="torchvision"),
        augment=Augment(size=32),
        label_smoothing=0.0,
    ),
    recipe=ShrinkAndPerturb(generations=45, epochs=8, shrink=0.4, perturb=0.1, until_accuracy=0.99),
    optim=Optim(name="adam", lr=1e-3, weight_decay=0.0),
    engine=EngineSettings(batch=128, channels_last=True),
    resources=Resources(workers=1, cpus=4, gpus=1),
    tracking=Tracking(log_every=50, evaluate_every=8),
)

if __name__ == "__main__":
    main_job(__file__)
