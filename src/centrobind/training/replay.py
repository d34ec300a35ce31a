"""A step that is not finite: what in it is not, and everything it takes to do that step again elsewhere.

    RUN/nonfinite.safetensors    the weights before the step, the batch as the towers saw it, and all of the below
    RUN/nonfinite.json           step, seed, sample ids, settings and findings, for people

The bundle holds a batch of the data, so whoever gets it sees those samples; in return it needs nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from centrobind.binder.binder import Binder, rebuild_binder
from centrobind.binder.checkpoint import TOWERS, binder_tensors, read_tensors, write_tensors
from centrobind.errors import CentrobindError, CheckpointError, RunError
from centrobind.files import named, write_atomically
from centrobind.objectives.base import Objective
from centrobind.training.config import TrainConfig, check_config, make_objective
from centrobind.training.run_folder import RunFolder
from centrobind.training.step import differentiate
from centrobind.types import Batch, Embeddings

BUNDLE = "nonfinite"
DECISIVE = ("augment", "precision", "chunk")  # what of the settings a step depends on
SHOWN = 5  # sample ids in a message


@dataclass(frozen=True)
class Replayed:
    """A training step done again: its loss, the length of its gradient, and what is not finite, causes first."""

    step: int  # counted from 1, as in metrics.jsonl
    loss: float
    gradient: float
    found: list[str]


def nonfinite_step(
    modules: nn.ModuleDict,
    raw: Batch,
    ids: Sequence[str],
    settings: TrainConfig,
    *,
    seed: int,
    step: int,
    run: RunFolder | None = None,
) -> RunError:
    """The error that stops a run at this step, its bundle written to the run's folder if there is one.

    The step is done once more, by one process and with all its samples as they are stored (`raw`, by `ids`), from
    `modules` that it has not changed yet: where training looked only at the loss and the gradient, every value is
    looked at now.
    """
    binder, objective = modules["towers"], modules["objective"]
    batch = binder.prepare(raw)
    about = {"seed": seed, "step": step} | {name: getattr(settings, name) for name in DECISIVE}
    again = _do(modules, batch, ids, about)
    where = "" if run is None else f". `centrobind replay {run.path}` does this step again"
    if run is not None:
        config = run.path / "config.yaml"
        state = about | {
            "loss": str(again.loss),
            "gradient": str(again.gradient),
            "found": again.found,
            "ids": list(ids),
            "rows": batch.ids.tolist(),
            "modalities": list(batch.modalities),
            "binder": binder.describe(),
            "config": yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else None,
        }
        tensors = binder_tensors(binder)
        tensors |= {f"objective/{name}": value for name, value in objective.state_dict().items()}
        tensors |= {f"inputs/{name}": value for name, value in batch.inputs.items()} | {"present": batch.present}
        tensors |= {f"features/{name}": value for name, value in (batch.features or {}).items()}
        if batch.groups is not None:
            tensors["groups"] = torch.from_numpy(batch.groups)
        write_tensors(run.path / f"{BUNDLE}.safetensors", tensors, state)
        told = {key: value for key, value in state.items() if key != "binder"}
        write_atomically(run.path / f"{BUNDLE}.json", (json.dumps(told, indent=1) + "\n").encode())
    began = again.found[0] if again.found else "nothing that is there the second time"
    return RunError(
        f"step {step + 1} is not finite: loss {again.loss}, gradient {again.gradient}, samples {list(ids[:SHOWN])}"
        f"{', ...' if len(ids) > SHOWN else ''}. It began with {began}, and {max(0, len(again.found) - 1)} more things "
        f"that follow. Clean the data (`centrobind inspect`), or try a lower train.lr or a higher temperature{where}"
    )


def replay(
    run: str | Path, *, objective: Objective | None = None, encoders: Mapping[str, nn.Module] | None = None
) -> Replayed:
    """Do the step again that stopped a run because it was not finite, from the bundle in the run's folder.

    `objective` and `encoders` hand in what was made in Python and is in no config. Raises CheckpointError if there is
    no sound bundle.
    """
    path = named(run, CheckpointError)
    path = path / f"{BUNDLE}.safetensors" if path.is_dir() else path
    tensors, state = read_tensors(path)
    try:
        if objective is None:
            if state["config"] is None:
                raise CheckpointError(f"{path}: this run had no config; hand its objective in: replay(..., objective=)")
            objective = make_objective(check_config(state["config"], str(path)).objective, state["modalities"])
        binder = rebuild_binder(state["binder"], encoders)
        binder.load_state_dict(_part(tensors, TOWERS))
        objective.load_state_dict(_part(tensors, "objective/"))
        inputs = _part(tensors, "inputs/")
        ordered = {name: inputs[name] for name in state["modalities"]}
        groups = tensors["groups"].numpy() if "groups" in tensors else None
        features = _part(tensors, "features/")
        batch = Batch(ordered, tensors["present"], np.array(state["rows"]), groups=groups, features=features)
        modules = nn.ModuleDict({"towers": binder, "objective": objective}).train()
        return _do(modules, batch, state["ids"], state)
    except CentrobindError:
        raise
    except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a step that can be done again ({error})") from None


def _do(modules: nn.ModuleDict, batch: Batch, ids: Sequence[str], about: Mapping[str, Any]) -> Replayed:
    """The training step up to the optimizer."""
    settings = TrainConfig(**{name: about[name] for name in DECISIVE})
    made = differentiate(modules, batch, settings, seed=about["seed"], step=about["step"])
    binder, objective, views, loss = modules["towers"], modules["objective"], made.views, made.loss
    gradients = [value.grad for value in modules.parameters() if value.grad is not None]
    norm = nn.utils.get_total_norm(gradients).item()
    found = [
        *_bad_inputs(binder, batch, ids),
        *(f"weights of {name}" for name, part in _trained(binder, objective) if not _finite(part.parameters())),
        *_bad_embeddings("embeddings", made.z, ids),
        *(_bad_embeddings("views", views, ids) if views is not None else ()),
        *(f"part {name}" for name, value in loss.parts.items() if not np.isfinite(value)),
        *(
            f"gradient of {name}"
            for name, part in _trained(binder, objective)
            if not _finite(value.grad for value in part.parameters() if value.grad is not None)
        ),
    ]
    return Replayed(about["step"] + 1, loss.total.item(), norm, found)


def _bad_inputs(binder: Binder, batch: Batch, ids: Sequence[str]):
    for name, here in zip(batch.modalities, batch.present):
        bad = ~torch.isfinite(batch.inputs[name]).flatten(1).all(1)
        if bad.any():
            yield f"inputs of {name} (samples {_some(ids, here.cpu().nonzero()[:, 0][bad.cpu()])})"


def _bad_embeddings(what: str, embeddings: Embeddings, ids: Sequence[str]):
    for name, rows in zip(embeddings.modalities, embeddings.z):
        bad = ~torch.isfinite(rows).all(1)
        if bad.any():
            yield f"{what} of {name} (samples {_some(ids, bad.nonzero()[:, 0])})"


def _some(ids: Sequence[str], places: Tensor) -> str:
    picked = [ids[place] for place in places.tolist()]
    return ", ".join(map(repr, picked[:SHOWN])) + (f" and {len(picked) - SHOWN} more" if len(picked) > SHOWN else "")


def _trained(binder: Binder, objective: Objective) -> list[tuple[str, nn.Module]]:
    return [*binder.towers.items(), ("the objective", objective)]


def _finite(tensors: Any) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in tensors)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
