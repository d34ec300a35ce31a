"""The training loop. It reads from top to bottom, and every draw in it depends on (seed, step) alone."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from centrobind.binder.binder import Binder
from centrobind.binder.checkpoint import save
from centrobind.binder.linear import KeptFeatures
from centrobind.data import ReadAhead, Sampler, Samples, fixed_sample, identity, kinship
from centrobind.data.batches import has_pairs
from centrobind.distributed import Team
from centrobind.distributed import team as our_team
from centrobind.errors import CentrobindWarning, CheckpointError, ConfigError, DataError, Stopped
from centrobind.evaluation.metrics import retrieval
from centrobind.objectives.base import Loss, Objective
from centrobind.progress import Watch, silent
from centrobind.training.config import FROM_SCRATCH, TrainConfig
from centrobind.training.finite import FiniteSteps, look_every
from centrobind.training.journal import Journal
from centrobind.training.optimizer import make_optimizer, schedule, set_lr
from centrobind.training.replay import nonfinite_step
from centrobind.training.run_folder import RunFolder
from centrobind.training.shard import clip, for_leader, is_divided, put_together, shard
from centrobind.training.state import Best, TrainingState, copy_into
from centrobind.training.step import differentiate, view_strength
from centrobind.training.validation import Validation, with_features
from centrobind.types import Batch

DEFAULT_BATCH = 256


def train(
    binder: Binder,
    objective: Objective,
    data: Samples,
    valid: Samples | None,
    settings: TrainConfig,
    *,
    seed: int = 0,
    run: RunFolder | None = None,
    watch: Watch = silent,
) -> Binder:
    """Train a binder in place and return it, with the best weights on `valid` unless settings say otherwise.

    See optimise, whose result is how good these were.
    """
    optimise(binder, objective, data, valid, settings, seed=seed, run=run, watch=watch)
    return binder.eval()


def optimise(
    binder: Binder,
    objective: Objective,
    data: Samples,
    valid: Samples | None,
    settings: TrainConfig,
    *,
    seed: int = 0,
    run: RunFolder | None = None,
    watch: Watch = silent,
) -> Best:
    """Train a binder in place, and return the best score on `valid`, and when that was.

    With a `run` that holds a checkpoint, continues from there, to the same weights as if it had never stopped.
    Raises DataError, ConfigError or RunError. On Ctrl-C it finishes the step, writes a checkpoint, leaves the best
    weights so far in the binder and raises Stopped.
    With other ranks (see distributed) the result is the same: each takes a part of every batch, the first one writes.
    """
    paths = {name: tower.linear for name, tower in binder.towers.items() if tower.linear is not None}
    if settings.steps is None and not paths:
        settings = settings.model_copy(update={"steps": FROM_SCRATCH})
    check_trainable(data, objective, settings, binder)
    team = our_team()
    check_same(team, data, settings, seed)
    valid = scorable(valid, team)
    validated, written = team.any(valid is not None), team.any(run is not None)
    run = run if team.leads else None

    kin = team.from_leader(lambda: kinship(data)) if objective.takes_groups else None

    kept = KeptFeatures.of(paths, data)
    validation = Validation(binder, valid) if paths and valid is not None else valid

    def read(rows: np.ndarray) -> Batch:  # of all ranks' rows, this one's
        mine = team.part(len(rows))
        return with_groups(with_features(data.batch(rows, mine), kept, rows[mine]), kin)

    with frozen(binder, objective.frozen), Journal(run, watch if team.leads else silent, settings) as journal:
        state = fresh_state(binder, objective, data, settings, seed, team, run)
        if (saved := team.from_leader(journal.last_checkpoint)) is not None:
            state.restore(*saved)
            check_length(state.step, settings.most_steps)
        journal.start(-1 if saved is None else state.step)  # without a checkpoint the line of step 0 comes again, too
        if validated and paths and state.step == 0:
            journal.log(0, validate_and_keep(state, validation, team))
        with stop_on_signal(at_once=team.size == 1) as stopped, ReadAhead(state.sampler, read) as batches:
            while not settings.stops(state.step, state.best.step):
                batch = team.level(state.modules["towers"].prepare(next(batches)))
                loss, norm = advance(state, batch, settings, seed, team)
                journal.watch(state.step, loss=state.finite.loss)
                # Asked once: what stops below must be saved above.
                stop = team.any(stopped())
                last = state.step == settings.most_steps or stop
                log = written and (last or settings.is_due("log", state.step))
                score = validated and settings.is_due("validate", state.step)
                keep = written and (last or settings.is_due("checkpoint", state.step))
                if last or log or score or keep:
                    state.finite.look()  # nothing is written of steps that nobody has looked at
                if (broken := state.finite.broken) is not None:
                    rows = state.finite.rows[broken]
                    raw, ids = with_groups(data.batch(rows), kin), data.ids[rows]
                    whole = whole_modules(binder, state.modules)
                    again = partial(nonfinite_step, whole, raw, ids, settings, seed=seed, step=broken, run=run)
                    raise team.agreed(team.from_leader(again))
                record = measured(state, loss, norm) | {"seconds": journal.seconds} if log else {}
                if score:
                    record |= validate_and_keep(state, validation, team)
                journal.log(state.step, record)
                if keep:
                    tensors, rest = state.snapshot(batches.state())
                    journal.checkpoint(for_leader(tensors, team), rest)
                if stop and not settings.stops(state.step, state.best.step):
                    finish(binder, state, settings, team)
                    early = team.agreed(stopped_early(state.step, settings.most_steps, run))
                    early.binder = binder
                    raise early
        finish(binder, state, settings, team)
    if run is not None:
        save(binder, run.path / "binder.safetensors")
    return state.best


def check_trainable(data: Samples, objective: Objective, settings: TrainConfig, binder: Binder) -> None:
    """Say before the first step what would go wrong in it."""
    if len(data.modalities) < 2:
        raise DataError(f"binding needs at least two modalities, got {list(data.modalities)}")
    positives = int(positives_of(objective, data).sum())
    if positives < max(2, objective.least):
        raise DataError(
            f"only {positives} of {len(data)} training samples have {objective.positive}, so there is nothing for "
            f"{type(objective).__name__} to learn from, expected 2 or more; check with `centrobind inspect` that the "
            "samples of the modalities belong together"
        )
    if objective.needs_views and view_strength(settings, binder, objective) == 0:
        raise ConfigError("this objective compares each sample with an augmented view: train.augment must be above 0")


def positives_of(objective: Objective, data: Samples) -> np.ndarray:
    """(N,) bool: the samples that the objective learns from; all others are negatives only."""
    return objective.positives(torch.from_numpy(data.present), data.modalities).numpy()


def with_groups(batch: Batch, kin: np.ndarray | None) -> Batch:
    """The batch, and which of its samples are one thing; None where all stand alone."""
    groups = None if kin is None else kin[batch.all_ids]
    return batch if groups is None or len(np.unique(groups)) == len(groups) else replace(batch, groups=groups)


def scorable(valid: Samples | None, team: Team) -> Samples | None:
    """A fixed sample of the validation samples; None (and a warning) if no score can be computed from them."""
    if valid is None or has_pairs(valid):
        return None if valid is None else fixed_sample(valid)
    if team.leads:
        warnings.warn(
            f"none of the {len(valid)} validation samples has two modalities, so nothing can be scored: training "
            "ends with its last weights; choose other validation samples",
            CentrobindWarning,
            stacklevel=3,
        )
    return None


def check_same(team: Team, data: Samples, settings: TrainConfig, seed: int) -> None:
    """RunError if another rank has other data, another seed or other settings."""
    present = dict(zip(data.modalities, data.present.sum(1).tolist()))
    team.check_same({"samples with": present, "seed": seed, **settings.model_dump()})


def fresh_state(
    binder: Binder,
    objective: Objective,
    data: Samples,
    settings: TrainConfig,
    seed: int,
    team: Team,
    run: RunFolder | None,
) -> TrainingState:
    """The state before the first step: the leader's weights on every rank, divided among them if settings say so."""
    team.spread(nn.ModuleDict({"towers": binder, "objective": objective}))
    towers = shard(binder, team) if settings.shard and team.size > 1 else binder
    modules = nn.ModuleDict({"towers": towers.train(), "objective": objective})
    batch_size = settings.batch_size or min(DEFAULT_BATCH, len(data))
    sampler = Sampler(len(data), batch_size, seed, positives=positives_of(objective, data), least=objective.least)
    optimizer, device = make_optimizer(modules, settings), binder.device
    finite = FiniteSteps(optimizer, device, look_every(device, divided=towers is not binder))
    return TrainingState(modules, optimizer, sampler, Best(run), identity(data), finite)


