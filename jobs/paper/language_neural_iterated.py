"""Eighty generations of neural iterated learning.

Ren et al. 2020 (arXiv:2002.01365): topographic similarity approaches 1 after some generations.
"""

from llf_ray.cli import main_job
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.iterated_learning import NeuralIteratedLearning
from llf_ray.run import Checkpoints, Resources, RunConfig
from llf_ray.tasks.language_game import LanguageGame

config = RunConfig(
    name="language-neural-iterated",
    task=LanguageGame(seeds=tuple(range(8))),
    recipe=NeuralIteratedLearning(generations=80),
    optim=Optim(name="adam", lr=1e-3, weight_decay=0.0),
    engine=EngineSettings(batch=56),
    resources=Resources(workers=1),
    checkpoints=Checkpoints(keep_generations=False),
    tracking=Tracking(log_every=500, evaluate_every=20),
)

if __name__ == "__main__":
    main_job(__file__)
