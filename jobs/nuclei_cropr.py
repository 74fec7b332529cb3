"""Nuclei with Token Cropr: seven of eight patches are cut on the way, and all are fused again before the heads.

Bergner et al. 2024 (arXiv:2412.00965) prune a detector by the question which classes an image holds, and report 63.0
box and 54.0 mask AP on COCO at 97 % pruned. With the one class of nuclei that question has one answer; here the modules
must do with it. Starts from the dense run of `jobs/nuclei.py` in `runs/nuclei`, as the paper starts from dense weights.
"""

from dataclasses import replace

from nuclei import config as nuclei
from nuclei import model, task

from llf_ray.cli import main_job
from llf_ray.nn.cropr import Cropping, KeepRate
from llf_ray.recipes.long import Long
from llf_ray.tasks import CroppedTransformer, FromRun

config = replace(
    nuclei,
    name="nuclei-cropr",
    task=replace(
        task,
        model=CroppedTransformer(model=model, cropping=Cropping(schedule=KeepRate(keep=0.5))),
        start=FromRun(run="runs/nuclei", head="fresh"),
    ),
    recipe=Long(generations=1, epochs=5, warmup_epochs=0.5),
    optim=replace(nuclei.optim, lr=5e-4),
)

if __name__ == "__main__":
    main_job(__file__)
