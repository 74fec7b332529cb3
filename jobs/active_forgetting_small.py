"""The head is drawn anew once a generation on the bundled images, with a rate of its own.

Chen et al. 2023 (arXiv:2307.01163) do this to the token embedding of a language model, every 1,000 updates.
"""

from dataclasses import replace

from long_small import config as long

from llf_ray.cli import main_job
from llf_ray.recipes.active_forgetting import ActiveForgetting

config = replace(long, name="active-forgetting-small", recipe=ActiveForgetting(generations=4, epochs=20))

if __name__ == "__main__":
    main_job(__file__)
