"""What the rest of a run depends on, in one object that can be written down and put back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from centrobind.binder.binder import Binder
from centrobind.binder.checkpoint import TOWERS, binder_tensors, read_tensors, write_tensors
from centrobind.data import Sampler, difference
from centrobind.errors import CheckpointError
from centrobind.training.finite import FiniteSteps
from centrobind.training.run_folder import RunFolder
from centrobind.training.shard import load_whole, part_of

BEST = ("score", "step", "amount", "start")  # what of Best is in a checkpoint


class Best:
    """The best validation score so far, and the weights that had it: in the run's folder, or in memory."""

    def __init__(self, run: RunFolder | None = None) -> None:
        self.run = run
        self.score = -math.inf
        self.step: int | None = None
        self.amount = 1.0  # of what was learned beside linear paths (see validation)
        self.start: float | None = None  # the score of the linear paths alone
        self.weights: dict[str, Tensor] | None = None

    def improves(self, score: float, step: int, amount: float = 1.0) -> bool:
        """Whether this score is above all before; if so, it is remembered. One that is not finite never is."""
        if not (math.isfinite(score) and score > self.score):
            return False
        self.score, self.step, self.amount = score, step, amount
        return True

    def keep(self, binder: Binder, weights: dict[str, Tensor]) -> None:
        """Keep the weights that had the score, as they are now."""
        if self.run is None:
            self.weights = {name: value.clone() for name, value in weights.items()}
        else:
            tensors = {TOWERS + name: value for name, value in weights.items()}
            write_tensors(self.run.path / "best.safetensors", tensors, {"binder": binder.describe()})

    def put_back(self, binder: Binder) -> None:
        """Give a binder the weights kept last."""
        if self.run is None:
            weights = self.weights
        else:
            tensors, _ = read_tensors(self.run.path / "best.safetensors", prefix=TOWERS)
            weights = {name.removeprefix(TOWERS): value for name, value in tensors.items()}
        binder.load_state_dict(weights)


