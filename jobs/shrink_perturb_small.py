"""The bundled images arrive in four parts; at each arrival weights shrink towards a fresh model.

Ash & Adams 2020 (arXiv:1910.08475) claim that this closes the gap between a warm start (`recipe.shrink=1
recipe.perturb=0`) and training anew (`recipe.shrink=0 recipe.perturb=1`).
"""

from dataclasses import replace

from long_small import config as long

from llf_ray.cli import main_job
from llf_ray.recipes.shrink_perturb import ShrinkAndPerturb

config = replace(long, name="shrink-perturb-small", recipe=ShrinkAndPerturb(generations=4, epochs=20))

if __name__ == "__main__":
    main_job(__file__)
