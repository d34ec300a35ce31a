"""The training loop. It reads from top to bottom, and every draw in it hangs on (seed, step) alone."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from centrobind.binder.binder import Binder
from centrobind.binder.checkpoint import TOWERS, binder_tensors, read_tensors, save, write_tensors
from centrobind.data import ReadAhead, Sampler, Samples
from centrobind.distributed import team as our_team
from centrobind.errors import CheckpointError, ConfigError, DataError, Stopped
from centrobind.evaluation.metrics import retrieval
from centrobind.objectives.base import Objective
from centrobind.progress import Watch, silent
from centrobind.training.config import TrainConfig
from centrobind.training.replay import nonfinite_step
from centrobind.training.run_folder import RunFolder
from centrobind.training.shard import clip, for_leader, load_whole, part_of, put_together, shard
from centrobind.training.step import differentiate
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

    With a `run` that holds a checkpoint, goes on from there, to the same weights as if it had never stopped.
    Raises DataError, ConfigError or RunError; on Ctrl-C it finishes the step, writes a checkpoint and stops.
    With other ranks (see ranks) the result is the same: each takes a part of every batch, the first one writes.
    """
    check_trainable(data, objective, settings)
    team = our_team()
    present = dict(zip(data.modalities, data.present.sum(1).tolist()))
    team.check_same({"samples with": present, "seed": seed, **settings.model_dump()})
    if not team.leads:
        run, watch = None, silent
    validated, written = team.any(valid is not None), team.any(run is not None)
    for name in objective.frozen:
        binder.towers[name].requires_grad_(False)
    team.spread(nn.ModuleDict({"towers": binder, "objective": objective}))
    divided = settings.shard and team.size > 1
    towers = shard(binder, team) if divided else binder
    modules = nn.ModuleDict({"towers": towers, "objective": objective})
    optimizer = make_optimizer(modules, settings)
    sampler = Sampler(len(data), settings.batch_size or min(DEFAULT_BATCH, len(data)), seed)
    start, best = 0, Best()
    saved = team.from_leader(lambda: None if run is None else run.read_last())
    if saved is not None:
        start = restore(modules, optimizer, sampler, best, *saved)
    if run is not None:
        run.forget_after(start)
    board = tensorboard_writer(run, settings)
    towers.train()
    began = time.monotonic()

    def read(rows: np.ndarray) -> Batch:  # of all ranks' rows, this one's
        return data.batch(rows, team.part(len(rows)))

    with stop_on_signal(at_once=team.size == 1) as stopped, ReadAhead(sampler, read) as batches:
        for step in range(start, settings.steps):
            set_lr(optimizer, settings.lr * schedule(step, settings))
            batch = team.level(binder.prepare(next(batches)))
            loss = differentiate(modules, batch, settings, seed=seed, step=step, team=team).loss
            norm = clip(modules.parameters(), settings.max_grad_norm)
            if not torch.isfinite(loss.total + norm):
                if divided:  # the leader does the step again alone
                    put_together(binder, towers)
                    modules = nn.ModuleDict({"towers": binder, "objective": objective})
                again = partial(nonfinite_step, modules, data, batch.all_ids, settings, seed=seed, step=step, run=run)
                raise team.agreed(team.from_leader(again))
            optimizer.step()
            objective.bound()

            done = step + 1
            watch(done, loss=loss.total.item())
            last = done == settings.steps or team.any(stopped())  # asked once: what stops below must be saved above
            record: dict[str, Any] = {}
            if done % settings.log_every == 0 or last:
                record |= {"loss": loss.total.item(), "lr": optimizer.param_groups[0]["lr"], "gradient": norm.item()}
                record |= loss.parts | {"seconds": round(time.monotonic() - began, 3)}
            if validated and (done % settings.every("validate") == 0 or done == settings.steps):
                # Towers that are divided need all ranks to embed anything; else the leader does.
                scores = validate(towers, valid) if divided or team.leads else {}
                record |= {f"valid/{key}": value for key, value in scores.items()}
                if team.any(team.leads and best.improves(scores["mean/mrr"], done)):
                    weights = for_leader(towers.state_dict(), team)
                    if team.leads:
                        best.keep(towers, weights, run)
            if record and run is not None:
                run.log({"step": done, **record})
                if board is not None:
                    for key, value in record.items():
                        board.add_scalar(key, value, done)
            if written and (done % settings.every("checkpoint") == 0 or last):
                tensors, state = snapshot(modules, optimizer, batches, best, done)
                tensors = for_leader(tensors, team)
                if run is not None:
                    run.write_last(tensors, state)
            if last and done < settings.steps:
                where = "" if run is None else f"; go on with --resume, the checkpoint is in {run.path}"
                raise team.agreed(Stopped(f"stopped after step {done} of {settings.steps}{where}"))

    if board is not None:
        board.close()
    if divided:
        put_together(binder, towers)
    if settings.keep == "best" and best.step is not None and team.leads:
        best.put_back(binder, run)
    team.spread(binder)
    for name in objective.frozen:
        binder.towers[name].requires_grad_(True)
    if run is not None:
        save(binder, run.path / "binder.safetensors")
    return binder.eval()


