"""The losses that benchmarks compare, ours and others', and the shapes they are compared at."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from centrobind.objectives import tiles
from centrobind.objectives.dense_infonce import dense_infonce
from centrobind.objectives.infonce import infonce
from centrobind.types import unit

TEMPERATURE = 0.07
DISTURBED = 0.04  # the share of the cores that other processes may take from a call
LONG_ENOUGH_S = 0.5  # of a call, for /proc's clock, which ticks every 10 ms, to tell

Shape = tuple[int, int, int]  # modalities, samples, dimensions
Work = Callable[[Tensor, Tensor], Tensor]  # (M, N, D) queries and keys to a loss ()
TARGET: Shape = (4, 8192, 256)
SAMPLES = (1024, 2048, 4096, 8192, 16384, 32768)
LINES = ((4, 256), (3, 256), (8, 256), (4, 768), (3, 768), (8, 768))  # modalities, dimensions


@dataclass(frozen=True)
class Contender:
    """`sees`: "nothing"; "terms", M queries each with its own key; "pairs", all pairs of the M queries; "both", all
    pairs with the negatives of both modalities. `lines`: of LINES, how many; 0 for TARGET alone."""

    make: Callable[[], Work | Callable[[Tensor, Tensor], Bare]]
    sees: str = "terms"
    lines: int = 0
    quadratic: bool = True  # memory, by samples
    says: str = ""
    half: bool = False


def of_terms(**options) -> Work:
    """The mean over modalities of symmetric InfoNCE between queries and keys."""

    def loss(query: Tensor, key: Tensor) -> Tensor:
        there = everyone(query, True) if options.get("gaps") else None
        temperature = torch.tensor([options.get("temperature", TEMPERATURE)], requires_grad=options.get("learn", False))
        return infonce(query, key, there, there, temperature, memory=options.get("memory")).means.mean()

    return loss


def dense_terms(query: Tensor, key: Tensor) -> Tensor:
    there, pairs = everyone(query, False), [(m, m) for m in range(len(query))]
    return dense_infonce(query, key, there, there, torch.tensor([TEMPERATURE]), pairs=pairs).mean() / query.shape[1]


def everyone(z: Tensor, gaps: bool) -> Tensor:
    """(M, N) bool; with gaps every fifth sample lacks a modality, each time another one."""
    present = torch.ones(z.shape[:2], dtype=torch.bool)
    if gaps:
        rows = torch.arange(0, z.shape[1], 5)
        present[(rows // 5) % len(z), rows] = False
    return present


def fused_pairs(query: Tensor, key: Tensor) -> Tensor:
    pairs = list(itertools.combinations(range(len(query)), 2))
    return infonce(query, query, None, None, torch.tensor([TEMPERATURE]), pairs=pairs).means.mean()


def over_pairs(of_two: Callable[[Tensor, Tensor], Tensor]) -> Work:
    def loss(query: Tensor, key: Tensor) -> Tensor:
        return torch.stack([of_two(one, other) for one, other in itertools.combinations(query, 2)]).mean()

    return loss


def open_clip_form(one: Tensor, other: Tensor) -> Tensor:
    """ClipLoss on one rank: two products, two cross entropies."""
    labels, scale = torch.arange(len(one)), 1 / TEMPERATURE
    return (F.cross_entropy(scale * one @ other.T, labels) + F.cross_entropy(scale * other @ one.T, labels)) / 2


def lightly_form(one: Tensor, other: Tensor) -> Tensor:
    """NTXentLoss: each of 2N rows against the 2N - 1 others."""
    both = F.normalize(torch.cat([one, other]), dim=1)
    logits = (both @ both.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(both)).roll(len(one)))


def sentence_transformers() -> Work:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    two_ways = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    theirs = MultipleNegativesRankingLoss(None, scale=1 / TEMPERATURE, **two_ways)
    return over_pairs(lambda one, other: theirs.compute_loss_from_embeddings([one, other], None))


def metric_learning() -> Work:
    """Their SupConLoss, which is NT-Xent where a row has one positive; their NTXentLoss holds (2N, 4N^2) numbers."""
    from pytorch_metric_learning.losses import SelfSupervisedLoss, SupConLoss

    return over_pairs(SelfSupervisedLoss(SupConLoss(temperature=TEMPERATURE)))


def symile() -> Work:
    from symile import Symile

    theirs = Symile("n")
    return lambda query, key: theirs(list(query), 1 / TEMPERATURE)


class Bare:
    """The three multiplications of each tile, and nothing else: not even new memory for what they give.

    With `again` the forward product twice, as it must be by whoever does not keep it."""

    def __init__(self, query: Tensor, key: Tensor, again: bool = False):
        self.again = again
        self.query, self.key = query.detach(), key.detach()
        self.d_query, self.d_key = torch.zeros_like(self.query), torch.zeros_like(self.key)

    def __call__(self) -> None:
        rows, cols = tiles.TILES["cpu"]
        buffer = torch.empty(rows * cols)
        for q, k, d_q, d_k in zip(self.query, self.key, self.d_query, self.d_key):
            for own, d_own in zip(q.split(rows), d_q.split(rows)):
                for other, d_other in zip(k.split(cols), d_k.split(cols)):
                    s = buffer[: len(own) * len(other)].view(len(own), len(other))
                    for _ in range(1 + self.again):
                        torch.mm(own, other.T, out=s)
                    d_own.addmm_(s, other)
                    d_other.addmm_(s.T, own)


CONTENDERS: dict[str, Contender] = {
    "bare multiplies": Contender(lambda: Bare, "nothing", 6, False, says="6 M N² d operations, nothing else"),
    "bare, matrix made twice": Contender(
        lambda: partial(Bare, again=True), "nothing", quadratic=False, says="8 M N² d operations, nothing else"
    ),
    "fused": Contender(of_terms, lines=6, quadratic=False, says="M terms"),
    "dense": Contender(lambda: dense_terms, lines=4, says="M terms, one matrix each"),
    "fused, all pairs": Contender(lambda: fused_pairs, "pairs", 1, False, "M(M-1)/2 terms"),
    "open_clip form": Contender(lambda: over_pairs(open_clip_form), "pairs", 4, says="ClipLoss of all pairs, our text"),
    "sentence-transformers": Contender(
        sentence_transformers, "pairs", 1, says="MultipleNegativesRankingLoss, both ways"
    ),
    "lightly form": Contender(lambda: over_pairs(lightly_form), "both", 1, says="NTXentLoss of all pairs, our text"),
    "pytorch-metric-learning": Contender(metric_learning, "both", 1, says="SupConLoss of all pairs"),
    "symile": Contender(symile, "joint", 1, says="Symile('n'): M terms, one way, shuffled negatives"),
    "fused, learned temperature": Contender(lambda: of_terms(learn=True), quadratic=False),
    "fused, gaps": Contender(lambda: of_terms(gaps=True), quadratic=False),
    "fused, bfloat16": Contender(of_terms, quadratic=False, half=True),
    "fused, temperature 0.005": Contender(lambda: of_terms(temperature=0.005), quadratic=False),
}


def inputs(shape: Shape, half: bool = False) -> tuple[Tensor, Tensor]:
    """Unit queries and keys, (M, N, D), a third of each in common."""
    draw = torch.Generator().manual_seed(0)
    common, *own = (torch.randn(*size, generator=draw) for size in (shape[1:], shape, shape))
    dtype = torch.bfloat16 if half else torch.float32
    return tuple(unit(common + 1.4 * part).to(dtype).requires_grad_() for part in own)


def call_of(name: str, shape: Shape) -> tuple[Callable[[], object], int]:
    """One forward and backward, and the bytes of gradients it leaves. ImportError where a peer is not installed."""
    about = CONTENDERS[name]
    work = about.make()
    query, key = inputs(shape, about.half)
    if about.sees == "nothing":
        return work(query, key), 0

    def call() -> None:
        query.grad = key.grad = None
        work(query, key).backward()

    left = query.numel() * query.element_size()
    return call, 2 * left if about.sees == "terms" else left


def wanted(shape: Shape) -> list[str]:
    """Who runs with this shape."""
    line = LINES.index((shape[0], shape[2])) if (shape[0], shape[2]) in LINES else 0
    return [name for name, about in CONTENDERS.items() if line < about.lines or shape == TARGET]


def key_of(name: str, shape: Shape) -> str:
    return f"{name} {'x'.join(map(str, shape))}"
