"""Token Cropr on the bundled segmentation: four in five patches leave on the way, and the last block sees all again.

Bergner et al. (arXiv:2412.00965) fine-tune from a dense model, one query a patch, with a rate that grows over the first
half. Here the dense model is `segmentation_small.py`'s: run that first, in the same folder, since this job starts from
`runs/segmentation-small`.
"""

from dataclasses import replace

from segmentation_small import config as dense

from llf_ray.cli import main_job
from llf_ray.nn.cropr import Cropping, Steady
from llf_ray.recipes.long import Long
from llf_ray.tasks import CroppedTransformer, FromRun, Segmentation, TimmModel

assert isinstance(dense.task, Segmentation)
assert isinstance(dense.task.model, TimmModel)
config = replace(
    dense,
    name="segmentation-cropr-small",
    task=replace(
        dense.task,
        model=CroppedTransformer(
            model=dense.task.model,
            cropping=Cropping(schedule=Steady(rate=16), queries="patches", ramp=10),
        ),
        start=FromRun(run="runs/segmentation-small", head="fresh"),
    ),
    recipe=Long(generations=2, epochs=10),
    optim=replace(dense.optim, lr=1e-3),
)

if __name__ == "__main__":
    main_job(__file__)
