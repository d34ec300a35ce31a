"""Arrays in, binder out: the one-call way, and the way a config goes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from torch import nn

from centrobind.binder.binder import Binder, build_binder
from centrobind.binder.checkpoint import load, read_tensors
from centrobind.data import Nan, Samples, as_samples, open_store, train_and_valid
from centrobind.data.builtin import DATASETS
from centrobind.devices import choose_device
from centrobind.distributed import team as our_team
from centrobind.errors import ConfigError, Stopped
from centrobind.objectives.base import Objective
from centrobind.progress import Watch, progress, silent
from centrobind.training.config import (
    FitConfig,
    RunConfig,
    TrainConfig,
    check,
    dump_config,
    load_config,
    make_objective,
)
from centrobind.training.loop import train as run_training
from centrobind.training.run_folder import RunFolder

OBJECTIVE = "objective/"  # prefix of what an objective learned, in a checkpoint of training


class TrainOptions(TypedDict, total=False):
    """The settings of TrainConfig as keywords, but those of a run's folder, of which `fit` has none."""

    steps: int
    batch_size: int | None
    chunk: int | None
    shard: bool
    lr: float
    warmup: float
    weight_decay: float
    max_grad_norm: float
    augment: float
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
    objective: str | Mapping[str, Any] | Objective = "leave_one_out",
    dim: int = 64,
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
    `objective`: a name from `centrobind.OBJECTIVES`, {"name": "fabind", "anchor": "image"}, or a module.
    `valid`: what to choose the best weights on, or which part of the data (of its train split, if it has one) to set
    aside for it; default a tenth.
    Settings of training are keywords (steps, batch_size, lr, augment, ...: see TrainOptions) or a whole
    `train=TrainConfig(...)`. Raises DataError or ConfigError, before the first step where it can; Ctrl-C raises
    Interrupted, a KeyboardInterrupt with the best weights so far: `except KeyboardInterrupt as stop: stop.binder`.
    """
    samples = as_samples(data, present=present, kinds=kinds, nan=nan)
    config = fit_settings(train, dict(settings), valid if isinstance(valid, float) else None)
    own = isinstance(objective, Objective)
    named = objective if isinstance(objective, Mapping) else {"name": objective}
    about = check(FitConfig, {"seed": seed, "dim": dim, "objective": None if own else named}, "fit")
    if valid is None or isinstance(valid, float):
        samples, held_out = train_and_valid(samples, valid=config.valid, seed=about.seed)
    else:
        known = {name: column.kind for name, column in samples.columns.items()}
        held_out = valid if isinstance(valid, Samples) else Samples.of(valid, kinds=known, nan=nan)
    module = objective if isinstance(objective, Objective) else make_objective(about.objective, samples.modalities)
    device = choose_device(config.device)
    binder = build_binder(samples, dim=about.dim, encoders=encoders, seed=about.seed).to(device)
    module = module.to(device)
    try:
        with progress("training", config.steps) if show_progress else nullcontext(silent) as watch:
            return run_training(binder, module, samples, held_out, config, seed=about.seed, watch=watch)
    except Stopped as stop:
        raise Interrupted(f"{stop}; the best weights so far are in `binder` of this exception", binder) from None


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
) -> Binder:
    """Carry a checked config out in its folder; see train for what can go wrong.

    `samples` saves opening `config.data` again when a caller has it open. With other ranks, only the first one
    writes to the folder.
    """
    team, device = our_team(), choose_device(config.train.device)
    samples = configured_samples(config, samples)
    learn, held_out = train_and_valid(samples, valid=config.train.valid, seed=config.seed)
    objective = make_objective(config.objective, samples.modalities).to(device)
    encoders = {name: about.encoder_spec() for name, about in (config.modalities or {}).items()}
    binder = build_binder(learn, dim=config.dim, encoders=encoders, seed=config.seed).to(device)
    if config.init is not None:
        start_from(binder, config.init)

    opened: list[RunFolder] = []  # by the leader only
    team.from_leader(lambda: opened.append(RunFolder(config.out, resume=resume, replace=replace_run)))
    with opened[0] if opened else nullcontext() as run:
        team.from_leader(lambda: opened[0].write_config(dump_config(config), same=resume))
        return run_training(binder, objective, learn, held_out, config.train, seed=config.seed, run=run, watch=watch)


def run_objective(run: str | Path, binder: Binder) -> Objective | None:
    """What a run was trained with, its learned temperature or weights included; None for a lone binder file.

    Raises ConfigError or CheckpointError if the folder is damaged.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        return None
    objective = make_objective(load_config(run / "config.yaml").objective, binder.modalities)
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


def start_from(binder: Binder, path: str | Path) -> None:
    """Copy the towers of a trained binder, as far as both have them; ConfigError if none fits."""
    trained = load(path)
    shared = [name for name in binder.modalities if name in trained.towers]
    if not shared:
        raise ConfigError(f"init {path}: none of its modalities {trained.modalities} is in {binder.modalities}")
    for name in shared:
        try:
            before, now = trained.describe()["towers"][name], binder.describe()["towers"][name]
            if differ := [key for key in ("kind", "encoder", "model", "words") if before.get(key) != now.get(key)]:
                raise ConfigError(
                    f"init {path}: the tower of {name!r} differs in {differ} from the one to be trained, so that its "
                    "weights would mean something else; expected the same data and encoder"
                )
            binder.towers[name].load_state_dict(trained.towers[name].state_dict())
            binder.towers[name].inputs.seen = getattr(trained.towers[name].inputs, "seen", {})
        except RuntimeError as error:
            raise ConfigError(f"init {path}: the tower of {name!r} has another shape ({error})") from None
