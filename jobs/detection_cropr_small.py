"""Detection on the bundled images with Token Cropr: each of three modules cuts half of the patches that reach it.

Bergner et al. 2024 (arXiv:2412.00965): each module learns which classes are in the image, and in the last block all
patches are back. From scratch, at the budget of `detection_small.py`; the paper starts from dense weights, as
`nuclei_cropr.py` does.
"""

from dataclasses import replace

from detection_small import config as dense
from detection_small import model, task

from llf_ray.cli import main_job
from llf_ray.nn.cropr import Cropping, KeepRate
from llf_ray.tasks import CroppedTransformer

config = replace(
    dense,
    name="detection-cropr-small",
    task=replace(
        task,
        model=CroppedTransformer(model=model, cropping=Cropping(schedule=KeepRate(keep=0.5))),
    ),
)

if __name__ == "__main__":
    main_job(__file__)
