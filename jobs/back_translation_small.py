"""Iterative back-translation between two synthetic languages: 200 pairs, 3,000 sentences of text in each language.

Sennrich et al. 2016 (arXiv:1511.06709) learn from text in the target language by translating it back; Hoang et al. 2018
(W18-2703) claim that repeating it makes both directions better in turn. Each generation here starts as a fresh network
(`recipe.forget=nothing` goes on with the old one, `recipe.forget=later` with its encoder).
"""

from llf_ray.cli import main_job
from llf_ray.data import SyntheticLanguages
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.back_translation import BackTranslation
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import Recurrent, Translation

config = RunConfig(
    name="back-translation-small",
    task=Translation(
        data=SyntheticLanguages(num_pairs=200, num_monolingual=3_000),
        model=Recurrent(embedding=64, hidden=96, dropout=0.2),
    ),
    recipe=BackTranslation(generations=4, epochs=50),
    optim=Optim(name="adamw", lr=4e-3, weight_decay=0.01),
    engine=EngineSettings(batch=50, clip=1.0),
    resources=Resources(workers=2, cpus=1),
    tracking=Tracking(evaluate_every=25),
)

if __name__ == "__main__":
    main_job(__file__)
