"""The default: the dynamic anchor in closed form, then what can be learned beside it, as long as that helps.

everything   the closed form, its settings by cross-validation
five sixths  the same closed form without the rest, trained from there with looks at the rest: for how many steps,
             and how much of it to keep
everything   trained for as many epochs, without looking
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from centrobind.binder.binder import Binder, build_binder
from centrobind.binder.checkpoint import load, save
from centrobind.binder.inputs import refuse_nonfinite
from centrobind.binder.linear import linear_path
from centrobind.closed_form.bind import ClosedForm, fit_closed_form
from centrobind.data import Samples
from centrobind.devices import choose_device
from centrobind.errors import ConfigError
from centrobind.objectives.anchored import AllPairs
from centrobind.objectives.base import Objective
from centrobind.objectives.table import Unimodal
from centrobind.progress import Watch, silent
from centrobind.training.config import Start, TrainConfig
from centrobind.training.loop import DEFAULT_BATCH, optimise, shrink, train
from centrobind.training.run_folder import RunFolder
from centrobind.training.state import Best
from centrobind.training.step import differentiate

LOOKS = "looks"  # folder inside a run's
AVERAGE = 0.97
LEAST_DIM = 64  # fewer would leave nothing to learn in
TEMPERATURES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2)
FITTED_ON = 512  # samples: a batch or two

Encoders = Mapping[str, str | Mapping[str, Any] | nn.Module]


def default_objective() -> Objective:
    """What is trained from the closed form unless another objective is asked for; see docs/default.md."""
    return AllPairs(learn_temperature=True)


def closed_binder(
    closed: ClosedForm, samples: Samples, *, dim: int | None, encoders: Encoders | None, seed: int
) -> Binder:
    """A binder that is this closed form, with fresh encoders beside it. `dim`: default what the closed form chose."""
    wide = dim or max(closed.choice.settings.dim, LEAST_DIM)
    linear = {name: linear_path(closed, name, column, wide) for name, column in samples.columns.items()}
    return build_binder(samples, dim=wide, encoders=encoders, seed=seed, linear=linear)


def fit_temperature(objective: Objective, binder: Binder, samples: Samples) -> None:
    """Start the objective at the temperature that fits the binder as it is: at another, the first steps only undo."""
    few = samples.take(np.linspace(0, len(samples) - 1, min(len(samples), FITTED_ON)).astype(np.int64))
    space = binder.embed(few)
    if not (space.present.sum(0) >= 2).any():
        return
    losses = {}
    for temperature in TEMPERATURES:
        with torch.no_grad():
            objective.temperature.log.fill_(float(np.log(temperature)))
            losses[temperature] = objective(space).total.item()
    objective.temperature.log.data.fill_(float(np.log(min(losses, key=losses.__getitem__))))


@dataclass(frozen=True)
class Plan:
    """What is to be bound, from where, and how."""

    learn: Samples
    held_out: Samples
    whole: Samples  # both, to learn from in the end; `learn` where the rest may not be learned from
    make_objective: Callable[[], Objective]
    start: Start
    settings: TrainConfig
    seed: int = 0
    dim: int | None = None
    encoders: Encoders | None = None
    fit_temperature: bool = False  # to the closed form, before the first step
    init: str | None = None  # a binder whose towers it starts from

    @property
    def from_closed_form(self) -> bool:
        """Whether "auto", too, means that: not after another binder, and not where modalities stay for themselves."""
        if self.init is not None and self.start != "auto":
            raise ConfigError(
                f"init: starts from another binder, and start: {self.start} from elsewhere; leave one out"
            )
        if self.start != "auto":
            return self.start == "closed_form"
        return self.init is None and not isinstance(self.make_objective(), Unimodal)


def bind(
    plan: Plan, *, run: RunFolder | None = None, watch: Watch = silent, say: Callable[[str], None] = lambda line: None
) -> Binder:
    """Carry a plan out; `say` is called with lines for people. Raises as `train` does.

    With a `run`, the looks are in its folder `looks`, and training goes on where it was in either.
    """
    if not plan.from_closed_form:
        return from_scratch(plan, run=run, watch=watch)
    for name, column in plan.learn.columns.items():
        refuse_nonfinite(name, column, plan.learn.ids)
    if plan.settings.steps is not None:
        closed = fit_closed_form(plan.learn, dim=plan.dim, seed=plan.seed)
        binder, objective = begin(plan, closed, plan.learn)
        return train(binder, objective, plan.learn, plan.held_out, plan.settings, seed=plan.seed, run=run, watch=watch)
    return by_itself(plan, run=run, watch=watch, say=say)


def from_scratch(plan: Plan, *, run: RunFolder | None, watch: Watch) -> Binder:
    """Fresh encoders; with `unimodal`, each is first trained for itself, as in the paper."""
    device, learn = choose_device(plan.settings.device), plan.learn
    binder = build_binder(learn, dim=plan.dim or LEAST_DIM, encoders=plan.encoders, seed=plan.seed).to(device)
    if plan.init is not None:
        start_from(binder, plan.init)
    if plan.start == "unimodal":
        alone = plan.settings.model_copy(update={"keep": "last"})
        train(binder, Unimodal().to(device), learn, None, alone, seed=plan.seed, watch=watch)
    objective = plan.make_objective().to(device)
    return train(binder, objective, learn, plan.held_out, plan.settings, seed=plan.seed, run=run, watch=watch)


def begin(plan: Plan, closed: ClosedForm, samples: Samples) -> tuple[Binder, Objective]:
    """The closed form as a binder, and an objective that is at home there."""
    device = choose_device(plan.settings.device)
    binder = closed_binder(closed, samples, dim=plan.dim, encoders=plan.encoders, seed=plan.seed).to(device)
    objective = plan.make_objective().to(device)
    if plan.fit_temperature:
        fit_temperature(objective, binder, plan.held_out)
    return binder, objective


def by_itself(plan: Plan, *, run: RunFolder | None, watch: Watch, say: Callable[[str], None]) -> Binder:
    """The recipe at the top of this file."""
    began = time.monotonic()
    settings = plan.settings.model_copy(update={"average": plan.settings.average or AVERAGE})
    watch(0, "closed form")
    whole = fit_closed_form(plan.whole, dim=plan.dim, seed=plan.seed)
    known = {"settings": whole.choice.settings, "features": whole.features}
    part = fit_closed_form(plan.learn, dim=plan.dim, seed=plan.seed, **known)
    binder, objective = begin(plan, part, plan.learn)
    say(expected_time(binder, objective, plan, settings, time.monotonic() - began))
    looks = None if run is None else looks_folder(run)
    watch(0, "training")
    best = optimise(binder, objective, plan.learn, plan.held_out, settings, seed=plan.seed, run=looks, watch=watch)
    step, amount = best.step or 0, best.amount if best.step else 0.0
    if plan.whole is not plan.learn:
        binder, objective = begin(plan, whole, plan.whole)
        steps = round(step * len(plan.whole) / len(plan.learn))
        watch(0, "training on everything")
        again = settings.model_copy(update={"steps": steps, "keep": "last"})
        optimise(binder, objective, plan.whole, None, again, seed=plan.seed, run=run, watch=watch)
        shrink(binder, amount)
    if run is not None:
        save(binder, run.path / "binder.safetensors")
    for line in outcome(best, step, amount, time.monotonic() - began):
        say(line)
    return binder.eval()


def looks_folder(run: RunFolder) -> RunFolder:
    """The folder inside a run's that holds the training with looks: a run of its own, with the same config."""
    looks = RunFolder(run.path / LOOKS, resume=True)
    looks.write_config((run.path / "config.yaml").read_text(encoding="utf-8"), same=True)
    return looks


def expected_time(binder: Binder, objective: Objective, plan: Plan, settings: TrainConfig, seconds: float) -> str:
    """The line before the first step, from the time of one that changes nothing."""
    modules = torch.nn.ModuleDict({"towers": binder.train(), "objective": objective})
    rows = np.arange(min(settings.batch_size or DEFAULT_BATCH, len(plan.learn)))
    batch = binder.prepare(plan.learn.batch(rows))
    began = time.monotonic()
    differentiate(modules, batch, settings, seed=plan.seed, step=0)
    modules.zero_grad(set_to_none=True)
    most = 2 * settings.most_steps * (time.monotonic() - began)
    return (
        f"closed form in {seconds:.0f} s; training from it takes up to {most:.0f} s more, less where it does not help"
    )


def outcome(best: Best, step: int, amount: float, seconds: float) -> list[str]:
    """Three lines at the end."""
    start = best.start or 0.0
    gained = f"after training {best.score:.3f}, {amount:.0%} of what was learned kept"
    return [
        f"closed form: mean reciprocal rank {start:.3f} on samples held back",
        gained if step else f"warning: training did not help, the closed form is kept ({start:.3f})",
        f"stopped at step {step}; {seconds:.0f} s in all",
    ]


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
