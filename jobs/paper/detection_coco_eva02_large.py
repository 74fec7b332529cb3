"""COCO with EVA-02-L at 1536 pixels and Token Cropr: 63.0 box and 54.0 mask AP with 97 % of the patches cut, the
encoder 2.4 times as fast.

Bergner et al. 2024 (arXiv:2412.00965), quoted from second hand, with Cascade Mask R-CNN; there is no public code.
Assumed: the five cuts lie behind blocks 5, 8, 11, 14 and 20 counted from 0, which are blocks of global attention in
EVA-02's detector, and each keeps half (3 % in the end); attention is global on what is left; the loss of the auxiliary
task, one query a module for the classes in the image, has weight 1; training starts from the dense detector of
`detection_coco_eva02_large_dense.py`, in its run's folder, and prunes at the same rate from the first step on.
"""

from dataclasses import replace

from detection_coco_eva02_large_dense import config as dense
from detection_coco_eva02_large_dense import model, task

from llf_ray.cli import main_job
from llf_ray.nn.cropr import Cropping, KeepRate
from llf_ray.tasks import CroppedTransformer, FromRun

config = replace(
    dense,
    name="detection-coco-eva02-large",
    task=replace(
        task,
        model=CroppedTransformer(
            model=model,
            cropping=Cropping(schedule=KeepRate(keep=0.5, after=(6, 9, 12, 15, 21))),
        ),
        start=FromRun(run="runs/detection-coco-eva02-large-dense", head="fresh"),
    ),
)

if __name__ == "__main__":
    main_job(__file__)
