"""Seeded iterated learning for as many steps of the game as eighty generations of neural iterated learning.

Lu et al. 2020 (arXiv:2003.12694) do not publish lengths for this game; these are those of `SeededIteratedLearning`.
"""

from llf_ray.cli import main_job
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.seeded_learning import SeededIteratedLearning
from llf_ray.run import Checkpoints, Resources, RunConfig
from llf_ray.tasks.language_game import LanguageGame

config = RunConfig(
    name="language-seeded-iterated",
    task=LanguageGame(seeds=tuple(range(8))),
    recipe=SeededIteratedLearning(generations=172),
    optim=Optim(name="adam", lr=1e-3, weight_decay=0.0),
    engine=EngineSettings(batch=56),
    resources=Resources(workers=1),
    checkpoints=Checkpoints(keep_generations=False),
    tracking=Tracking(log_every=500, evaluate_every=20),
)

if __name__ == "__main__":
    main_job(__file__)
