"""Several processes ("ranks") that train one binder. Alone, everything here is the identity and costs nothing.

Each rank draws its rows of the same batch, embeds them, and `gather`s the embeddings of all. From there on every rank
holds the numbers that one process would hold, so no objective hears of ranks. Every exchange has its true adjoint:
all-gather and reduce-scatter are each other's, a sum over ranks is its own. Hence the *mean* over ranks of the
parameters' gradients is the gradient of the one loss, whatever of it was computed once and whatever on all ranks
(the two common slips, no gradient through the gather and a factor of the number of ranks, are in docs/scale.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from centrobind.errors import CentrobindError, RunError, Stopped
from centrobind.types import Batch, Embeddings

Made = TypeVar("Made")
Fault = TypeVar("Fault", CentrobindError, Stopped)

DRAWS = 5056  # bytes of the state of torch's CPU generator
BUCKET = 2**23  # numbers a gradient exchange holds at a time, 32 MB: long enough to fill a link, short next to a model


@dataclass(frozen=True)
class Team:
    """The ranks that train together, as one of them sees it."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes, validates and reports."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this rank computes: on a GPU of its own, else on the CPU."""
        if torch.cuda.is_available() and (self.size == 1 or dist.get_backend() == "nccl"):
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def part(self, count: int) -> slice:
        """The rows of a batch that are this rank's: neighbours, as many as the others have or one more."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def parts(self, count: int) -> list[int]:
        """How many rows each rank has of so many."""
        return [count * (rank + 1) // self.size - count * rank // self.size for rank in range(self.size)]

    def level(self, prepared: Batch) -> Batch:
        """Texts padded as far as the longest on any rank: views of them are drawn for the whole batch."""
        numbers = [name for name, values in prepared.inputs.items() if not values.is_floating_point()]
        texts = [name for name in numbers if prepared.inputs[name].ndim == 2]
        if self.size == 1 or not texts:
            return prepared
        own = torch.tensor([prepared.inputs[name].shape[1] for name in texts], device=self.device)
        widths = self._reduce(own, dist.ReduceOp.MAX).tolist()
        padded = {
            name: F.pad(prepared.inputs[name], (0, width - prepared.inputs[name].shape[1]))
            for name, width in zip(texts, widths)
        }
        return replace(prepared, inputs={**prepared.inputs, **padded})

    def gather(
        self, z: Embeddings, views: Embeddings | None = None, *, ids: np.ndarray | None = None
    ) -> tuple[Embeddings, Embeddings | None]:
        """The embeddings of all ranks' samples, rank after rank, on every rank; gradients find their way back.

        The views of the same samples, if there are any, travel with them. `ids`: of the whole batch.
        """
        if self.size == 1:
            return z, views
        counts = self._counts(len(z)) if ids is None else self.parts(len(ids))
        present = torch.cat(self._collect(z.present.T.to(torch.uint8), counts)).T.bool()
        both = [z.z] if views is None else [z.z, views.z]
        rows = torch.stack(both).movedim(2, 0)  # the samples first: (n, 1 or 2, M, D)
        whole = [
            Embeddings(part, present, z.modalities, ids) for part in _gather_rows(rows, counts, self).movedim(0, 2)
        ]
        return whole[0], whole[1] if views is not None else None

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, on every rank, with gradient."""
        return value if self.size == 1 else _sum_over_ranks(value, self)

    def max(self, value: Tensor) -> Tensor:
        """The maximum over ranks, on every rank, without gradient."""
        return value if self.size == 1 else self._reduce(value.detach().clone(), dist.ReduceOp.MAX)

    @torch.no_grad()
    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over ranks; one that no rank has stays None, as for a single process."""
        trained = [value for value in parameters if value.requires_grad]
        if self.size == 1 or not trained:
            return
        own = torch.tensor([value.grad is not None for value in trained], device=trained[0].device)
        anywhere = self._reduce(own.to(torch.uint8), dist.ReduceOp.MAX).tolist()
        for bucket in _buckets([value for value, there in zip(trained, anywhere) if there]):
            sizes = [value.numel() for value in bucket]
            flat = torch.cat([(torch.zeros_like(v) if v.grad is None else v.grad).reshape(-1) for v in bucket])
            mean = self._reduce(flat, dist.ReduceOp.SUM).div_(self.size)
            for value, part in zip(bucket, mean.split(sizes)):
                value.grad = part.view_as(value).clone()

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank; the same answer on all of them."""
        if self.size == 1:
            return flag
        flags = torch.tensor([flag], dtype=torch.uint8, device=self.device)
        return bool(self._reduce(flags, dist.ReduceOp.MAX).item())

    @torch.no_grad()
    def spread(self, module: nn.Module) -> None:
        """Give every rank the leader's parameters and buffers."""
        if self.size > 1:
            for value in module.state_dict().values():
                self._broadcast(value)

    def from_leader(self, make: Callable[[], Made]) -> Made:
        """What `make` returns on the leader, on every rank; if it raises one of our errors there, they all do."""
        if self.size == 1:
            return make()
        sent: list[Any] = [None, None]
        if self.leads:
            try:
                sent[0] = make()
            except CentrobindError as error:
                sent[1] = error
        with self._answering():
            dist.broadcast_object_list(sent, src=0)
        value: Made = sent[0]
        if sent[1] is not None:
            raise self.agreed(sent[1])
        return value

    def agreed(self, error: Fault) -> Fault:
        """An error that every rank raises: the leader's word is enough."""
        error.said = not self.leads
        return error

    def check_same(self, what: Mapping[str, Any]) -> None:
        """RunError on every rank if they do not agree: other data, other settings, another version."""
        if self.size == 1:
            return
        found: list[Any] = [None] * self.size
        with self._answering():
            dist.all_gather_object(found, dict(what))
        for rank, theirs in enumerate(found):
            if differ := [key for key in found[0] if theirs.get(key) != found[0][key]]:
                here, there = ({key: about.get(key) for key in differ} for about in (found[0], theirs))
                raise self.agreed(
                    RunError(f"the ranks do not run the same: rank 0 has {here}, rank {rank} has {there}")
                )

    @contextmanager
    def dividing(self) -> Iterator[None]:
        """Inside, comparisons of gathered embeddings are divided among the ranks, each its rows against all columns.

        Random draws inside are the leader's on every rank, whatever an encoder of one's own drew before.
        """
        if self.size > 1:
            torch.set_rng_state(self._broadcast(torch.get_rng_state()))
            if torch.cuda.is_available():
                torch.cuda.set_rng_state(self._broadcast(torch.cuda.get_rng_state()))
        before = _dividing.set(self)
        try:
            yield
        finally:
            _dividing.reset(before)

    # ---- the only four ways in which anything is exchanged while training; docs/scale.md counts their bytes ----------

    def _reduce(self, value: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
        with self._answering():
            dist.all_reduce(value, how)
        return value

    def _collect(self, rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Each rank's (its count, ...) rows; they travel padded to the largest count, which every backend can do."""
        padded = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, max(counts) - len(rows))).contiguous()
        found = [torch.empty_like(padded) for _ in counts]
        with self._answering():
            dist.all_gather(found, padded)
        return [part[:count] for part, count in zip(found, counts)]

    def _scatter_sum(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The sum over ranks of this rank's rows: _collect backwards."""
        most = max(counts)
        parts = [
            F.pad(part, (0, 0) * (rows.ndim - 1) + (0, most - len(part))).contiguous() for part in rows.split(counts)
        ]
        own = torch.empty_like(parts[0])
        with self._answering():
            dist.reduce_scatter(own, parts)
        return own[: counts[self.rank]]

    def _broadcast(self, value: Tensor) -> Tensor:
        travelling = value.to(self.device).contiguous()
        with self._answering():
            dist.broadcast(travelling, src=0)
        value.copy_(travelling)
        return value

    def _counts(self, count: int) -> list[int]:
        found: list[Any] = [None] * self.size
        with self._answering():
            dist.all_gather_object(found, count)
        return found

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RunError(
                f"another rank stopped, so this one cannot go on ({str(error).splitlines()[0][:200]}); "
                "what went wrong is in the other's message"
            ) from None


ALONE = Team()
_team = ALONE
_dividing: ContextVar[Team] = ContextVar("dividing", default=ALONE)
_place: ContextVar[tuple[int, int] | None] = ContextVar("place", default=None)


def team() -> Team:
    """The ranks this process trains with: those it has `joined`, or nobody."""
    return _team


def dividing() -> Team:
    """The ranks among which a comparison is to be divided; ALONE unless inside `Team.dividing`."""
    return _dividing.get()


@contextmanager
def joined(minutes: float = 30) -> Iterator[Team]:
    """Train together with the processes that torchrun started, or those of a process group that is already there.

    Gloo on CPUs, nccl on GPUs, one GPU per rank (LOCAL_RANK). Without torchrun there is nobody to join, which is fine.
    A rank that does not answer for so many `minutes` ends the run; one that dies does so at once. Raises RunError.
    """
    global _team
    ours = not dist.is_initialized()
    if ours and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if ours:
        backend = "gloo"
        if torch.cuda.is_available():
            local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if local >= gpus:
                raise RunError(
                    f"rank {os.environ.get('RANK')} has no GPU of its own: LOCAL_RANK is {local} and there are {gpus}; "
                    f"use --nproc-per-node {gpus}, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
                )
            torch.cuda.set_device(local)
            backend = "nccl"
        try:
            dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
        except (RuntimeError, ValueError) as error:
            raise RunError(f"could not join the other ranks ({error}); start them with torchrun") from None
    before, _team = _team, Team(dist.get_rank(), dist.get_world_size())
    whole = False
    try:
        yield _team
        whole = True
    finally:
        _team = before
        if ours and (whole or dist.get_backend() == "gloo"):  # nccl would wait for the ranks that are gone
            dist.destroy_process_group()


def gather(embeddings: Embeddings) -> Embeddings:
    """Embeddings of all ranks' samples, for training loops of one's own: `loss(gather(z))`, then DDP's mean is exact.

    Without a process group, the embeddings as they are.
    """
    if not dist.is_initialized():
        return embeddings
    return Team(dist.get_rank(), dist.get_world_size()).gather(embeddings)[0]


@contextmanager
def placed(place: tuple[int, int] | None) -> Iterator[None]:
    """Inside, the rows at hand are rows first, first + 1, ... of so many: `place` is (first, how many in all)."""
    before = _place.set(place)
    try:
        yield
    finally:
        _place.reset(before)


def drawn_for_all(rows: int, draw: Callable[[int], Tensor], axis: int = 0) -> Tensor:
    """`draw(n)` for all n rows of the whole batch, of which these rows keep theirs along `axis`.

    So a sample gets the same random numbers on any number of ranks. Seeding each sample instead would spare drawing
    for the others, but slows down a single process, where torch draws a whole batch at once.
    """
    place = _place.get()
    return draw(rows) if place is None else draw(place[1]).narrow(axis, place[0], rows)


def bytes_per_step(
    *,
    ranks: int,
    modalities: int,
    samples: int,
    dim: int,
    parameters: int,
    comparisons: int | None = None,
    sums: int = 1,
    views: bool = True,
    tensors: int = 0,
    texts: int = 0,
) -> dict[str, float]:
    """Bytes that each rank sends in a step of training, in float32, by what they carry.

    `samples`: of the whole batch. `parameters`: numbers that are trained, in so many `tensors`. `comparisons`: InfoNCE
    terms that are divided, M by default, M (M - 1) for all_pairs, 1 or with views 2 for pmrl. `sums`: numbers for each
    of their columns, 1 where vectors are compared, 2 for gram and triangle, 0 for symile, which goes one way only.
    `texts`: modalities of text. Every exchange runs around a ring (Patarasuk and Yuan 2009): of n bytes on each rank,
    an all-gather sends (K - 1) n, a reduce-scatter (K - 1) / K n, an all-reduce both of these on n / K, a broadcast n.
    """
    share, both = (ranks - 1) / ranks, 2 if views else 1
    rows = -(-samples // ranks)  # everybody sends as many as the rank that has most
    comparisons = modalities if comparisons is None else comparisons
    columns = comparisons * (8 * sums * samples + 16) + (8 if sums == 1 else 0)
    few = 8 * texts + tensors + 1  # widths of texts, which gradients there are, whether to stop
    return {
        "embeddings": 2 * (ranks - 1) * rows * both * modalities * dim * 4,  # there, and their gradients back
        "columns": 2 * share * columns,
        "parameters": 2 * share * 4 * parameters,
        "rest": (ranks - 1) * rows * modalities + 2 * share * few + DRAWS,
    }


class _Gather(torch.autograd.Function):
    """Rows of all ranks, (n, ...) -> (N, ...)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int], team: Team) -> Tensor:
        ctx.counts, ctx.team = counts, team
        return torch.cat(team._collect(rows, counts))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.team._scatter_sum(gradient, ctx.counts), None, None


_gather_rows: Callable[[Tensor, Sequence[int], Team], Tensor] = _Gather.apply


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, team: Team) -> Tensor:
        ctx.team = team
        return team._reduce(value.clone(), dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.team._reduce(gradient.clone(), dist.ReduceOp.SUM), None


_sum_over_ranks: Callable[[Tensor, Team], Tensor] = _Sum.apply


def _buckets(values: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one type, together up to BUCKET numbers (or a single larger one)."""
    bucket: list[nn.Parameter] = []
    for value in values:
        if bucket and (value.dtype != bucket[0].dtype or sum(v.numel() for v in bucket) + value.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(value)
    if bucket:
        yield bucket
