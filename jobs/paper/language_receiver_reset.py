"""A new receiver every 6,000 steps, 50 lives.

Li & Bowling 2019 (arXiv:1906.02403): languages are more structured and easier to teach than without resets (figures
only).
"""

from llf_ray.cli import main_job
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.receiver_reset import ReceiverReset
from llf_ray.run import Checkpoints, Resources, RunConfig
from llf_ray.tasks.language_game import li_bowling

config = RunConfig(
    name="language-receiver-reset",
    task=li_bowling(seeds=tuple(range(8))),
    recipe=ReceiverReset(generations=50, epochs=60),
    optim=Optim(name="adam", lr=1e-3, weight_decay=0.0),
    engine=EngineSettings(batch=100),
    resources=Resources(workers=1),
    checkpoints=Checkpoints(keep_generations=False),
    tracking=Tracking(log_every=500, evaluate_every=20),
)

if __name__ == "__main__":
    main_job(__file__)
