"""SEAL on Tiny-ImageNet with ResNet50: 59.22 % after ten generations of 160 epochs, 40 of them ascent.

Sarfi et al. 2023 (arXiv:2304.04858). `tiny-imagenet-200`, as its archive unpacks, lies in the folder that LLF_RAY_DATA
names; the official validation part is the test set, as in the paper. Its code reports the best epoch on that part; here
it is scored once, and validation is cut from train. A batch of 32 is one GPU's, since batch normalisation works on each
worker's own share.
"""

from llf_ray.cli import main_job
from llf_ray.data import Augment, TinyImageNet
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.seal import Seal
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import Classification, TimmModel

config = RunConfig(
    name="seal-tiny-imagenet-resnet50",
    task=Classification(
        model=TimmModel(name="resnet50", init="kaiming_normal", options={"zero_init_last": False}),
        data=TinyImageNet(root="tiny-imagenet-200", validation=0.02),
        augment=Augment(size=64, shift=4, flip=0.5),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        label_smoothing=0.1,
    ),
    recipe=Seal(generations=10, epochs=160, warmup_epochs=20, ascent_epochs=40, ascent_rate=0.01, threshold="layer3"),
    optim=Optim(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
    engine=EngineSettings(batch=32, channels_last=True),
    resources=Resources(workers=1, cpus=8, gpus=1),
    tracking=Tracking(log_every=100, evaluate_every=10),
)

if __name__ == "__main__":
    main_job(__file__)
