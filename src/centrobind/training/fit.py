"""Arrays in, binder out: the one-call way, and the way a config goes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from centrobind.binder.binder import Binder, build_binder
from centrobind.binder.checkpoint import load, read_tensors
from centrobind.data import Samples, open_store, train_and_valid
from centrobind.data.builtin import DATASETS
from centrobind.distributed import team as our_team
from centrobind.errors import ConfigError
from centrobind.objectives.base import Objective
from centrobind.progress import Watch, progress, silent
from centrobind.training.config import RunConfig, check_config, dump_config, load_config, make_objective
from centrobind.training.loop import train
from centrobind.training.run_folder import RunFolder

OBJECTIVE = "objective/"  # prefix of what an objective learned, in a checkpoint of training


def fit(
    data: Samples | Mapping[str, Any],
    *,
    objective: str | Mapping[str, Any] | Objective = "leave_one_out",
    dim: int = 64,
    present: Mapping[str, Any] | None = None,
    kinds: Mapping[str, str] | None = None,
    encoders: Mapping[str, str | Mapping[str, Any] | nn.Module] | None = None,
    valid: Samples | Mapping[str, Any] | None = None,
    steps: int = 1000,
    batch_size: int | None = None,
    lr: float = 2e-3,
    augment: float = 1.0,
    seed: int = 0,
    show_progress: bool = True,
) -> Binder:
    """Train a binder on paired data: one array or list per modality, row i the same thing everywhere.

    `data`: arrays (N, ...), strings, or lists with None where a modality is missing (or bool `present[m]`).
    `objective`: a name from `centrobind.OBJECTIVES`, {"name": "fabind", "anchor": "image"}, or a module.
    `valid`: what to choose the best weights on; default a tenth of the data (of its train split, if it has one).
    `augment`: strength of the augmented views, 0 = none. For all settings there are, use a YAML and `centrobind
    train`. Raises DataError or ConfigError, before the first step where it can.
    """
    samples = Samples.of(data, present=present, kinds=kinds)
    asked = objective if not isinstance(objective, str) else {"name": objective}
    config = check_config(
        {
            "data": "-",
            "out": "-",
            "seed": seed,
            "dim": dim,
            "objective": {"name": "all_pairs"} if isinstance(objective, Objective) else asked,
            "train": {"steps": steps, "batch_size": batch_size, "lr": lr, "augment": augment},
        },
        "fit",
    )
    if valid is None:
        samples, held_out = train_and_valid(samples, valid=config.train.valid, seed=seed)
    else:
        held_out = Samples.of(valid, kinds={name: column.kind for name, column in samples.columns.items()})
    if not isinstance(objective, Objective):
        objective = make_objective(config.objective, samples.modalities)
    binder = build_binder(samples, dim=dim, encoders=encoders, seed=seed)
    with progress("training", steps) if show_progress else nullcontext(silent) as watch:
        return train(binder, objective, samples, held_out, config.train, seed=seed, watch=watch)


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
    team = our_team()
    samples = configured_samples(config, samples)
    learn, held_out = train_and_valid(samples, valid=config.train.valid, seed=config.seed)
    objective = make_objective(config.objective, samples.modalities).to(team.device)
    encoders = {name: about.encoder_spec() for name, about in (config.modalities or {}).items()}
    binder = build_binder(learn, dim=config.dim, encoders=encoders, seed=config.seed).to(team.device)
    if config.init is not None:
        start_from(binder, config.init)

    def open_folder() -> RunFolder:
        run = RunFolder(config.out, resume=resume, replace=replace_run)
        run.write_config(dump_config(config), same=resume)
        return run

    run = team.from_leader(open_folder)
    return train(binder, objective, learn, held_out, config.train, seed=config.seed, run=run, watch=watch)


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
            binder.towers[name].load_state_dict(trained.towers[name].state_dict())
        except RuntimeError as error:
            raise ConfigError(f"init {path}: the tower of {name!r} has another shape ({error})") from None
