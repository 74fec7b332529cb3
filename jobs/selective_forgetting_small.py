"""Targeted forgetting on the bundled images: what a perturbation takes from mislabelled and from clean examples.

The analysis of Zhou et al. 2022 (arXiv:2202.00155): a tenth of the labels is drawn at random, a LeNet 300-100 learns
them by heart, and every hundred steps a clone forgets 70 % of its weights (35 % of the last layer), by each mask and
fill of the paper, with kept weights as they are or rewound. Claim: mislabelled and hard examples lose more than clean
and easy ones.
"""

from dataclasses import replace

from long_small import config as long

from llf_ray.cli import main_job
from llf_ray.data import Augment, FashionSample
from llf_ray.engine.base import Optim
from llf_ray.measures.selectivity import Probe, every_targeted
from llf_ray.tasks import Classification, MultiLayerPerceptron

config = replace(
    long,
    name="selective-forgetting-small",
    task=Classification(
        model=MultiLayerPerceptron(),
        data=FashionSample(),
        augment=Augment(),
        label_smoothing=0.0,
        mislabelled=0.1,
    ),
    optim=Optim(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.0),
    probes=(Probe(perturbations=every_targeted(keep=0.3, other={"fc": 0.65}), every=100),),
)

if __name__ == "__main__":
    main_job(__file__)
