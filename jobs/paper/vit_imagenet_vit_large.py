"""The dense baseline of Token Cropr's Table 1: MAE's ViT-L/16 fine-tuned on ImageNet (85.8 % top-1).

Bergner et al. (arXiv:2412.00965), by their code and logs: AdamW, 1e-3 for each 256 images of a batch of 1,024, layer
decay 0.75, 5 epochs of warm-up and a cosine over 50, RandAugment, mixup or cutmix, random erasing, drop path 0.2, mean
over all tokens. They train in fp16 with a gradient scaler; here it is bf16.
"""

from llf_ray.cli import main_job
from llf_ray.data import Folder, TimmAugment
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.long import Long
from llf_ray.run import Checkpoints, Resources, RunConfig
from llf_ray.tasks import Classification, Pretrained, TimmModel

model = TimmModel(
    name="vit_large_patch16_224.mae",
    drop_path=0.2,
    options={"global_pool": "avg", "pool_include_prefix": True},
)
task = Classification(
    model=model,
    data=Folder(root="imagenet"),
    augment=TimmAugment(size=224, policy="rand-m9-mstd0.5-inc1", erase=0.25),
    mixup=0.8,
    cutmix=1.0,
    label_smoothing=0.1,
    start=Pretrained(),
    num_workers=12,
)
config = RunConfig(
    name="vit-imagenet-vit-large",
    task=task,
    recipe=Long(generations=1, epochs=50, warmup_epochs=5),
    optim=Optim(name="adamw", lr=4e-3, weight_decay=0.05, decay="matrices", layer_decay=0.75),
    engine=EngineSettings(batch=1024, micro_batch=128, precision="bf16"),
    resources=Resources(workers=8, cpus=12, gpus=1),
    checkpoints=Checkpoints(keep_generations=False),
    tracking=Tracking(log_every=50, evaluate_every=5),
)

if __name__ == "__main__":
    main_job(__file__)
