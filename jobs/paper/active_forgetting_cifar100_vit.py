"""Active forgetting in a vision transformer on CIFAR-100: the patch embedding is drawn anew every 1,000 updates.

Chen et al. 2023 (arXiv:2307.01163) do this to the token embedding of RoBERTa during pre-training and claim that new
languages are then learned faster and from less. There is no language model here: the patch embedding stands in, it is
what another kind of image would replace, and no figure of the paper compares.
"""

from llf_ray.cli import main_job
from llf_ray.data import Augment, Torchvision
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.active_forgetting import ActiveForgetting
from llf_ray.run import Checkpoints, Resources, RunConfig
from llf_ray.tasks import Classification, TimmModel

config = RunConfig(
    name="active-forgetting-cifar100-vit",
    task=Classification(
        model=TimmModel(name="vit_tiny_patch16_224", drop_path=0.1, options={"img_size": 32, "patch_size": 4}),
        data=Torchvision(name="CIFAR100", root="torchvision"),
        augment=Augment(size=32, shift=4, flip=0.5),
        label_smoothing=0.1,
    ),
    recipe=ActiveForgetting(
        generations=70, epochs=None, every_steps=1000, warmup_epochs=0.25, module="patch_embed", std=0.02
    ),  # 199 epochs
    optim=Optim(name="adamw", lr=1e-3, weight_decay=0.05, decay="matrices"),
    engine=EngineSettings(batch=128, clip=1.0),
    resources=Resources(workers=1, cpus=4, gpus=1),
    checkpoints=Checkpoints(keep_generations=False),
    tracking=Tracking(log_every=50, evaluate_every=10),
)

if __name__ == "__main__":
    main_job(__file__)
