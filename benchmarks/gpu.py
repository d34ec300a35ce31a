"""The loss, a step of training and retrieval on a GPU, beside their limits and other forms. Under 8 minutes on one GPU.

    python benchmarks/gpu.py           writes benchmarks/results/gpu.json and the GPU section of docs/performance.md

Without a GPU it says "not measured" and writes nothing. Times are of CUDA events around calls that were made before,
medians over turns; memory is the allocator's peak beyond the inputs. The functions take any device: a test runs them on
a CPU at toy size, so that they do not wait for a GPU to be wrong.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import loss_forms
import pages
import torch
from figures import Figure
from torch import Tensor

import centrobind as cb
from centrobind.binder.binder import build_binder
from centrobind.objectives.infonce import infonce
from centrobind.training.config import TrainConfig
from centrobind.training.loop import train
from centrobind.types import unit

RESULTS = Path(__file__).parent / "results" / "gpu.json"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
ABSENT = "no GPU here; the same functions are tested on a CPU"
SHAPES = ((4, 1024, 256), (4, 8192, 256), (4, 32768, 256))  # modalities, samples, dimensions
ROWS = 200_000  # of the retrieval
TURNS = 7


def seconds(call: Callable[[], object], device: torch.device, turns: int = TURNS) -> float:
    """The median of some calls after a first one."""
    taken = []
    for _ in range(turns + 1):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            taken.append(begin.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def of_loss(shape: loss_forms.Shape, device: torch.device, turns: int = TURNS) -> dict[str, float]:
    """Seconds of the loss, of the bare multiplies, and of all pairs in open_clip's form beside ours."""
    query, key = (x.detach().to(device).requires_grad_() for x in loss_forms.inputs(shape))
    temperature = torch.tensor([loss_forms.TEMPERATURE], device=device)
    pairs = [(one, other) for one in range(shape[0]) for other in range(one)]

    def backward(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            query.grad = key.grad = None
            loss().backward()

        return call

    def bare() -> None:
        with torch.no_grad():
            for q, k in zip(query, key):
                s = q @ k.T
                s @ k
                s.T @ q

    def peers() -> Tensor:
        return torch.stack([loss_forms.open_clip_form(query[one], query[other]) for one, other in pairs]).mean()

    calls = {
        "loss": backward(lambda: infonce(query, key, None, None, temperature).means.mean()),
        "bare multiplies": bare,
        "all pairs": backward(lambda: infonce(query, query, None, None, temperature, pairs=pairs).means.mean()),
        "all pairs, open_clip form": backward(peers),
    }
    taken = {}
    for name, call in calls.items():
        try:
            taken[name] = seconds(call, device, turns)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return taken


def of_step(device: torch.device, steps: int = 60) -> float:
    """Seconds of a step: three modalities, batches of 512, towers of three layers; the median of the second half."""
    samples = cb.synthetic(4096, 3, seed=0)
    encoders = {name: {"encoder": "mlp", "width": 512, "depth": 3} for name in samples.modalities}
    binder = build_binder(samples, dim=256, encoders=encoders).to(device)
    ends: list[float] = []
    settings = TrainConfig(steps=steps, batch_size=512, log_every=10 * steps, tensorboard=False)

    def watch(step: int, **_: object) -> None:
        ends.append(time.perf_counter())

    train(binder, cb.LeaveOneOut().to(device), samples, None, settings, watch=watch)
    return statistics.median(b - a for a, b in zip(ends[steps // 2 :], ends[steps // 2 + 1 :]))


def of_retrieval(rows: int, device: torch.device, turns: int = 3) -> dict[str, float]:
    """Seconds to find the best ten of all rows for 1,000 queries, ours as torch does it, and the product alone."""
    vectors, queries = unit(torch.randn(rows, 256)).to(device), unit(torch.randn(1000, 256)).to(device)
    return {
        "best ten of all": seconds(lambda: (queries @ vectors.T).topk(min(10, rows)), device, turns),
        "bare product": seconds(lambda: queries @ vectors.T, device, turns),
    }


def measure(device: torch.device) -> dict[str, object]:
    """Everything, as the results file holds it."""
    losses = {"x".join(map(str, shape)): of_loss(shape, device) for shape in SHAPES}
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    about = {"name": name, "torch": torch.__version__}
    return {"device": about, "loss": losses, "step": of_step(device), "retrieval": of_retrieval(ROWS, device)}


def section(results: dict | None) -> str:
    """The GPU section of docs/performance.md."""
    if results is None:
        return "**Not measured**: no GPU was there. `python benchmarks/gpu.py` measures and writes this section."
    rows = []
    for shape, taken in results["loss"].items():
        cells = (f"{1e3 * taken[name]:,.2f}" if name in taken else "out of memory" for name in NAMES)
        ratio = taken["loss"] / taken["bare multiplies"]
        rows.append([shape, *cells, f"{ratio:.2f}"])
    table = pages.table(["M x N x d", *(f"{name}, ms" for name in NAMES), "loss to bare"], rows)
    step, retrieval = 1e3 * results["step"], {name: 1e3 * value for name, value in results["retrieval"].items()}
    rest = f"A step of training takes {step:,.1f} ms; the best ten of {ROWS:,} rows for 1,000 queries " + (
        "{best ten of all:,.1f} ms, the bare product {bare product:,.1f} ms.".format(**retrieval)
    )
    return "{name}, torch {torch}.\n\n".format(**results["device"]) + f"{table}\n\n{rest}"


NAMES = ("loss", "bare multiplies", "all pairs", "all pairs, open_clip form")


def quick() -> list[Figure]:
    """The loss beside the bare multiplies, where there is a GPU."""
    what = "loss to bare multiplies on a GPU, M=4, d=256, N=8,192"
    if not torch.cuda.is_available():
        return [Figure(what, 1.3, note=ABSENT)]
    taken = of_loss((4, 8192, 256), torch.device("cuda"))
    return [Figure(what, 1.3, taken["loss"] / taken["bare multiplies"])]


def main() -> None:
    if not torch.cuda.is_available():
        print(f"not measured: {ABSENT}")
        return
    results = measure(torch.device("cuda"))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    pages.fill(PAGE, {"GPU section": section(results)})


if __name__ == "__main__":
    main()
