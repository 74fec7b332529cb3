"""Knowledge evolution by kernels on CUB-200 with ResNet18, as Zhou et al. 2022 (arXiv:2202.00155) run it beside theirs.

Taha et al. 2021 (arXiv:2103.05152); from scratch, 200 epochs a generation, 80 % of the channels kept.
`cub200/train/CLASS/*` and `cub200/test/CLASS/*` lie in the folder that LLF_RAY_DATA names; validation is cut from
train, 2 images a class, and test is scored once. `llf-ray slim` takes the slim network out of the run.
"""

from llf_ray.cli import main_job
from llf_ray.data import Folder, TimmAugment
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.knowledge_evolution import KnowledgeEvolution
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import Classification, TimmModel

config = RunConfig(
    name="knowledge-evolution-cub-resnet18",
    task=Classification(
        model=TimmModel(name="resnet18", options={"zero_init_last": False}),
        data=Folder(root="cub200", validation=0.05),
        augment=TimmAugment(size=224),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        label_smoothing=0.1,
        num_workers=8,
    ),
    recipe=KnowledgeEvolution(generations=11, epochs=200, warmup_epochs=5, split="kernels", keep=0.8),
    optim=Optim(name="sgd", lr=0.256, momentum=0.9, weight_decay=1e-4),
    engine=EngineSettings(batch=32, channels_last=True),
    resources=Resources(workers=1, cpus=8, gpus=1),
    tracking=Tracking(log_every=50, evaluate_every=20),
)

if __name__ == "__main__":
    main_job(__file__)