def advance(state: TrainingState, batch: Batch, settings: TrainConfig, seed: int, team: Team) -> tuple[Loss, Tensor]:
    """One step: its loss, and the length of its gradient, (). Nothing changes if either is not finite."""
    set_lr(state.optimizer, settings.lr * schedule(state.step, settings))
    sure = state.finite.every > 1  # the batch was drawn to have positives; where it has none, its loss is not finite
    loss = differentiate(state.modules, batch, settings, seed=seed, step=state.step, team=team, sure=sure).loss
    norm = clip(state.modules.parameters(), settings.max_grad_norm)
    if state.finite.note(state.step, loss.total.detach(), norm, batch.all_ids):
        state.optimizer.step()
        state.modules["objective"].bound()
        if settings.average > 0:
            state.average(settings.average)
    state.step += 1
    return loss, norm


def measured(state: TrainingState, loss: Loss, norm: Tensor) -> dict[str, float]:
    """What is logged of a step."""
    rate = state.optimizer.param_groups[0]["lr"]
    return {"loss": loss.total.item(), "lr": rate, "gradient": norm.item(), **loss.parts}


def validate(binder: Binder, valid: Samples) -> dict[str, float]:
    """Mean and worst-pair retrieval on the validation samples."""
    scores = retrieval(binder.embed(valid), precision=False)
    recall = {"mean/recall@1": scores.mean.recall[1], "worst/recall@1": scores.worst.recall[1]}
    return {"mean/mrr": scores.mean.mrr, **recall}


