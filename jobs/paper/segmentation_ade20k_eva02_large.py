"""ADE20K by EVA-02-L at 512 pixels without pruning: 56.7 mIoU in the paper, the median of five seeds.

Bergner et al. (arXiv:2412.00965): masked-image weights re-gridded to patches of 16, Segmenter's linear decoder, 64
epochs of AdamW at 2e-5 with layer-wise decay, falling to 0 by a power of 0.9, and images scored whole, in one pass.
Their code trains in fp16; here it is bf16. `ADEChallengeData2016`, as its archive unpacks, lies in the folder that
LLF_RAY_DATA names; the official validation part is the test set, and 1 % of the training part is cut off for
validation. The pruned model is `segmentation_cropr_ade20k_eva02_large.py`.
"""

from llf_ray.cli import main_job
from llf_ray.data import Ade20k, MaskAugment
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.long import Long
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import Pretrained, Segmentation, TimmModel

config = RunConfig(
    name="segmentation-ade20k-eva02-large",
    task=Segmentation(
        model=TimmModel(
            name="eva02_large_patch14_224.mim_m38m", drop_path=0.2, options={"img_size": 512, "patch_size": 16}
        ),
        data=Ade20k(),
        augment=MaskAugment(size=512),
        start=Pretrained(),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        num_workers=8,
    ),
    recipe=Long(generations=1, epochs=64, warmup_epochs=0, shape="linear", power=0.9),
    optim=Optim(name="adamw", lr=2e-5, weight_decay=0.05, decay="matrices", layer_decay=0.9),
    engine=EngineSettings(batch=8, precision="bf16"),
    resources=Resources(workers=1, cpus=10, gpus=1),
    tracking=Tracking(log_every=100, evaluate_every=8),
)

if __name__ == "__main__":
    main_job(__file__)