@dataclass
class TrainingState:
    """The state of a run after `step` steps. Restored from its snapshot, it continues to the same weights."""

    modules: nn.ModuleDict  # "towers", a Binder, and "objective"
    optimizer: torch.optim.Optimizer
    sampler: Sampler
    best: Best
    data: Mapping[str, Any]  # which data it is trained on, see identity
    finite: FiniteSteps
    step: int = 0
    averaged: dict[str, Tensor] | None = None  # of what is trained in the towers, by name

    def average(self, decay: float) -> None:
        """Let the averaged weights follow the present ones; from the first step on, over as many as there were."""
        share = 1 - min(decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            trained = {name: value for name, value in self.modules["towers"].named_parameters() if value.requires_grad}
            if self.averaged is None:
                self.averaged = {name: value.detach().clone() for name, value in trained.items()}
            for name, value in trained.items():
                self.averaged[name].lerp_(value.detach(), share)

    @contextmanager
    def averages(self) -> Iterator[None]:
        """Inside, the towers have their averaged weights, if there are any."""
        if self.averaged is None:
            yield
            return
        parameters = dict(self.modules["towers"].named_parameters())
        present = {name: parameters[name].detach().clone() for name in self.averaged}
        try:
            copy_into(parameters, self.averaged)
            yield
        finally:
            copy_into(parameters, present)

    def snapshot(self, place: Mapping[str, int]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything as tensors and JSON; `place` is the sampler's state, which may itself have read ahead."""
        names = {value: name for name, value in self.modules.named_parameters()}
        tensors = binder_tensors(self.modules["towers"])
        tensors |= {f"objective/{name}": value for name, value in self.modules["objective"].state_dict().items()}
        tensors |= {f"averaged/{name}": value for name, value in (self.averaged or {}).items()}
        for parameter, moments in self.optimizer.state.items():
            tensors |= {f"optimizer/{names[parameter]}/{key}": value for key, value in moments.items()}
        state = {
            "step": self.step,
            "sampler": dict(place),
            "best": {name: getattr(self.best, name) for name in BEST} if self.best.step is not None else None,
            "binder": self.modules["towers"].describe(),
            "data": dict(self.data),
        }
        return tensors, state

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Put a snapshot back; CheckpointError if it is of other data, another binder or no run that can have been."""
        parts: dict[str, dict[str, Tensor]] = {"towers": {}, "objective": {}, "optimizer": {}, "averaged": {}}
        try:
            self._check(state)
            for name, value in tensors.items():
                part, _, rest = name.partition("/")
                parts[part][rest] = value
            for name in ("towers", "objective"):
                load_whole(self.modules[name], parts[name])
            for name, parameter in self.modules.named_parameters():
                self._restore_moments(name, parameter, parts["optimizer"])
            self.sampler.load_state(state["sampler"])
            self._restore_averages(parts["averaged"])
            for name, value in (state["best"] or {}).items():
                setattr(self.best, name, value)
            self.step = state["step"]
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint belongs to a run with other data or settings ({error})") from None

    def _check(self, state: Mapping[str, Any]) -> None:
        """ValueError if the state is not one that this run can have had."""
        step, best = state["step"], state["best"]
        if type(step) is not int or step < 0:
            raise ValueError(f"step {step!r}")
        if best is not None:
            if type(best["step"]) is not int or not 0 <= best["step"] <= step:
                raise ValueError(f"best step {best['step']!r} of {step}")
            if unknown := best.keys() - set(BEST):
                raise ValueError(f"best has {sorted(unknown)}")
            if type(best["score"]) is not float or not math.isfinite(best["score"]):
                raise ValueError(f"best score {best['score']!r}")
        # Written before 0.2, a checkpoint does not say which data it is of.
        if differs := difference(state["data"], self.data) if "data" in state else "":
            raise ValueError(f"the data: {differs}")
        if differs := described_difference(state["binder"], self.modules["towers"].describe()):
            raise ValueError(differs)
        if state["sampler"] != self.sampler.place_after(step):
            raise ValueError(f"{state['sampler']} is not where its sampler is after step {step}")

    def _restore_averages(self, tensors: Mapping[str, Tensor]) -> None:
        """The averaged weights, if the run has any."""
        if tensors:
            parameters = dict(self.modules["towers"].named_parameters())
            self.averaged = {
                name: part_of(value.to(parameters[name].device), like=parameters[name])
                for name, value in tensors.items()
            }

    def _restore_moments(self, name: str, parameter: nn.Parameter, tensors: Mapping[str, Tensor]) -> None:
        """AdamW's state of one parameter, if it has one: a parameter without a gradient has none."""
        moments = {key.rpartition("/")[2]: value for key, value in tensors.items() if key.startswith(name + "/")}
        if not moments:
            return
        like = {key: (value.shape, value.dtype) for key, value in moments.items() if key != "step"}
        if like != dict.fromkeys(("exp_avg", "exp_avg_sq"), (parameter.shape, parameter.dtype)):
            raise ValueError(f"the optimizer's state of {name} is not AdamW's")
        if moments["step"].shape != () or moments["step"].dtype != torch.float32:
            raise ValueError(f"the optimizer's step of {name} is no number")
        self.optimizer.state[parameter] = {
            key: value.to(parameter.device) if key == "step" else part_of(value.to(parameter.device), like=parameter)
            for key, value in moments.items()
        }


def described_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two descriptions of binders (Binder.describe), in words; nothing if they are the same."""
    now = json.loads(json.dumps(now))
    if before["dim"] != now["dim"]:
        return f"dim {before['dim']} then, {now['dim']} now"
    if before["towers"].keys() != now["towers"].keys():
        return f"modalities {list(before['towers'])} then, {list(now['towers'])} now"
    for name, tower in now["towers"].items():
        then = before["towers"][name]
        for key in sorted(then.keys() | tower.keys()):
            if then.get(key) != tower.get(key):
                both = "other words then" if key == "words" else f"{then.get(key)!r} then, {tower.get(key)!r} now"
                return f"{key} of the tower of {name!r}: {both}"
    return ""


@torch.no_grad()
def copy_into(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Overwrite those that are named."""
    for name, value in values.items():
        parameters[name].copy_(value)