def validate_and_keep(state: TrainingState, valid: Samples | Validation | None, team: Team) -> dict[str, float]:
    """The validation scores, for the log (empty but on the leader); weights better than all before are kept."""
    with state.averages():
        towers = state.modules["towers"]
        # Towers that are divided need all ranks to embed anything; else the leader does.
        scores, better = {}, False
        if team.leads or any(map(is_divided, towers.parameters())):
            scores, better = compare_with_best(state, valid)
        state.best.step, state.best.amount = team.from_leader(lambda: (state.best.step, state.best.amount))
        if team.any(team.leads and better):
            weights = for_leader(towers.state_dict(), team)
            if team.leads:
                state.best.keep(towers, weights)
    return {f"valid/{key}": value for key, value in scores.items()}


def compare_with_best(state: TrainingState, valid: Samples | Validation | None) -> tuple[dict[str, float], bool]:
    """The scores now, and whether they are above all before.

    What was learned beside linear paths must beat these by more than the error of the difference: the best of many
    looks at few samples is good by luck too.
    """
    towers, best = state.modules["towers"], state.best
    if not isinstance(valid, Validation):
        scores = validate(towers, valid)
        return scores, best.improves(scores["mean/mrr"], state.step)
    look = valid.look(towers)
    best.start = look.start
    if look.sure:
        better = best.improves(look.score, state.step, look.amount)
    else:
        better = best.step is None and best.improves(look.start, state.step, 0.0)
    return look.numbers | {"amount": look.amount, "start": look.start}, better


def finish(binder: Binder, state: TrainingState, settings: TrainConfig, team: Team) -> None:
    """Leave the weights that the run ends with in the binder, whole and on every rank."""
    if state.averaged is not None:
        copy_into(dict(state.modules["towers"].named_parameters()), state.averaged)
    whole_modules(binder, state.modules)
    if settings.keep == "best" and state.best.step is not None and team.leads:
        state.best.put_back(binder)
        shrink(binder, state.best.amount)
    team.spread(binder)
    binder.eval()


@torch.no_grad()
def shrink(binder: Binder, amount: float) -> None:
    """Keep only so much of what was learned beside linear paths."""
    for tower in binder.towers.values():
        if tower.linear is not None:
            tower.head.weight.mul_(amount)


def whole_modules(binder: Binder, modules: nn.ModuleDict) -> nn.ModuleDict:
    """The modules with towers that are not divided: the binder, with the weights that they have now."""
    if modules["towers"] is not binder:
        put_together(binder, modules["towers"])
    return nn.ModuleDict({"towers": binder, "objective": modules["objective"]})


def check_length(done: int, steps: int) -> None:
    """CheckpointError if a checkpoint has more steps than the run is to have."""
    if done > steps:
        raise CheckpointError(
            f"the checkpoint has done {done} steps and the run is to have {steps}: expected at least {done}; set "
            "train.steps, or start over with --force"
        )


def stopped_early(step: int, steps: int, run: RunFolder | None) -> Stopped:
    """What ends a run that was asked to stop."""
    where = "" if run is None else f"; continue with --resume, the checkpoint is in {run.path}"
    return Stopped(f"stopped after step {step} of {steps}{where}")


@contextmanager
def frozen(binder: Binder, modalities: Sequence[str]) -> Iterator[None]:
    """Inside, the towers of these modalities stay what they are."""
    for name in modalities:
        binder.towers[name].requires_grad_(False)
    try:
        yield
    finally:
        for name in modalities:
            binder.towers[name].requires_grad_(True)


@contextmanager
def stop_on_signal(at_once: bool = True) -> Iterator[Any]:
    """Ctrl-C or SIGTERM asks the loop to stop after this step; a second one stops it at once.

    Not so with other ranks (`at_once` False): torchrun passes every signal on, so that one Ctrl-C comes twice.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: Any) -> None:
        if at_once and asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
