"""Iterative back-translation between two larger synthetic languages, for a GPU: ten times the words and the text.

The method is that of Hoang et al. 2018 (W18-2703), one round of it that of Sennrich et al. 2016 (arXiv:1511.06709).
Their data (WMT, millions of pairs) are not used, so no published number belongs beside these.
"""

from llf_ray.cli import main_job
from llf_ray.data import SyntheticLanguages
from llf_ray.engine.base import EngineSettings, Optim
from llf_ray.journal import Tracking
from llf_ray.recipes.back_translation import BackTranslation
from llf_ray.run import Resources, RunConfig
from llf_ray.tasks import Recurrent, Translation

config = RunConfig(
    name="back-translation-synthetic",
    task=Translation(
        data=SyntheticLanguages(
            num_pairs=3_200,
            num_monolingual=100_000,
            num_validation=1_000,
            num_test=5_000,
            nouns=300,
            verbs=150,
            adjectives=100,
            homonyms=50,
        ),
        model=Recurrent(embedding=256, hidden=512, dropout=0.3),
    ),
    recipe=BackTranslation(generations=6, epochs=100),
    optim=Optim(name="adamw", lr=1e-3, weight_decay=0.01),
    engine=EngineSettings(batch=128, clip=1.0),
    resources=Resources(workers=1, gpus=1),
    tracking=Tracking(evaluate_every=10),
)

if __name__ == "__main__":
    main_job(__file__)
