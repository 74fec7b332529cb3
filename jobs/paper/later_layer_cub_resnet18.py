"""Later-layer forgetting on CUB-200 with ResNet18: 70.76 % after 3 further generations, 72.47 % after 10.

Zhou et al. 2022 (arXiv:2202.00155), Table 1; from scratch, 200 epochs a generation. `CUB_200_2011`, as its archive
unpacks, lies in the folder that LLF_RAY_DATA names. The paper trains on all of train and watches test; here validation
is cut from train, 2 images a class, and test is scored once. An independent reproduction with `layer4` found 71.37 %.
"""

from llf_ray.cli import main_job
from llf_ray.data import Cub, TimmAugment
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.later_layer import LaterLayer
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import Classification, TimmModel

config = RunConfig(
    name="later-layer-cub-resnet18",
    task=Classification(
        model=TimmModel(name="resnet18", init="kaiming_normal", options={"zero_init_last": False}),
        data=Cub(root="CUB_200_2011", validation=0.06),
        augment=TimmAugment(size=224, stretch=256, interpolation="bilinear"),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        label_smoothing=0.1,
        num_workers=8,
    ),
    recipe=LaterLayer(generations=11, epochs=200, warmup_epochs=5, threshold="layer4"),
    optim=Optim(name="sgd", lr=0.256, momentum=0.9, weight_decay=1e-4),
    engine=EngineSettings(batch=32, channels_last=True),
    resources=Resources(workers=1, cpus=8, gpus=1),
    tracking=Tracking(log_every=50, evaluate_every=20),
)

if __name__ == "__main__":
    main_job(__file__)
