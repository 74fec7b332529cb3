"""Dense-sparse-dense training of ResNet50 on ImageNet: top-1 error 22.89 % after it, 24.01 % before.

Han et al. 2017 (arXiv:1607.04381): 30 % of each tensor are pruned, and grow back at a tenth of the rate. Lengths of
phases are not in the sources that we have: 90 epochs dense, then 45 sparse and 45 dense. `imagenet/train/CLASS/*` and
`imagenet/val/CLASS/*` lie in the folder that LLF_RAY_DATA names; validation is cut from train, 10 images a class or
so, and the official validation part is scored once.
"""

from llf_ray.cli import main_job
from llf_ray.data import Folder, TimmAugment
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.dense_sparse import DenseSparse
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import Classification, TimmModel

config = RunConfig(
    name="dense-sparse-imagenet-resnet50",
    task=Classification(
        model=TimmModel(name="resnet50"),
        data=Folder(root="imagenet", validation=0.01),
        augment=TimmAugment(size=224),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        label_smoothing=0.0,
        num_workers=8,
    ),
    recipe=DenseSparse(generations=2, epochs=90, warmup_epochs=0, sparsity=0.3, last_rate=0.1),
    optim=Optim(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4),
    engine=EngineSettings(batch=256, precision="bf16", channels_last=True),
    resources=Resources(workers=8, cpus=8, gpus=1),
    tracking=Tracking(log_every=100, evaluate_every=5),
)

if __name__ == "__main__":
    main_job(__file__)
