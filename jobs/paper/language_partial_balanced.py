"""Nine tenths of sender and receiver forgotten every 3,000 steps, 100 lives.

Zhou et al. 2022 (arXiv:2202.00155), section 5: more compositional than no reset and than receiver resets (figures
only).
"""

from llf_ray.cli import main_job
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.partial_balanced import PartialBalancedForgetting
from llf_ray.run import Checkpoints, Resources, RunConfig
from llf_ray.tasks.language_game import li_bowling

config = RunConfig(
    name="language-partial-balanced",
    task=li_bowling(seeds=tuple(range(8))),
    recipe=PartialBalancedForgetting(generations=100, epochs=30),
    optim=Optim(name="adam", lr=1e-3, weight_decay=0.0),
    engine=EngineSettings(batch=100),
    resources=Resources(workers=1),
    checkpoints=Checkpoints(keep_generations=False),
    tracking=Tracking(log_every=500, evaluate_every=20),
)

if __name__ == "__main__":
    main_job(__file__)
