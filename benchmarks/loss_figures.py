"""The targets of the loss: small batches beside a hand-written one, large ones beside bare multiplies, and memory.

    python benchmarks/loss_figures.py          prints the table, about two minutes of CPU time

One call is forward and backward, float32, temperature 0.07, one thread. By hand: unit vectors, one product per term,
and torch's cross entropy both ways, as people write it. Bare: the three products of each tile and nothing else.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import figures
import torch
import torch.nn.functional as F
from figures import Figure
from loss_forms import TEMPERATURE, Bare, inputs
from torch import Tensor

import centrobind as cb
from centrobind.objectives.infonce import infonce
from centrobind.types import unit

SMALL = ((2, 64), (2, 256), (3, 256), (4, 64), (4, 256))  # modalities, samples; of 64 dimensions
LARGE = ((1024, None, 1.3), (2048, None, 1.3), (8192, 10**9, 1.25))  # samples, bytes to keep, target; 4 x 256
MEGABYTES = 64


def by_hand(one: Tensor, other: Tensor) -> Tensor:
    """Symmetric InfoNCE of two modalities."""
    labels, logits = torch.arange(len(one)), one @ other.T / TEMPERATURE
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def small_batches(turns: int = 21) -> list[Figure]:
    found = []
    for count, samples in SMALL:
        given = {f"m{m}": torch.randn(samples, 64, requires_grad=True) for m in range(count)}
        pairs, others = cb.AllPairs(temperature=TEMPERATURE), cb.LeaveOneOut(temperature=TEMPERATURE)

        def hand_pairs(given=given) -> None:
            z = [unit(x) for x in given.values()]
            torch.stack([by_hand(a, b) for a, b in itertools.combinations(z, 2)]).mean().backward()

        def hand_others(given=given, count=count) -> None:
            z = torch.stack([unit(x) for x in given.values()])
            total = z.sum(0)
            torch.stack([by_hand(row, (total - row) / (count - 1)) for row in z]).mean().backward()

        calls = {
            "AllPairs": lambda given=given, loss=pairs: loss(given).total.backward(),
            "all pairs by hand": hand_pairs,
            "LeaveOneOut": lambda given=given, loss=others: loss(given).total.backward(),
            "leave one out by hand": hand_others,
        }
        seconds = figures.turns(calls, turns, repeat=max(1, 2**15 // samples**2))
        for ours, theirs in (("AllPairs", "all pairs by hand"), ("LeaveOneOut", "leave one out by hand")):
            what = f"{ours} to {theirs}, M={count}, N={samples}"
            found.append(Figure(what, 1.2 if samples == 64 else 1.0, figures.ratio(seconds, ours, theirs)))
    return found


def large_batches(turns: int = 3) -> list[Figure]:
    found = []
    for samples, memory, target in LARGE:
        query, key = inputs((4, samples, 256))

        def ours(query=query, key=key, memory=memory) -> None:
            query.grad = key.grad = None
            infonce(query, key, None, None, torch.tensor([TEMPERATURE]), memory=memory).means.mean().backward()

        seconds = figures.turns({"ours": ours, "bare": Bare(query, key)}, turns * max(1, 4096 // samples))
        kept = "" if memory is None else f", {memory / 1e9:g} GB to keep tiles"
        what = f"loss to bare multiplies, M=4, d=256, N={samples:,}{kept}"
        found.append(Figure(what, target, figures.ratio(seconds, "ours", "bare")))
    return found


def peak_megabytes(samples: int = 8192) -> float | None:
    """Of resident memory, beyond the gradients, of CentroBind called with a dict of 4 x 256; None but on Linux."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None

    def resident(field: str) -> float:
        (line,) = [line for line in status.read_text().splitlines() if line.startswith(field)]
        return int(line.split()[1]) * 1024 / 1e6

    given = {name: torch.randn(samples, 256, requires_grad=True) for name in "abcd"}
    loss = cb.CentroBind()
    loss(
        {name: torch.randn(1100, 256, requires_grad=True) for name in "abcd"}
    ).total.backward()  # what libraries set up
    before = resident("VmRSS")
    reset.write_text("5")  # forget the highest so far
    loss(given).total.backward()
    return resident("VmHWM") - before - sum(x.nbytes for x in given.values()) / 1e6


def quick() -> list[Figure]:
    """Every target of the loss."""
    # A process of its own: what others left in the allocator would be counted, or save what should be.
    done = subprocess.run([sys.executable, __file__, "--memory"], capture_output=True, text=True, check=True)
    words = done.stdout.split()[-1]
    measured = None if words == "None" else float(words)
    what = "MB beyond gradients, CentroBind of a dict, M=4, N=8,192, d=256"
    memory = Figure(what, MEGABYTES, measured, note="resident memory is read on Linux only")
    return [*small_batches(), *large_batches(), memory]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "--memory" in sys.argv:
        print(peak_megabytes())
    else:
        print(figures.table(quick()))
