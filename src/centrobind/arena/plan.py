"""What to compare on what, and how fairly: data sets, the search that all contenders share, and one trial of it."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from centrobind.arena.contenders import Contender
from centrobind.errors import ConfigError
from centrobind.extras import own_function
from centrobind.objectives.anchored import AnchorInfoNCE
from centrobind.objectives.base import Objective
from centrobind.training.config import ModalityConfig, RunConfig, Strict, TrainConfig, check_config, make_objective

LEARNED = "learned"


class SearchConfig(Strict):
    """The grid every objective is tuned on, by validation, before it meets the test split."""

    temperatures: tuple[float | Literal["learned"], ...] = (0.03, 0.05, 0.07, 0.1, 0.14, 0.2, "learned")
    lrs: tuple[float, ...] = (1e-3, 3e-3)
    seeds: int = Field(1, ge=1)


class DatasetConfig(Strict):
    """One data set: a built-in name, a store or a file that `centrobind import` reads."""

    path: str
    name: str | None = None
    modalities: dict[str, ModalityConfig] | None = None
    steps: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=2)

    @property
    def label(self) -> str:
        return self.name or Path(self.path).stem


class SettingConfig(Strict):
    """A setting that is known beforehand: its contender is not searched for."""

    objective: str
    anchor: str | None = None
    frozen: bool = False
    temperature: float | Literal["learned"]
    lr: float

    @property
    def contender(self) -> Contender:
        return Contender(self.objective, self.anchor, self.frozen)


class ArenaConfig(Strict):
    """A whole comparison; `centrobind compare arena.yaml` reads one."""

    data: list[str | DatasetConfig] = Field(min_length=1)
    out: str
    objectives: list[str] | Literal["all"] = "all"
    seeds: int = Field(5, ge=1)
    dim: int = Field(64, ge=2)
    steps: int = Field(300, ge=1)
    batch_size: int = Field(256, ge=2)
    augment: float = Field(1.0, ge=0, le=3)
    valid: float = Field(0.2, gt=0, lt=1, description="part of train to tune on; the same samples for all")
    start: Literal["unimodal", "scratch"] = Field("unimodal", description="where every encoder starts from")
    search: SearchConfig = SearchConfig()
    settings: tuple[SettingConfig, ...] = Field((), description="of contenders that need no search")
    seed: int = Field(0, ge=0, description="of the first final run; the others count on from it")
    keep: bool = Field(False, description="leave each final run in a folder of its own, to be used further")

    def known(self, contender: Contender) -> tuple[float | str, float] | None:
        """Temperature and learning rate of a contender that needs no search."""
        for setting in self.settings:
            if setting.contender == contender:
                return setting.temperature, setting.lr
        return None if contender.tuned else (0.1, 2e-3)

    def datasets(self) -> list[DatasetConfig]:
        listed = [DatasetConfig(path=one) if isinstance(one, str) else one for one in self.data]
        if len({one.label for one in listed}) != len(listed):
            raise ConfigError(f"data sets need distinct names, got {[one.label for one in listed]}")
        return listed


@dataclass(frozen=True)
class Trial:
    """One contender with one setting on one data set from one seed."""

    stage: Literal["start", "search", "final"]
    dataset: str
    objective: dict[str, Any]
    seed: int
    temperature: float | str
    lr: float
    steps: int
    batch_size: int
    dim: int
    augment: float
    valid: float
    start: str
    encoders: dict[str, Any]  # by modality, where they are not the default; other encoders are other trials
    keep: bool = False  # whether the run stays in a folder of its own

    @property
    def key(self) -> str:
        """The same for the same work, so that a sweep that was killed does nothing twice."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:20]

    @property
    def contender(self) -> Contender:
        return Contender.of(self.objective)

    @property
    def setting(self) -> tuple[float | str, float]:
        return self.temperature, self.lr

    @property
    def folder(self) -> str:
        """Where a run that stays is left, below the folder of the comparison."""
        who = re.sub(r"\W+", "_", self.contender.label.lower()).strip("_")
        return f"runs/{self.dataset}/{who}-{self.seed}"

    def run_config(self, data: str, out: Path) -> RunConfig:
        """What `centrobind train` would need to do the same, with the start that `out` has for it."""
        return check_config(
            {
                "data": data,
                "out": str(out / self.folder),
                "seed": self.seed,
                "dim": self.dim,
                "modalities": {name: spec or {} for name, spec in self.encoders.items()} or None,
                "objective": self.objective | temperature_options(self.temperature),
                "train": self.train_config().model_dump(),
                "init": str(self.beginning(out)) if self.start == "unimodal" else None,
            },
            self.contender.label,
        )

    def train_config(self) -> TrainConfig:
        return TrainConfig(
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
            augment=self.augment,
            keep="best" if self.contender.tuned else "last",
            valid=self.valid,
            validate_every=-(-self.steps // 5),
            checkpoint_every=self.steps,
            tensorboard=False,
        )

    def beginning(self, out: Path) -> Path:
        """The file with the unimodal towers that this seed starts from."""
        return out / "starts" / f"{self.dataset}-{self.seed}.safetensors"


def temperature_options(temperature: float | str) -> dict[str, Any]:
    learn = temperature == LEARNED
    return {"temperature": 0.07 if learn else temperature, "learn_temperature": learn}


def objective_of(trial: Trial, modalities: Sequence[str]) -> Objective:
    """The objective of a trial, with its temperature in it."""
    options = temperature_options(trial.temperature)
    if ":" in trial.objective["name"]:
        return own_objective(trial.objective["name"], options)
    values = {"data": "-", "out": "-", "objective": trial.objective | options}
    return make_objective(check_config(values, trial.contender.label).objective, modalities)


def own_objective(name: str, options: dict[str, Any]) -> Objective:
    """`path/to/file.py:function`: an anchor, or a constructor that takes temperature= and learn_temperature=."""
    function = own_function(name, called=f"objective {name}")
    if "temperature" not in inspect.signature(function).parameters:
        return AnchorInfoNCE(function, **options)
    objective = function(**options)
    if not isinstance(objective, Objective):
        raise ConfigError(f"objective {name}: expected it to return an Objective, got {type(objective).__name__}")
    return objective


def starts(config: ArenaConfig, dataset: DatasetConfig) -> Iterator[Trial]:
    """The unimodal runs that every contender starts from, one per seed."""
    if config.start == "unimodal":
        first = Contender("unimodal")
        seeds = {*range(config.search.seeds), *range(config.seed, config.seed + config.seeds)}
        for seed in sorted(seeds):
            yield _trial(config, dataset, "start", first, seed, *(config.known(first) or (0.1, 2e-3)))


def searches(config: ArenaConfig, dataset: DatasetConfig, contender: Contender) -> Iterator[Trial]:
    """The grid; empty for a contender whose setting is known."""
    if config.known(contender) is None:
        for temperature in config.search.temperatures:
            for lr in config.search.lrs:
                for seed in range(config.search.seeds):
                    yield _trial(config, dataset, "search", contender, seed, temperature, lr)


def finals(
    config: ArenaConfig, dataset: DatasetConfig, contender: Contender, chosen: tuple[float | str, float]
) -> Iterator[Trial]:
    for seed in range(config.seed, config.seed + config.seeds):
        yield _trial(config, dataset, "final", contender, seed, *chosen)


def _trial(
    config: ArenaConfig,
    dataset: DatasetConfig,
    stage: Literal["start", "search", "final"],
    contender: Contender,
    seed: int,
    temperature: float | str,
    lr: float,
) -> Trial:
    return Trial(
        stage=stage,
        dataset=dataset.label,
        objective=contender.objective,
        seed=seed,
        temperature=temperature,
        lr=lr,
        steps=dataset.steps or config.steps,
        batch_size=dataset.batch_size or config.batch_size,
        dim=config.dim,
        augment=config.augment,
        valid=config.valid,
        start="scratch" if stage == "start" else config.start,
        encoders={name: about.encoder_spec() for name, about in (dataset.modalities or {}).items()},
        keep=config.keep and stage == "final" and contender.kind != "own",  # a config cannot name own code
    )


def describe(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")
