"""COCO with a dense EVA-02-L at 1536 pixels: the detector that Token Cropr starts from.

EVA-02's own figures (Fang et al. 2023, arXiv:2303.11331) are 62.3 box and 53.8 mask AP without Objects365, with
cascaded heads and windowed attention. Here heads are plain Mask R-CNN, since torchvision has no cascade, and attention
is global in every block. `annotations/`, `train2017/` and `val2017/` lie in `coco` below the folder that LLF_RAY_DATA
names. Assumed, since the paper gives no recipe for detection: EVA-02's 40,000 steps at batch 64 (22 epochs), AdamW at
4e-5, constant after a short warm-up, rates times 0.8 from layer to layer, drop path 0.3, averaged weights (0.9999),
weights of masked image modelling, patches re-gridded from 14 to 16 pixels.
"""

from llf_ray.cli import main_job
from llf_ray.data import Coco, LargeScaleJitter
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.nn.detector_settings import Heads
from llf_ray.recipes.long import Long
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import Detection, Pretrained, TimmModel

model = TimmModel(
    name="eva02_large_patch14_224.mim_m38m",
    drop_path=0.3,
    options={"img_size": 1536, "patch_size": 16, "global_pool": ""},
)
task = Detection(
    model=model,
    data=Coco(root="coco"),
    augment=LargeScaleJitter(size=1536, scale=(0.1, 2.0)),
    heads=Heads(strides=(4, 8, 16, 32, 64), anchors=(32, 64, 128, 256, 512)),
    start=Pretrained(),
    num_workers=8,
)
config = RunConfig(
    name="detection-coco-eva02-large-dense",
    task=task,
    recipe=Long(generations=1, epochs=22, warmup_epochs=0.15, shape="constant"),
    optim=Optim(name="adamw", lr=4e-5, weight_decay=0.05, decay="matrices", layer_decay=0.8, averaged=0.9999),
    engine=EngineSettings(batch=64, micro_batch=1, stage=1, precision="bf16", checkpoint_gradients=True),
    resources=Resources(workers=16, cpus=8, gpus=1),
    tracking=Tracking(log_every=50, evaluate_every=2),
)

if __name__ == "__main__":
    main_job(__file__)
