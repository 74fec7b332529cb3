"""Token Cropr on CamVid: 83 % of the patches leave on the way, and last-layer fusion keeps the dense model's mIoU.

Bergner et al. (arXiv:2412.00965) report 56.6 mIoU beside the dense 56.7 on ADE20K, and 47.7 where nothing is put back.
Here the dense model is `segmentation_camvid.py`'s: run that first, in the same folder, since this job starts from
`runs/segmentation-camvid`. Data as there.
"""

from dataclasses import replace

from segmentation_camvid import config as dense

from llf_ray.cli import main_job
from llf_ray.nn.cropr import Cropping, Steady
from llf_ray.recipes.long import Long
from llf_ray.tasks import CroppedTransformer, FromRun, Segmentation, TimmModel

assert isinstance(dense.task, Segmentation)
assert isinstance(dense.task.model, TimmModel)
config = replace(
    dense,
    name="segmentation-cropr-camvid",
    task=replace(
        dense.task,
        model=CroppedTransformer(
            model=dense.task.model,
            cropping=Cropping(schedule=Steady(rate=13), queries="patches", ramp=5),
        ),
        start=FromRun(run="runs/segmentation-camvid", head="fresh"),
    ),
    recipe=Long(generations=1, epochs=10, warmup_epochs=1),
    optim=replace(dense.optim, lr=7e-4),
)

if __name__ == "__main__":
    main_job(__file__)
