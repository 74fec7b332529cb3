"""One long cosine on the bundled images: the baseline that takes as many steps as the iterative schedules.

Clothes of Fashion-MNIST lie at random places on real photographs, 2,000 for training, so generalisation has room to
improve. A small ResNet trains for 80 epochs in one piece (Zhou et al. 2022, arXiv:2202.00155, call it "long"). The
other small jobs derive from this one.
"""

from llf_ray.cli import main_job
from llf_ray.data import Augment, FashionOnPhotographs
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.long import Long
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import Classification, SmallResNet

config = RunConfig(
    name="long-small",
    task=Classification(
        model=SmallResNet(widths=(16, 32, 64, 128), blocks=(1, 1, 1, 1), stem_stride=3),
        data=FashionOnPhotographs(),
        augment=Augment(shift=2, flip=0.5),
        label_smoothing=0.1,
    ),
    recipe=Long(generations=4, epochs=20),
    optim=Optim(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
    engine=EngineSettings(batch=100, channels_last=True),
    resources=Resources(workers=2, cpus=1),
    tracking=Tracking(evaluate_every=5),
)

if __name__ == "__main__":
    main_job(__file__)
