"""The sender meets a new receiver ten times: languages that are easy to teach survive.

Li & Bowling 2019 (arXiv:1906.02403) claim higher topographic similarity than without resets.
"""

from dataclasses import replace

from language_small import config as none

from llf_ray.cli import main_job
from llf_ray.recipes.receiver_reset import ReceiverReset

config = replace(none, name="language-receiver-reset-small", recipe=ReceiverReset(generations=10, epochs=30))

if __name__ == "__main__":
    main_job(__file__)