def check_trainable(data: Samples, objective: Objective, settings: TrainConfig) -> None:
    """Say before the first step what would go wrong in it."""
    if len(data.modalities) < 2:
        raise DataError(f"binding needs at least two modalities, got {list(data.modalities)}")
    together = int((data.present.sum(0) >= 2).sum())
    if together < 2:
        raise DataError(
            f"only {together} of {len(data)} training samples have two modalities present, so there is nothing to "
            "bind; check with `centrobind inspect` that the samples of the modalities belong together"
        )
    if objective.needs_views and settings.augment == 0:
        raise ConfigError("this objective compares each sample with an augmented view: train.augment must be above 0")


def make_optimizer(modules: nn.Module, settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW; only matrices decay, because pulling a bias, a norm's scale or a temperature to zero means nothing.

    A parameter with an `lr_scale`, such as a pretrained one, learns at that share of the rate.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for value in modules.parameters():
        if value.requires_grad:
            groups.setdefault((getattr(value, "lr_scale", 1.0), value.ndim >= 2), []).append(value)
    return torch.optim.AdamW(
        [
            {"params": values, "weight_decay": settings.weight_decay if matrices else 0.0, "scale": scale}
            for (scale, matrices), values in sorted(groups.items(), key=lambda item: item[0], reverse=True)
        ],
        lr=settings.lr,
    )


def schedule(step: int, settings: TrainConfig) -> float:
    """Between 0 and 1: a straight rise over the warmup, then half a cosine down."""
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.steps - warmup)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def validate(binder: Binder, valid: Samples) -> dict[str, float]:
    """Mean and worst-pair retrieval on the validation samples."""
    scores = retrieval(binder.embed(valid))
    return {key: scores[key] for key in ("mean/mrr", "mean/recall@1", "worst/recall@1")}


class Best:
    """The best validation score so far, and the weights that had it: in the run's folder, or in memory."""

    def __init__(self) -> None:
        self.score = -math.inf
        self.step: int | None = None
        self.weights: dict[str, Tensor] | None = None

    def improves(self, score: float, step: int) -> bool:
        if score <= self.score:
            return False
        self.score, self.step = score, step
        return True

    def keep(self, binder: Binder, weights: dict[str, Tensor], run: RunFolder | None) -> None:
        if run is None:
            self.weights = {name: value.clone() for name, value in weights.items()}
        else:
            tensors = {TOWERS + name: value for name, value in weights.items()}
            write_tensors(run.path / "best.safetensors", tensors, {"binder": binder.describe()})

    def put_back(self, binder: Binder, run: RunFolder | None) -> None:
        if run is None:
            binder.load_state_dict(self.weights)
        else:
            tensors, _ = read_tensors(run.path / "best.safetensors", prefix=TOWERS)
            binder.load_state_dict({name.removeprefix(TOWERS): value for name, value in tensors.items()})


def snapshot(
    modules: nn.ModuleDict, optimizer: torch.optim.Optimizer, batches: ReadAhead, best: Best, step: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that the rest of the run depends on, as tensors and JSON."""
    names = {value: name for name, value in modules.named_parameters()}
    tensors = binder_tensors(modules["towers"])
    tensors |= {f"objective/{name}": value for name, value in modules["objective"].state_dict().items()}
    for parameter, state in optimizer.state.items():
        tensors |= {f"optimizer/{names[parameter]}/{key}": value for key, value in state.items()}
    state = {
        "step": step,
        "sampler": batches.state(),
        "best": {"score": best.score, "step": best.step} if best.step is not None else None,
        "binder": modules["towers"].describe(),
    }
    return tensors, state


def restore(
    modules: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    sampler: Sampler,
    best: Best,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
) -> int:
    """Put a snapshot back and return its step; CheckpointError if it belongs to another run."""
    parts: dict[str, dict[str, Tensor]] = {"towers": {}, "objective": {}, "optimizer": {}}
    try:
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = value
        for name in ("towers", "objective"):
            load_whole(modules[name], parts[name])
        for name, parameter in modules.named_parameters():
            found = {
                key.rpartition("/")[2]: value for key, value in parts["optimizer"].items() if key.startswith(name + "/")
            }
            if found:
                like = {key: (value.shape, value.dtype) for key, value in found.items() if key != "step"}
                if like != dict.fromkeys(("exp_avg", "exp_avg_sq"), (parameter.shape, parameter.dtype)):
                    raise ValueError(f"the optimizer's state of {name} is not AdamW's")
                if found["step"].shape != () or found["step"].dtype != torch.float32:
                    raise ValueError(f"the optimizer's step of {name} is no number")
                optimizer.state[parameter] = {
                    key: value if key == "step" else part_of(value.to(parameter.device), like=parameter)
                    for key, value in found.items()
                }
        sampler.load_state(state["sampler"])
        if state["best"] is not None:
            best.score, best.step = state["best"]["score"], state["best"]["step"]
        if not isinstance(state["step"], int) or state["step"] < 0:
            raise ValueError(f"step {state['step']!r}")
        return state["step"]
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint belongs to a run with other data or settings ({error})") from None


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


def tensorboard_writer(run: RunFolder | None, settings: TrainConfig) -> Any:
    """A SummaryWriter if TensorBoard is installed and there is a folder to write to."""
    if run is None or not settings.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run.path / "tensorboard"))
