"""Every member of the family at one budget, on the bundled images.

Zhou et al. 2022 (arXiv:2202.00155) say that these algorithms are one idea; here they share network, data, optimizer,
steps and seeds. Pruning is scored sparse, everything else dense; shrink and perturb sees its data arrive. The network
has the normalisers that layer-wise re-initialisation freezes; in all other arms they change no bit. There are 48 runs;
eight of them take under seven minutes on two cores.
"""

from dataclasses import replace

import active_forgetting_small
import alternating_small
import born_again_small
import bunched_small
import dense_sparse_small
import kels_small
import later_layer_small
import layer_wise_small
import long_small
import pruning_small
import restarts_small
import rifle_small
import seal_adaptive_small
import seal_small
import shrink_perturb_small
import wels_small

from llf_ray.cli import main_job
from llf_ray.run import Comparison

comparison = Comparison(
    name="compare-methods",
    base=replace(long_small.config, task=layer_wise_small.config.task),
    arms={
        "long": long_small.config.recipe,
        "restarts": restarts_small.config.recipe,
        "later_layer": later_layer_small.config.recipe,
        "bunched": bunched_small.config.recipe,
        "layer_wise": layer_wise_small.config.recipe,
        "seal": seal_small.config.recipe,
        "seal_adaptive": seal_adaptive_small.config.recipe,
        "kels": kels_small.config.recipe,
        "wels": wels_small.config.recipe,
        "pruning": pruning_small.config.recipe,
        "dense_sparse": dense_sparse_small.config.recipe,
        "alternating": alternating_small.config.recipe,
        "rifle": rifle_small.config.recipe,
        "born_again": born_again_small.config.recipe,
        "shrink_perturb": shrink_perturb_small.config.recipe,
        "active_forgetting": active_forgetting_small.config.recipe,
    },
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main_job(__file__)
