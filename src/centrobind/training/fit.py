"""Arrays in, binder out: the one-call way, and the way a config goes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from torch import nn

from centrobind.binder.binder import Binder
from centrobind.binder.checkpoint import read_tensors
from centrobind.data import Nan, Samples, as_samples, open_store, train_and_valid
from centrobind.data.builtin import DATASETS
from centrobind.distributed import team as our_team
from centrobind.errors import ConfigError, Stopped
from centrobind.objectives.base import Objective
from centrobind.progress import Watch, progress, silent
from centrobind.training.config import (
    FitConfig,
    RunConfig,
    Start,
    TrainConfig,
    check,
    dump_config,
    load_config,
    make_objective,
)
from centrobind.training.recipe import Plan, bind, default_objective
from centrobind.training.run_folder import RunFolder

OBJECTIVE = "objective/"  # prefix of what an objective learned, in a checkpoint of training


class TrainOptions(TypedDict, total=False):
    """The settings of TrainConfig as keywords, but those of a run's folder, of which `fit` has none."""

    steps: int | None
    batch_size: int | None
    chunk: int | None
    shard: bool
    lr: float
    warmup: float
    weight_decay: float
    max_grad_norm: float
    augment: float | None
    average: float
    device: str
    precision: Literal["auto", "fp32", "bf16"]
    validate_every: int | None
    keep: Literal["best", "last"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM in `fit`: `binder` has the best weights until then (without validation, the last)."""

    def __init__(self, message: str, binder: Binder):
        super().__init__(message)
        self.binder = binder


def fit(
    data: Samples | Mapping[str, Any],
    *,
    objective: str | Mapping[str, Any] | Objective = "auto",
    start: Start = "auto",
    dim: int | None = None,
    present: Mapping[str, Any] | None = None,
    kinds: Mapping[str, str] | None = None,
    nan: Nan = "error",
    encoders: Mapping[str, str | Mapping[str, Any] | nn.Module] | None = None,
    valid: Samples | Mapping[str, Any] | float | None = None,
    seed: int = 0,
    show_progress: bool = True,
    train: TrainConfig | None = None,
    **settings: Unpack[TrainOptions],
) -> Binder:
    """Train a binder on paired data: one array or list per modality, row i the same thing everywhere.

    `data`: arrays (N, ...), frames, tensors, texts, or lists with None where a modality is missing (or bool
    `present[m]`, or NaN throughout with `nan="missing"`); see Samples.of.
    `start`: "closed_form" (what "auto" takes) finds the dynamic anchor by linear algebra, and trains from there as long
    as that helps; "scratch" trains fresh encoders, and "unimodal" first each for itself.
    `objective`: a name from `centrobind.OBJECTIVES`, {"name": "fabind", "anchor": "image"}, or a module.
    `dim`: of the space; default what the closed form chooses, 64 without one.
    `valid`: what to choose the best weights on, or which part of the data (of its train split, if it has one) to set
    aside for it; default a sixth, which is learned from in the end where training stops by itself.
    Settings of training are keywords (steps, batch_size, lr, augment, ...: see TrainOptions) or a whole
    `train=TrainConfig(...)`. Raises DataError or ConfigError, before the first step where it can; Ctrl-C raises
    Interrupted, a KeyboardInterrupt with the best weights so far: `except KeyboardInterrupt as stop: stop.binder`.
    """
    samples = as_samples(data, present=present, kinds=kinds, nan=nan)
    config = fit_settings(train, dict(settings), valid if isinstance(valid, float) else None)
    about, make = fit_objective(objective, {"seed": seed, "dim": dim, "start": start})
    if valid is None or isinstance(valid, float):
        learn, held_out = train_and_valid(samples, valid=config.share, seed=about.seed)
        whole = learning(samples)
    else:
        learn = whole = samples
        known = {name: column.kind for name, column in samples.columns.items()}
        held_out = valid if isinstance(valid, Samples) else Samples.of(valid, kinds=known, nan=nan)
    plan = Plan(
        learn,
        held_out,
        whole,
        lambda: make(learn.modalities),
        about.start,
        config,
        about.seed,
        about.dim,
        encoders,
        fit_temperature=objective == "auto",
    )
    try:
        with progress("training", config.most_steps) if show_progress else nullcontext(silent) as watch:
            return bind(plan, watch=watch, say=partial(print, file=sys.stderr) if show_progress else silent_line)
    except Stopped as stop:
        if stop.binder is None:
            raise
        message = f"{stop}; the best weights so far are in `binder` of this exception"
        assert isinstance(stop.binder, Binder)
        raise Interrupted(message, stop.binder) from None


def silent_line(line: str) -> None:
    """Says nothing."""


def fit_objective(
    objective: str | Mapping[str, Any] | Objective, values: Mapping[str, Any]
) -> tuple[FitConfig, Callable[[Sequence[str]], Objective]]:
    """The checked values, and what makes the objective for some modalities."""
    if isinstance(objective, Objective):
        own = objective
        return check(FitConfig, values, "fit"), lambda modalities: own
    if objective == "auto":
        return check(FitConfig, values, "fit"), lambda modalities: default_objective()
    named = objective if isinstance(objective, Mapping) else {"name": objective}
    about = check(FitConfig, {**values, "objective": named}, "fit")
    return about, lambda modalities: make_objective(about.objective, modalities)


def learning(samples: Samples) -> Samples:
    """All that may be learned from in the end: the train and valid splits, or everything where there are no splits."""
    if samples.split is None:
        return samples
    names = [name for name in ("train", "valid") if name in samples.split.names]
    return samples.take(np.sort(np.concatenate([samples.split.where(name) for name in names])))


def fit_settings(train: TrainConfig | None, keywords: Mapping[str, Any], valid: float | None) -> TrainConfig:
    """The settings that `fit` was given, one way or the other; ConfigError if both."""
    given = dict(keywords) if valid is None else {**keywords, "valid": valid}
    if train is None:
        return check(TrainConfig, given, "fit")
    if given:
        raise ConfigError(f"fit: expected settings either in train= or as keywords, got train= and {sorted(given)}")
    if not isinstance(train, TrainConfig):
        raise ConfigError(f"fit: train= expects a TrainConfig, got {type(train).__name__}")
    return train


def run_config(
    config: RunConfig,
    samples: Samples | None = None,
    *,
    resume: bool = False,
    replace_run: bool = False,
    watch: Watch = silent,
    say: Callable[[str], None] = silent_line,
) -> Binder:
    """Carry a checked config out in its folder; see train for what can go wrong.

    `samples` saves opening `config.data` again when a caller has it open. With other ranks, only the first one
    writes to the folder.
    """
    team = our_team()
    samples = configured_samples(config, samples)
    learn, held_out = train_and_valid(samples, valid=config.train.share, seed=config.seed)
    encoders = {name: about.encoder_spec() for name, about in (config.modalities or {}).items()}

    plan = Plan(
        learn,
        held_out,
        learning(samples),
        lambda: configured_objective(config, learn.modalities),
        config.start,
        config.train,
        config.seed,
        config.dim,
        encoders,
        fit_temperature=config.objective is None,
        init=config.init,
    )
    opened: list[RunFolder] = []  # by the leader only
    team.from_leader(lambda: opened.append(RunFolder(config.out, resume=resume, replace=replace_run)))
    with opened[0] if opened else nullcontext() as run:
        team.from_leader(lambda: opened[0].write_config(dump_config(config), same=resume))
        return bind(plan, run=run, watch=watch, say=say)


def configured_objective(config: RunConfig, modalities: Sequence[str]) -> Objective:
    """The objective that a config names, or the default."""
    return default_objective() if config.objective is None else make_objective(config.objective, modalities)


def run_objective(run: str | Path, binder: Binder) -> Objective | None:
    """What a run was trained with, its learned temperature or weights included; None for a lone binder file.

    Raises ConfigError or CheckpointError if the folder is damaged.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        return None
    objective = configured_objective(load_config(run / "config.yaml"), binder.modalities)
    if (last := run / "last.safetensors").is_file():
        tensors, _ = read_tensors(last, prefix=OBJECTIVE)
        objective.load_state_dict({name.removeprefix(OBJECTIVE): value for name, value in tensors.items()})
    return objective


def configured_samples(config: RunConfig, samples: Samples | None = None) -> Samples:
    """The data a config names (or these samples), in the modalities and kinds it asks for."""
    samples = open_data(config.data) if samples is None else samples
    if config.modalities is None:
        return samples
    samples = samples.only(list(config.modalities))
    columns = {}
    for name, about in config.modalities.items():
        column = samples.columns[name]
        if about.kind is not None and (about.kind == "text") != (column.kind == "text"):
            raise ConfigError(
                f"modalities.{name}.kind: the values are {column.kind}, they cannot be read as {about.kind}"
            )
        columns[name] = column if about.kind is None else replace(column, kind=about.kind)
    return replace(samples, columns=columns)


def open_data(name: str | Path) -> Samples:
    """A store by its folder, or a built-in data set by its name."""
    if str(name) in DATASETS and not Path(name).exists():
        return DATASETS[str(name)]()
    return open_store(name)
