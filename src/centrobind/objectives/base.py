"""What every objective is: (Embeddings, views) -> loss and its named parts. Plain nn.Modules, for anyone's own loop.

loss = CentroBind(temperature=0.2)
out = loss({"image": z1, "audio": z2}, views={"image": v1, "audio": v2}, present={"audio": has_audio})
out.total.backward()
out.parts["leak"]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from centrobind.errors import ConfigError, DataError
from centrobind.types import Embeddings

LOWEST, HIGHEST = 0.003, 10.0  # temperatures: exp(1/0.003) is the last that float32 sums of 100,000 terms can hold


_sure: ContextVar[bool] = ContextVar("sure", default=False)


@contextmanager
def sure_of_positives(sure: bool = True) -> Iterator[None]:
    """Inside, objectives do not ask whether a batch has a positive, because the answer would wait for a GPU.

    A batch that has none after all then has a loss that is not finite.
    """
    before = _sure.set(sure)
    try:
        yield
    finally:
        _sure.reset(before)


def is_sure() -> bool:
    """Whether a batch is known to have a positive."""
    return _sure.get()


@dataclass(frozen=True)
class Loss:
    """What an objective returns: `total` to differentiate, `parts` to look at.

    `measure` should hold no graph, and no copy of the embeddings (Embeddings.later): what it holds lives as long as the
    loss, which in a loop is through the next forward pass.
    """

    total: Tensor  # () in nats
    measure: Callable[[], dict[str, float]] = field(repr=False)

    @cached_property
    def parts(self) -> dict[str, float]:
        """Named parts, computed without gradients when first asked for, because some cost more than the loss.

        `<modality>/to_anchor`, `<modality>/from_anchor`: InfoNCE each way. `intra`: InfoNCE of each modality with
        its own view, `inter`: with the views of the others, means over modalities and pairs, in nats, at the
        objective's temperature. `leak`: the share of the positive similarity that a modality contributes to its
        own anchor, 0 = none, 1 = nothing else. `temperature`.
        """
        with torch.no_grad():
            return self.measure()


class Temperature(nn.Module):
    """The number that similarities are divided by, fixed or learned on a log scale.

    A learned one is bounded by `bound()`, which the training loop calls after each step. Clamping inside
    forward, as CLIP code does, gives a zero gradient beyond the bound, from where it never comes back.
    """

    def __init__(self, value: float, learn: bool):
        super().__init__()
        if not LOWEST <= value <= HIGHEST:
            raise ConfigError(f"temperature must lie between {LOWEST} and {HIGHEST} (it divides), got {value}")
        log = torch.tensor([math.log(value)])  # shape [1], not []: FSDP2 shards no scalars
        self.lost = math.log(value) - log.item()  # in rounding to float32
        self.log = nn.Parameter(log, requires_grad=learn)

    def forward(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(1,); for a loss in float64 the number that was asked for, not what float32 keeps of its logarithm."""
        if dtype != torch.float64:
            return self.log.exp()
        return (self.log.double() + self.lost).exp()

    def extra_repr(self) -> str:
        return f"{self.log.exp().item():.4g}{', learned' if self.log.requires_grad else ''}"

    @torch.no_grad()
    def bound(self) -> None:
        self.log.clamp_(math.log(LOWEST), math.log(HIGHEST))


class Objective(nn.Module):
    """What the training loop expects of an objective; nobody instantiates this one."""

    frozen: tuple[str, ...] = ()  # modalities whose towers the loop leaves as they are
    needs_views = False  # whether it cannot do without augmented views
    takes_groups = False  # whether it can leave out negatives
    memory: int | None = None  # bytes a comparison may hold to compute less again; by default 48 MiB, on a GPU 1 GiB
    least = 1  # positives without which there is nothing to learn from in a batch
    positive = "two modalities"  # what a sample must have to be a positive, in words

    def __init__(self, temperature: float, learn_temperature: bool):
        super().__init__()
        self.temperature = Temperature(temperature, learn_temperature)

    def forward(
        self,
        z: Embeddings | Mapping[str, Tensor],
        *,
        views: Embeddings | Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
        groups: Tensor | None = None,
    ) -> Loss:
        """`z`: a (batch, dim) tensor per modality; `views`: the same of augmented inputs (default: z itself);
        `present`: an (N,) bool tensor for each modality that has gaps; `groups`: (N,) integers, samples of one group
        (duplicates, takes of one recording) are no negatives of each other.

        Raises DataError when shapes or names differ, no sample has anything to be aligned with, or the objective
        knows no groups.
        """
        z = Embeddings.of(z, present, finite=False)
        views = None if views is None else Embeddings.of(views, present, finite=False)
        if len(z.modalities) < 2:
            raise DataError(f"binding needs at least two modalities, got {list(z.modalities)}")
        if views is None and self.needs_views:
            raise DataError("this objective compares z with augmented views of it: pass views=")
        if views is not None and (views.modalities != z.modalities or views.z.shape != z.z.shape):
            raise DataError(
                f"views must have the modalities and shape of z, {list(z.modalities)} {tuple(z.z.shape)}, "
                f"got {list(views.modalities)} {tuple(views.z.shape)}"
            )
        if groups is None:
            return self.compare(z, views)
        if not self.takes_groups:
            raise DataError(f"{type(self).__name__} knows no groups: pass groups=None, or use an objective of pairs")
        return self.compare(z, views, groups.to(z.z.device))

    def compare(self, z: Embeddings, views: Embeddings | None, groups: Tensor | None = None) -> Loss:
        """The loss of sound input; with `takes_groups`, `groups` comes as a third argument."""
        raise NotImplementedError

    def positives(self, present: Tensor, modalities: Sequence[str]) -> Tensor:
        """(N,) bool: the samples that are a positive somewhere, of (M, N) `present`; all others are negatives only.

        Training draws its batches so that each has `least` of them. DataError if these modalities cannot be bound.
        """
        return present.sum(0) >= 2

    def similarity(self, one: Tensor, others: Tensor) -> Tensor:
        """(N, K): how the objective itself scores N candidates (N, D) of one modality against K tuples (M - 1, K, D) of
        the others. By default, the similarity with the tuple's centroid."""
        return one @ others.mean(0).T

    def bound(self) -> None:
        """Keep learned numbers in their range; the training loop calls it after each step."""
        self.temperature.bound()
