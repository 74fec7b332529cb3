"""A new receiver every 6,000 steps, 50 lives.

Li & Bowling 2019 (arXiv:1906.02403): languages are more structured and easier to teach than without resets (figures
only).
"""

from dataclasses import replace

from language_none import config as none

from llf_ray.cli import main_job
from llf_ray.recipes.receiver_reset import ReceiverReset

config = replace(none, name="language-receiver-reset", recipe=ReceiverReset(generations=50, epochs=60))

if __name__ == "__main__":
    main_job(__file__)
