"""A million vectors in every engine: time and memory to build, disk, and queries a second at a recall of .98.

    python benchmarks/index.py                      writes benchmarks/results/index.json; what is there is not redone
    python benchmarks/index.py --only ask --fresh   asks again, of indices that --folder still has
    python benchmarks/index.py --sizes 20000 --out small.json

`exact` and `lancedb` are this package's engines, ids and all; faiss and usearch are used directly, numbers only. Every
cell is a process of its own: building (wall and CPU seconds, peak of resident memory, bytes on disk), then opening and
asking. What approximates is asked with the smallest of its settings that reaches a recall@10 of .98.

The vectors have structure that neighbours can be found by, as embeddings do and uniform noise does not: 2,000 clusters
of unequal size in 16 dimensions, bent into 128 by a random layer with tanh, a little noise in all 128, unit length. A
query is another point of a cluster with twice the noise, as from another modality. The intrinsic dimension that comes
out is measured and stands in the results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "index.json"
DIM, LATENT, CLUSTERS, QUERIES, K, WANTED = 128, 16, 2000, 1000, 10, 0.98
SIZES = (100_000, 1_000_000)
CHUNK = 100_000
SECONDS = 6.0  # of asking one by one, at most
THREADS = 2


# ---- data -------------------------------------------------------------------------------------------------------


def points(count: int, seed: int, noise: float) -> np.ndarray:
    """(count, DIM) unit float32: the same clusters and the same layer for every seed."""
    world = np.random.default_rng(0)
    centres = world.normal(size=(CLUSTERS, LATENT))
    spread = world.uniform(0.2, 0.6, CLUSTERS)
    share = world.dirichlet(np.ones(CLUSTERS))
    layers = world.normal(size=(LATENT, 256)) / LATENT**0.5, world.normal(size=(256, DIM)) / 16
    draw = np.random.default_rng(seed)
    cluster = draw.choice(CLUSTERS, count, p=share)
    latent = centres[cluster] + spread[cluster, None] * draw.normal(size=(count, LATENT))
    made = np.tanh(2 * latent @ layers[0]) @ layers[1]
    made = made + noise * draw.normal(size=made.shape) * np.linalg.norm(made, axis=1, keepdims=True) / DIM**0.5
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def make_data(folder: Path, size: int) -> None:
    """vectors.npy, queries.npy, and truth.npy: the ten nearest of each query by a plain product of matrices."""
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (size, DIM))
    for start in range(0, size, CHUNK):
        stop = min(start + CHUNK, size)
        vectors[start:stop] = points(stop - start, 1 + start, 0.1)
    queries = points(QUERIES, 0, 0.2)
    truth = np.empty((QUERIES, K), np.int64)
    for start in range(0, QUERIES, 50):
        scores = queries[start : start + 50] @ vectors.T
        near = np.argpartition(-scores, K, axis=1)[:, :K]
        order = np.take_along_axis(scores, near, 1).argsort(1)[:, ::-1]
        truth[start : start + 50] = np.take_along_axis(near, order, 1)
    np.save(folder / "queries.npy", queries)
    np.save(folder / "truth.npy", truth)


def intrinsic_dimension(vectors: np.ndarray) -> float:
    """TwoNN (Facco et al. 2017) over 2,000 of the vectors: from the ratio of the two smallest distances of each."""
    picked = np.random.default_rng(0).choice(len(vectors), 2000, replace=False)
    ratios = []
    for start in range(0, 2000, 100):
        scores = vectors[picked[start : start + 100]] @ vectors.T
        near = -np.partition(-scores, 2, axis=1)[:, 1:3]  # itself comes first
        distances = np.sqrt(np.maximum(2 - 2 * np.sort(near, axis=1)[:, ::-1], 1e-12))
        ratios.append(distances[:, 1] / distances[:, 0])
    return round(float(2000 / np.log(np.concatenate(ratios)).sum()), 1)


# ---- engines: build(vectors, path), and open(path) -> ask(queries, k, setting) -> (Q, k) rows ---------------------


def build_ours(engine: str) -> Callable[[np.ndarray, Path], None]:
    def build(vectors: np.ndarray, path: Path) -> None:
        from centrobind.data import Samples
        from centrobind.index.engine import About
        from centrobind.index.opening import ENGINES

        def chunks() -> Iterator[Samples]:
            for start in range(0, len(vectors), 8192):  # as they come from a binder
                part = np.array(vectors[start : start + 8192])
                yield Samples.of({"a": part}, ids=range(start, start + len(part)))

        ENGINES[engine].create(path, About("benchmark", DIM, ("a",)), chunks())

    return build


def open_ours(path: Path) -> Callable:
    import torch

    from centrobind.index import lance, open_index

    torch.set_num_threads(THREADS)
    index = open_index(path, device="cpu")

    def ask(queries: np.ndarray, k: int, setting: int | None) -> Any:
        lance.PROBES = setting or lance.PROBES
        return np.array(index.search(queries, "a", k).ids, dtype=np.int64)

    return ask


def build_faiss(kind: str) -> Callable[[np.ndarray, Path], None]:
    def build(vectors: np.ndarray, path: Path) -> None:
        import faiss

        faiss.omp_set_num_threads(THREADS)
        made = faiss.index_factory(DIM, kind.format(lists=int(len(vectors) ** 0.5)), faiss.METRIC_INNER_PRODUCT)
        if not made.is_trained:
            made.train(np.array(vectors[:: max(1, len(vectors) // 100_000)]))
        for start in range(0, len(vectors), CHUNK):
            made.add(np.array(vectors[start : start + CHUNK]))
        faiss.write_index(made, str(path))

    return build


def open_faiss(path: Path) -> Callable:
    import faiss

    faiss.omp_set_num_threads(THREADS)
    index = faiss.read_index(str(path))

    def ask(queries: np.ndarray, k: int, setting: int | None) -> Any:
        if setting is not None:
            inner = faiss.downcast_index(index)
            if hasattr(inner, "hnsw"):
                inner.hnsw.efSearch = setting
            else:
                inner.nprobe = setting
        return index.search(queries, k)[1]

    return ask


def build_usearch(vectors: np.ndarray, path: Path) -> None:
    from usearch.index import Index

    made = Index(ndim=DIM, metric="ip", dtype="f16")
    for start in range(0, len(vectors), CHUNK):
        part = np.array(vectors[start : start + CHUNK])
        made.add(np.arange(start, start + len(part)), part, threads=THREADS)
    made.save(str(path))


def open_usearch(path: Path) -> Callable:
    from usearch.index import Index

    index = Index.restore(str(path), view=True)

    def ask(queries: np.ndarray, k: int, setting: int | None) -> Any:
        index.expansion_search = setting
        return np.atleast_2d(index.search(queries, k, threads=THREADS).keys).astype(np.int64)

    return ask


EFS = (16, 32, 64, 128, 256, 512)
ENGINES: dict[str, tuple[Callable, Callable, tuple]] = {
    "exact": (build_ours("exact"), open_ours, (None,)),
    "faiss Flat": (build_faiss("Flat"), open_faiss, (None,)),
    "lancedb": (build_ours("lancedb"), open_ours, (4, 8, 12, 16, 24, 32, 48, 64, 96)),
    "faiss IVF,Flat": (build_faiss("IVF{lists},Flat"), open_faiss, (4, 8, 12, 16, 24, 32, 48, 64, 96)),
    "faiss HNSW32": (build_faiss("HNSW32,Flat"), open_faiss, EFS),
    "usearch f16": (build_usearch, open_usearch, EFS),
}


# ---- one cell, in a process of its own ----------------------------------------------------------------------------


def resident() -> dict[str, float]:
    wanted = {"RssAnon:": "anonymous", "RssFile:": "file"}
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {wanted[line[0]]: int(line[1]) / 1024 for line in lines if line and line[0] in wanted}


def size_of(path: Path) -> int:
    return (
        path.stat().st_size if path.is_file() else sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    )


def build_cell(engine: str, folder: Path) -> dict[str, Any]:
    build = ENGINES[engine][0]
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    path, scratch = place(folder, engine), Path(tempfile.mkdtemp(dir=folder))
    build(vectors[:2000], scratch / "i")  # imports, and memory that every process of the kind takes
    shutil.rmtree(scratch)
    before, wall, cpu = sum(resident().values()), time.perf_counter(), time.process_time()
    build(vectors, path)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "build_seconds": round(wall, 1),
        "build_cpu_seconds": round(cpu, 1),
        "build_peak_mb": round(peak - before),
        "disk_mb": round(size_of(path) / 2**20),
    }


def ask_cell(engine: str, folder: Path) -> dict[str, Any]:
    _, opened, settings = ENGINES[engine]
    queries, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    module = {"exact": "torch", "lancedb": "lancedb", "usearch f16": "usearch.index"}.get(engine, "faiss")
    __import__(module)
    if module in ("torch", "lancedb"):
        import centrobind.index.opening  # noqa: F401
    before, began = resident(), time.perf_counter()
    ask = opened(place(folder, engine))
    ask(queries[:1], K, settings[0])
    seconds = time.perf_counter() - began
    setting, recall, tried = None, 0.0, {}
    for setting in settings:
        found = ask(queries, K, setting)
        recall = float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), truth.tolist())]))
        tried[str(setting)] = round(recall, 4)
        if recall >= WANTED:
            break
    grown = {key: value - before[key] for key, value in resident().items()}
    began = time.perf_counter()
    for asked in itertools.count(1):
        ask(queries[asked % QUERIES : asked % QUERIES + 1], K, setting)
        if time.perf_counter() - began > SECONDS:
            break
    one_by_one = asked / (time.perf_counter() - began)
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        ask(queries, K, setting)
        rounds += 1
    together = rounds * QUERIES / (time.perf_counter() - began)
    return {
        "setting": setting,
        "recall": round(recall, 4),
        "recall_by_setting": tried,
        "qps": round(one_by_one, 1),
        "qps_together": round(together, 1),
        "open_seconds": round(seconds, 2),
        "memory_mb": round(grown["anonymous"]),
        "mapped_mb": round(grown["file"]),
    }


def place(folder: Path, engine: str) -> Path:
    return folder / engine.replace(" ", "-").replace(",", "-").lower()


# ---- all cells ----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--only", choices=("build", "ask"), help="one half of the work")
    parser.add_argument("--fresh", action="store_true", help="do again what is in the results")
    parser.add_argument("--folder", type=Path, default=Path("runs/index-benchmark"), help="6 GB; kept, to resume from")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell is not None:
        what, engine = options.cell
        print(json.dumps((build_cell if what == "build" else ask_cell)(engine, options.folder)))
        return
    found = json.loads(options.out.read_text()) if options.out.is_file() else {"cells": {}, "data": {}}
    found["about"] = {"dim": DIM, "queries": QUERIES, "k": K, "wanted": WANTED, "threads": THREADS}
    for size in options.sizes:
        folder = options.folder / str(size)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "truth.npy").is_file():
            print(f"{size}: making the vectors", flush=True)
            make_data(folder, size)
        if str(size) not in found["data"]:
            dimension = intrinsic_dimension(np.load(folder / "vectors.npy", mmap_mode="r"))
            found["data"][str(size)] = {"intrinsic_dimension": dimension}
        for engine, what in itertools.product(options.engines, ("build", "ask")):
            cell = found["cells"].setdefault(engine, {}).setdefault(str(size), {})
            have = ("build_seconds" if what == "build" else "qps") in cell and not options.fresh
            there = place(folder, engine).exists()
            if options.only not in (None, what) or (have and (there or what == "ask")):
                continue
            if what == "build" and there:
                path = place(folder, engine)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            cell |= run_cell(what, engine, folder)
            print(size, engine, cell, flush=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n")


def run_cell(what: str, engine: str, folder: Path) -> dict[str, Any]:
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "LANCE_CPU_THREADS": str(THREADS)}
    command = [sys.executable, __file__, "--folder", str(folder), "--cell", what, engine]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{what} {engine} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
