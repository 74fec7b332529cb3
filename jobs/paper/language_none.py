"""The referential game of 8 colours and 4 shapes without forgetting: 300,000 steps of 100 games.

Li & Bowling 2019 (arXiv:1906.02403), the baseline of their figures; eight seeds side by side.
"""

from llf_ray.cli import main_job
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.long import Long
from llf_ray.run import Checkpoints, Resources, RunConfig
from llf_ray.tasks.language_game import li_bowling

config = RunConfig(
    name="language-none",
    task=li_bowling(seeds=tuple(range(8))),
    recipe=Long(generations=50, epochs=60, warmup_epochs=0, shape="constant"),
    optim=Optim(name="adam", lr=1e-3, weight_decay=0.0),
    engine=EngineSettings(batch=100),
    resources=Resources(workers=1),
    checkpoints=Checkpoints(keep_generations=False),
    tracking=Tracking(log_every=500, evaluate_every=20),
)

if __name__ == "__main__":
    main_job(__file__)
