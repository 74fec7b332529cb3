"""Targeted forgetting over the training of a LeNet 300-100 that learns a tenth of wrong labels on a tenth of MNIST.

The analysis of Zhou et al. 2022 (arXiv:2202.00155): every hundred of some 47,000 steps a clone forgets 70 % of its
weights (35 % of the last layer), by each mask and fill of the paper, with kept weights as they are or rewound, and all
training examples are looked at again. Claim: mislabelled and hard examples lose more than clean and easy ones.
MNIST, as torchvision unpacks it, lies in `torchvision` in the folder that LLF_RAY_DATA names.
"""

from llf_ray.cli import main_job
from llf_ray.data import Torchvision
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.measures.selectivity import Probe, every_targeted
from llf_ray.recipes.long import Long
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import Classification, MultiLayerPerceptron

config = RunConfig(
    name="selective-forgetting-mnist-lenet",
    task=Classification(
        model=MultiLayerPerceptron(),
        data=Torchvision(name="MNIST", root="torchvision", channels=1, num_train=6000),
        label_smoothing=0.0,
        mislabelled=0.1,
    ),
    recipe=Long(generations=1, epochs=1000),
    optim=Optim(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0),
    engine=EngineSettings(batch=128, channels_last=True),
    resources=Resources(workers=1, cpus=1),
    tracking=Tracking(log_every=100, evaluate_every=100),
    probes=(Probe(perturbations=every_targeted(keep=0.3, other={"fc": 0.65}), every=100, examples=None),),
)

if __name__ == "__main__":
    main_job(__file__)
