"""Token Cropr on the bundled images: four fifths of the patches leave on the way through six blocks.

Bergner et al. (arXiv:2412.00965) claim that learned scores keep the patches that matter (ImageNet, ViT-L: 85.3 of 85.8
at 57 % of the multiply-adds). They start from strong weights; here the network starts from nothing, and pruning grows
over the first half of the epochs. To start from a dense run instead: `task.start=FromRun(run="runs/vit-small",
head="fresh")`. No clipping: a norm over all gradients would let the modules shrink the network's.
"""

from dataclasses import replace

from vit_small import config as dense
from vit_small import model, task

from llf_ray.cli import main_job
from llf_ray.engine.base import EngineSettings
from llf_ray.nn.cropr import Cropping, Steady
from llf_ray.tasks import CroppedTransformer

cropping = Cropping(schedule=Steady(rate=13), fusion=False, ramp=20)
config = replace(
    dense,
    name="cropr-small",
    task=replace(task, model=CroppedTransformer(model=model, cropping=cropping)),
    engine=EngineSettings(batch=50),
)

if __name__ == "__main__":
    main_job(__file__)
