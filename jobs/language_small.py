"""The referential game without forgetting, three seeds side by side: what the other `language_*` jobs are held against.

Ren et al. 2020 (arXiv:2002.01365): their code, without resets, ends at a topographic similarity of 0.52 (by its own
definition, one seed) after 30,000 steps of the game, which are these.
"""

from llf_ray.cli import main_job
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.long import Long
from llf_ray.run import Checkpoints, Resources, RunConfig
from llf_ray.tasks import LanguageGame

config = RunConfig(
    name="language-small",
    task=LanguageGame(seeds=(0, 1, 2)),
    recipe=Long(generations=10, epochs=30, warmup_epochs=0, shape="constant"),
    optim=Optim(name="adam", lr=1e-3, weight_decay=0.0),
    engine=EngineSettings(batch=56),
    resources=Resources(workers=1),
    checkpoints=Checkpoints(keep_generations=False),
    tracking=Tracking(log_every=100, evaluate_every=5),
)

if __name__ == "__main__":
    main_job(__file__)
