"""The training loop: ask where the run stands, cross the boundary, learn until the next question, measure, keep.

No Ray, no DeepSpeed, no MLflow: an engine owns the weights, an adviser answers and keeps the record, a team joins the
ranks.
"""

from __future__ import annotations

from llf_ray.engine.base import Engine
from llf_ray.engine.team import Team
from llf_ray.train.adviser import Advice
from llf_ray.train.state import Hopeless, Run
from llf_ray.train.worker import Outcome, Worker

__all__ = ["train"]


def train(run: Run, engine: Engine, adviser: Advice, team: Team) -> Outcome:
    """Every rank calls: carry a run from where its folder says it stands to the end of its plan, or to a stop."""
    worker = Worker(run, engine, adviser, team)
    try:
        stand = worker.restore()
        while True:
            answer, stand, stop = worker.ask(stand)  # rank 0 asks, every rank hears the same
            if answer.boundary and not stand.crossed:
                stand = worker.cross(answer, stand)
                stop = worker.stop_asked()  # operations may take long
            if answer.position.finished:
                return worker.finish(answer, stand)
            if stop:  # here a checkpoint lies between the operations and their first step
                return worker.stop(stand, answer.position)
            worker.begin(answer, stand)
            stand, stop, due = worker.learn(answer, stand)
            if stop:
                return worker.stop(stand, answer.position)
            worker.measure_and_keep(answer.position, stand, due=due)
    except Hopeless as error:
        return worker.fail(error)
