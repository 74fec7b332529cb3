"""One rank's part in a run: the verbs of the training loop."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from llf_ray.engine.base import Engine, divide_batch
from llf_ray.engine.team import Team
from llf_ray.forget.draw import key_of
from llf_ray.journal import note, read_run
from llf_ray.plan import Answer, Phase, Plan, Position, is_named, locate, rates, spans
from llf_ray.run import batch_of, group_labels, group_rules
from llf_ray.tasks.base import Role, Tally
from llf_ray.train.adviser import STOP_REQUEST, Advice, read_cuts
from llf_ray.train.batches import phase_batches
from llf_ray.train.boundary import cross
from llf_ray.train.evaluation import evaluate
from llf_ray.train.export import export
from llf_ray.train.probing import Prober
from llf_ray.train.state import (
    Hopeless,
    Run,
    Stand,
    Stores,
    load_stand,
    newest,
    optimizer_of,
    prune,
    set_aside,
    write_checkpoint,
)

__all__ = ["Clock", "Outcome", "Worker"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a training ended: its state, the last scores, and where its time went (seconds by activity, on rank 0)."""

    state: Literal["finished", "stopped", "failed"]
    step: int
    message: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    digest: str = ""


class Clock:
    """Seconds by activity.

    Waiting for a device is not forced: on a GPU what is queued counts where it is waited for.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since, self._what = time.perf_counter(), "start"

    def now(self, what: str) -> None:
        """From here on time counts as ``what``."""
        here = time.perf_counter()
        self.seconds[self._what] = self.seconds.get(self._what, 0.0) + here - self._since
        self._since, self._what = here, what


class Worker:
    """One rank's part in a run: the verbs of the loop. It remembers only what follows from the stand and the answer."""

    def __init__(self, run: Run, engine: Engine, adviser: Advice, team: Team) -> None:
        self.run, self.engine, self.adviser, self.team, self.clock = run, engine, adviser, team, Clock()
        self.config, self.plan = run.config, run.plan
        self.checkpoints = run.folder / "checkpoints"
        self.saved_at = time.monotonic()
        self.pulsed_at = time.perf_counter()
        self.digest = ""
        self.labels: dict[str, str] = {}
        self.begun: int | None = None  # the phase whose rules the engine has
        self.teacher: nn.Module | None = None
        self.accumulation = divide_batch(run.config.engine, team.size)[1]
        self.prober = Prober(run, engine, team)

    # ------------------------------------------------------------------------------------------------- stand and state

    def restore(self) -> Stand:
        """The newest checkpoint of the run that verifies; else the branch's; else the beginning."""
        self.clock.now("restore")
        found, wrong = self.team.share(newest(self.checkpoints) if self.team.rank == 0 else None)
        self.record([note(f"passed over checkpoint {problem}") for problem in wrong])
        if self.team.rank == 0:
            set_aside(self.checkpoints, len(wrong))
        if found is not None:
            self.engine.load(found)
            stand = load_stand(found)
            self.record([note(f"resumed at step {stand.step} from {found.name} on {self.team.size} worker(s)")])
            return stand
        if self.run.branch is not None:
            # moments of another optimizer mean something else: a branch that changes it starts with none
            same = optimizer_of(self.run.branch) == self.config.optim.name
            self.engine.load(self.run.branch, moments=same)
            parent = load_stand(self.run.branch)
            fresh = "" if same else ", with a fresh optimizer"
            self.record([note(f"branched at step {self.run.branch_step} from {self.run.branch}{fresh}")])
            return replace(
                parent,
                step=self.run.branch_step,
                crossed=False,
                seed=self.config.seed,
                stores=self._adopt(parent),
                applied=(),
            )
        return Stand(seed=self.config.seed)

    def _adopt(self, parent: Stand) -> dict[str, str]:
        """Stores of the run branched from stay where they are: an absolute path joins to itself."""
        assert self.run.branch is not None
        return {name: str(self.run.branch.parent.parent / path) for name, path in parent.stores.items()}

    def record(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Rank 0's records go to the journal; the others' are dropped."""
        if self.team.rank == 0 and records:
            self.adviser.record(records)

    def ask(self, stand: Stand) -> tuple[Answer, Stand, bool]:
        """Rank 0 asks, all ranks hear the same answer and whether somebody asked for a stop; the window of
        observations starts anew.
        """
        self.clock.now("ask")
        first = self.team.rank == 0
        answer, stop = self.team.share(
            (self.adviser.at(stand.step, stand.observed()), self._stop_file()) if first else None
        )
        if is_named(self.plan, answer.position):  # resumed in between: the window goes on
            stand = stand.after_question(new_phase=answer.position.start == stand.step)
        return answer, stand, stop

    def cross(self, answer: Answer, stand: Stand) -> Stand:
        """Apply the operations at this step, then prove that all ranks hold the same weights.

        Only at a boundary: a run that is stopped elsewhere has crossed nothing, and may find that its phase was ended.
        """
        if any(cut.step == stand.step for cut in answer.cuts):  # the phase ended with this answer
            ended = locate(self.plan, stand.step - 1, answer.cuts)
            self.measure_and_keep(replace(ended, stop=stand.step), stand, due=True)
        self.clock.now("boundary")
        self.begun = None
        try:
            stand, records = cross(self.run, answer, stand, self.engine, self.team)
        except OSError as error:
            raise Hopeless(
                f"a store could not be written at step {stand.step}: {error}; what was kept before is whole: "
                "free space and resume"
            ) from None
        self.digest = self.compare(stand.step)
        self.record([{**record, "digest": self.digest} for record in records])
        uncounted = {name: why for record in records for name, why in record.get("uncounted", {}).items()}
        self.record(
            [note(f"mask {name!r}: weights on a path are not counted: {why}") for name, why in uncounted.items()]
        )
        if not answer.position.finished:
            self.record([_phase_record(self.plan, answer.position)])
        return stand

    def compare(self, step: int) -> str:
        """The adviser compares the replicas of all ranks; the model's digest."""
        found = self.team.gather(self.engine.digest())
        verdict: tuple[str, str] | None = None
        if self.team.rank == 0:
            try:
                verdict = (self.adviser.check(step, found), "")
            except Exception as error:
                # behind Ray the error's class is wrapped; its text says which ranks differ
                verdict = ("", str(error).strip().splitlines()[-1])
        digest, problem = self.team.share(verdict)
        if problem:
            raise Hopeless(problem)
        return digest

    # -------------------------------------------------------------------------------------------------- optimizer steps

    def begin(self, answer: Answer, stand: Stand) -> None:
        """Set the rules of the phase, once: on its first step or after a restart in its middle."""
        phase = self.plan.phases[answer.position.index]
        if self.begun != answer.position.index:
            self.begun = answer.position.index
            self._set_rules(phase, stand)
        self.engine.module.train()
        if phase.normalisation == "eval":
            for module in self.engine.module.modules():
                if isinstance(module, _NormBase):
                    module.eval()

    def _set_rules(self, phase: Phase, stand: Stand) -> None:
        self.engine.set_rules(group_rules(phase, self.engine.groups, self.config.optim))
        self.labels = group_labels(phase, self.engine.groups)
        stores = Stores(self.run.folder, stand.stores)
        live: dict[str, Tensor] = {}
        for masks in (stores[name] for name in phase.hold):
            live |= {name: masks[name] & live[name] if name in live else masks[name] for name in masks}
        self.engine.hold_at_zero(live)
        self.teacher = None
        if phase.objective.kind == "distil":
            teacher = self.config.task.initial(0)
            teacher.load_state_dict(dict(stores[phase.objective.teacher]))
            self.teacher = teacher.to(self.team.device).eval().requires_grad_(False)

    def learn(self, answer: Answer, stand: Stand) -> tuple[Stand, bool, bool]:
        """Optimizer steps up to the next question, with a pulse every few steps; whether the run is to stop in between,
        and whether a checkpoint is due behind them.
        """
        self.clock.now("steps")
        every, phase = self.config.tracking.log_every, self.plan.phases[answer.position.index]
        batches = phase_batches(
            self.run,
            answer.position.index,
            Stores(self.run.folder, stand.stores),
            self.team.device,
            stream=answer.position.stream,
            count=answer.until - stand.step,
            rank=self.team.rank,
            size=self.team.size,
        )
        window = Window(self.engine.module)
        keep = False
        for step in range(stand.step, answer.until):
            position = replace(answer.position, step=step)
            self._keep_snapshots(step)
            value = rates(self.plan, position)
            self.engine.set_rates({name: value[label] for name, label in self.labels.items()})
            try:
                loss = self.engine.step(
                    self._micro_batches(batches, step),
                    lambda model, batch: window.see(self._loss(phase, model, batch)),
                )
            except FloatingPointError:  # on every rank: the engine looks at the reduced gradients
                raise Hopeless(self._divergence("gradient is not finite", step, position)) from None
            window.add(loss)
            if self.prober.due(step + 1):
                self.probe(step + 1)
            asking = step + 1 == answer.until
            if not asking and (step + 1 - position.start) % every and not self._counted(step + 1):
                continue
            stand, stop, keep = self.pulse(window, stand, step + 1, position, value)
            if asking:
                break  # scores come before what is kept here and before a stop, so that neither loses them
            if stop:
                return stand, True, keep
            if keep:
                self.keep(stand)
                self.clock.now("steps")
        return stand, False, keep

    def _keep_snapshots(self, step: int) -> None:
        try:
            self.prober.keep(step)
        except OSError as error:
            raise Hopeless(f"a probe's snapshot could not be written at step {step}: {error}") from None

    def probe(self, step: int) -> None:
        """Measure what perturbations of the weights would do; rates of examples leave the time out."""
        since = time.perf_counter()
        self.clock.now("probes")
        self.record(self.prober.look(step))
        self.clock.now("steps")
        self.pulsed_at += time.perf_counter() - since

    def _loss(self, phase: Phase, model: nn.Module, batch: Any) -> tuple[Tensor, Mapping[str, Tally]]:
        """What the phase's objective gives."""
        task: Any = self.config.task
        learned: tuple[Tensor, Mapping[str, Tally]]
        if phase.objective.kind == "distil":
            learned = task.distil(model, self.teacher, batch, phase.objective.weight, phase.objective.temperature)
        elif phase.objective.kind == "imitate":
            learned = task.imitate(model, batch)
        else:
            learned = task.loss(model, batch)
        return learned

    def _micro_batches(self, batches: Iterator[Any], step: int) -> Iterator[Any]:
        """This step's micro-batches, each with dropout and drop-path keyed by (seed, step, place, rank)."""
        for place in range(self.accumulation):
            batch = next(batches)
            _seed_layers(self.team.device, key_of(self.config.seed, "layers", step, place, self.team.rank))
            yield batch

    def pulse(
        self, window: Window, stand: Stand, step: int, position: Position, value: Mapping[str, float]
    ) -> tuple[Stand, bool, bool]:
        """One small reduction: losses of the steps since the last, hits, and whether any rank wants to stop or rank 0
        to save.
        """
        losses, hits, seen = window.take()
        first = self.team.rank == 0
        flags = [float(first and self._stop_file()), float(first and self._due(step))]
        total = self.team.total(
            torch.cat([losses, torch.stack([hits, seen]), torch.tensor(flags, dtype=torch.float64)])
        ).tolist()
        losses_all = [loss / self.team.size for loss in total[: len(losses)]]
        hits_all, seen_all, stop, keep = total[len(losses) :]
        for back, loss in enumerate(losses_all):
            if not math.isfinite(loss):
                raise Hopeless(self._divergence(f"training loss is {loss}", step - len(losses_all) + back, position))
        stand = replace(
            stand,
            step=step,
            crossed=False,
            # one by one: the sum must not depend on where a stop or another log_every divides it
            loss_sum=reduce(operator.add, losses_all, stand.loss_sum),
            steps_seen=stand.steps_seen + len(losses_all),
            hits=stand.hits + hits_all,
            seen=stand.seen + seen_all,
        )
        self.record([self._metrics(losses_all, hits_all, seen_all, step, position, value)])
        return stand, stop > 0, keep > 0

    def _metrics(
        self,
        losses: Sequence[float],
        hits: float,
        seen: float,
        step: int,
        position: Position,
        value: Mapping[str, float],
    ) -> dict[str, Any]:
        phase, now = self.plan.phases[position.index], time.perf_counter()
        factor = {"rest": 1.0} | {rule.select.label: rule.lr for rule in phase.rules}
        elapsed, self.pulsed_at = now - self.pulsed_at, now
        values = {
            "train/loss": sum(losses) / len(losses),
            "generation": phase.generation,
            "phase": position.index,
            "examples_per_second": len(losses) * batch_of(self.config.engine, self.team.size, phase)[0] / elapsed,
            **({"train/accuracy": hits / seen} if seen else {}),
            **{f"lr/{label}": self.config.optim.lr * factor[label] * v for label, v in value.items()},
            **{f"direction/{label}": direction for label, direction in phase.directions.items()},
        }
        return {"kind": "metrics", "step": step, "time": time.time(), "values": values}

    def _divergence(self, what: str, step: int, position: Position) -> str:
        phase = self.plan.phases[position.index]
        kept = newest(self.checkpoints)[0]
        return (
            f"the {what} at step {step + 1} (phase {phase.name!r} of generation {phase.generation}); "
            + (f"the weights of {kept.name} are kept" if kept else "no checkpoint was written before it")
            + "; the same settings would end here again: start anew under another name, or branch by --from, "
            "with a lower optim.lr or ascent rate, or with clipping (engine.clip)"
        )

    # ----------------------------------------------------------------------------------------------- measuring, keeping

    def measure_and_keep(self, position: Position, stand: Stand, *, due: bool) -> None:
        """Validation every few epochs and at phase ends; a checkpoint at phase ends and where one is due."""
        ended, every = stand.step == position.stop, self.config.tracking.evaluate_every
        scored = self.plan.is_scored(position.index, stand.step - position.generation_start, every)
        if (ended or scored) and stand.step < position.total:
            self.score("validation", stand.step, position)
        if ended or due:
            self.keep(stand)  # before the operations of this boundary: what a branch starts from

    def _counted(self, step: int) -> bool:
        every = self.config.checkpoints.every_steps
        return every is not None and step % every == 0

    def _due(self, step: int) -> bool:
        """Rank 0 only, since it asks the clock: whether a checkpoint is due."""
        minutes = self.config.checkpoints.every_minutes
        return self._counted(step) or (minutes is not None and time.monotonic() - self.saved_at >= minutes * 60)

    def score(self, role: Role, step: int, position: Position) -> dict[str, float]:
        """Every rank scores its part of a role; tallies add up exactly over batches and ranks."""
        self.clock.now("evaluation")
        values = evaluate(self.config, self.engine, self.team, role)
        phase = self.plan.phases[position.index]
        record = {
            "kind": "score",
            "step": step,
            "time": time.time(),
            "role": role,
            "generation": phase.generation,
            "phase": position.index,
        }
        self.record([{**record, "values": values}])
        self.pulsed_at = time.perf_counter()
        return values

    def keep(self, stand: Stand, *, must: bool = False) -> None:
        """Write a checkpoint.

        A failure is put on record and, unless it must succeed, tried again at the next occasion.
        """
        self.clock.now("checkpoint")
        self._must_be_finite(stand)
        self.engine.sync_buffers()
        self.digest = self.compare(stand.step)
        self.saved_at = time.monotonic()  # tried: on a full disk the next try comes after as long again
        about = {
            "plan": self.plan.fingerprint,
            "stage": self.config.engine.stage,
            "optimizer": self.config.optim.name,
            "digest": self.digest,
            "mlflow_run_id": read_run(self.run.folder).get("mlflow_run_id") if self.team.rank == 0 else None,
        }
        try:
            folder = write_checkpoint(self.checkpoints, stand, self.engine, self.team, about=about)
        except OSError as error:
            self.record(
                [note(f"no checkpoint at step {stand.step}: {error}; training goes on, the one before is kept")]
            )
            if must:
                raise Hopeless(
                    f"no checkpoint at step {stand.step}: {error}; what was kept before is whole: free space and resume"
                ) from None
            return
        if self.team.rank == 0:
            prune(self.checkpoints, self.config.checkpoints.keep, self._generation_ends())
        self.record(
            [{"kind": "checkpoint", "step": stand.step, "time": time.time(), "folder": f"checkpoints/{folder.name}"}]
        )
        self.pulsed_at = time.perf_counter()

    def _must_be_finite(self, stand: Stand) -> None:
        """A loss is that of the weights before its step: what that step made of them would be seen one step late."""
        odd = torch.tensor([not self.engine.is_finite()], dtype=torch.float64)
        if self.team.total(odd).item():
            last = max(0, stand.step - 1)
            position = locate(self.plan, last, self.team.share(read_cuts(self.run.folder)))
            raise Hopeless(self._divergence("network has weights that are not finite", last, position))

    def _generation_ends(self) -> set[int]:
        """Steps at which a generation ended so far, where they are to be kept."""
        if not self.config.checkpoints.keep_generations:
            return set()
        every = zip(self.plan.phases, spans(self.plan, read_cuts(self.run.folder)), strict=True)
        return set({phase.generation: stop for phase, (_, stop) in every}.values())  # the last phase's stop stays

    # ---------------------------------------------------------------------------------------------------------- endings

    def _stop_file(self) -> bool:
        return (self.run.folder / STOP_REQUEST).exists()

    def stop_asked(self) -> bool:
        """Whether somebody asked for a stop; rank 0's look, shared."""
        return bool(self.team.share(self._stop_file() if self.team.rank == 0 else None))

    def stop(self, stand: Stand, position: Position) -> Outcome:
        """Keep the state and leave; the run can be resumed."""
        self.keep(stand, must=True)
        self.clock.now("end")
        message = f"stopped at step {stand.step} of {position.total}; nothing is lost"
        return Outcome(
            state="stopped", step=stand.step, message=message, seconds=self.clock.seconds, digest=self.digest
        )

    def fail(self, error: Exception) -> Outcome:
        """A failure that another try would repeat: put on record, earlier checkpoints stay."""
        self.clock.now("end")
        return Outcome(state="failed", step=-1, message=str(error), seconds=self.clock.seconds)

    def finish(self, answer: Answer, stand: Stand) -> Outcome:
        """Test is scored here and nowhere else; then the last checkpoint and the final weights."""
        position = answer.position
        self._must_be_finite(stand)
        scores = {f"validation/{k}": v for k, v in self.score("validation", stand.step, position).items()}
        scores |= {f"test/{k}": v for k, v in self.score("test", stand.step, position).items()}
        self.keep(stand, must=True)
        try:
            export(self.run.folder / "final", self.config, self.engine, self.team, scores)
        except OSError as error:
            raise Hopeless(f"the final weights could not be written: {error}; free space and resume") from None
        self.clock.now("end")
        return Outcome(state="finished", step=stand.step, scores=scores, seconds=self.clock.seconds, digest=self.digest)


class Window:
    """What was learned since the last pulse, kept on the device: one loss a step, hits and items seen."""

    def __init__(self, model: nn.Module) -> None:
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.seen = 0.0

    def see(self, learned: tuple[Tensor, Mapping[str, Tally]]) -> Tensor:
        """Note a micro-batch's hits on the way to its loss."""
        loss, tallies = learned
        tally = tallies.get("accuracy")
        if tally is not None:
            self.hits.append(tally.total.detach())
            self.seen += float(tally.count)
        return loss

    def add(self, loss: Tensor) -> None:
        """Note a step's loss."""
        self.losses.append(loss)

    def take(self) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of the steps, hits, items seen, as float64 on the CPU; and start anew."""
        losses = torch.stack(self.losses).double().cpu()
        hits = torch.stack(self.hits).double().sum().cpu() if self.hits else torch.zeros((), dtype=torch.float64)
        seen = torch.tensor(self.seen, dtype=torch.float64)
        self.losses, self.hits, self.seen = [], [], 0.0
        return losses, hits, seen


def _seed_layers(device: torch.device, seed: int) -> None:
    """Seed the generators that layers draw from on this device.

    Not `torch.manual_seed`: where no GPU is in use it stores the text of the call stack at each call, 0.3 ms a step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def _phase_record(plan: Plan, position: Position) -> dict[str, Any]:
    phase: Phase = plan.phases[position.index]
    return {
        "kind": "phase",
        "step": position.step,
        "time": time.time(),
        "index": position.index,
        "name": phase.name,
        "generation": phase.generation,
        "generations": plan.generations,
        "phases": len(plan.phases),
        "stop": position.stop,
        "total": position.total,
        "directions": phase.directions,
    }
