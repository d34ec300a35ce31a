"""Opening a run and its data to be looked at: what was made before is read again, what is missing is made."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from centrobind.binder.binder import Binder
from centrobind.binder.checkpoint import load
from centrobind.data import Samples
from centrobind.errors import CheckpointError, ConfigError, DataError, StoreError
from centrobind.index import Index, build_index, open_index
from centrobind.objectives.base import Objective
from centrobind.progress import Watch, silent
from centrobind.report.atlas import cached_atlas
from centrobind.serve.drawing import Drawing
from centrobind.serve.gallery import Gallery
from centrobind.training.config import load_config
from centrobind.training.fit import open_data, run_objective


def open_gallery(
    run: str | Path,
    store: str | Path,
    *,
    split: str | None = None,
    index: str | Path | None = None,
    cache: str | Path | None = None,
    wait: bool = True,
    watch: Watch = silent,
) -> Gallery:
    """Open a run and its data to be looked at; index and map are made when there are none yet, else read again.

    Without `wait` the map is drawn in the background, and everything but it can be asked for meanwhile. `watch` is
    called with the percent that is embedded.
    Both lie in `cache`, default the folder `serve` beside the binder, under a name that changes with the binder and the
    store. `index` is one that was made before. Raises CentrobindErrors for whatever cannot be opened.
    """
    run = Path(run)
    binder = load(run)
    samples = open_data(store)
    samples = samples if split is None else samples.part(split)
    samples = samples.only([name for name in binder.modalities if name in samples.modalities])
    if not samples.columns:
        raise DataError(f"{store}: none of its modalities is one of the binder's, {list(binder.modalities)}")
    folder = Path(cache) if cache is not None else (run if run.is_dir() else run.parent) / "serve"
    folder = folder.absolute() / _key(binder, store, samples, split)  # the map is written later, wherever we are then
    own = folder / "index"
    opened = open_index(index, binder) if index is not None else _own_index(binder, samples, own, watch)
    space = opened.embeddings().only(samples.modalities)
    rows = {one: row for row, one in enumerate(samples.ids[:])}
    here = np.array([rows.get(one, -1) for one in space.ids])
    if (here < 0).all():
        raise DataError(f"{index}: none of its {len(here)} ids is in {store}; it was made of other data")
    space, samples = space.take(here >= 0), samples.take(here[here >= 0])
    drawing = Drawing(lambda each: cached_atlas(folder, space, each))
    if wait:
        drawing.atlas()
    page = run / "report.html"
    trained_with, objective = _objective(run, binder)
    return Gallery(
        binder,
        samples,
        opened,
        drawing,
        name=f"{run.name} · {Path(store).name}{'' if split is None else ' · ' + split}",
        trained_with=trained_with,
        objective=objective,
        page=page if page.is_file() else None,
    )


def _key(binder: Binder, store: str | Path, samples: Samples, split: str | None) -> str:
    meta = Path(store) / "meta.json"  # it holds the checksums of all files
    digest = hashlib.sha256(meta.read_bytes() if meta.is_file() else f"{store} {len(samples)}".encode())
    digest.update(f"{binder.fingerprint} {split}".encode())
    return digest.hexdigest()[:16]


def _own_index(binder: Binder, samples: Samples, path: Path, watch: Watch) -> Index:
    if (path / "index.json").is_file():
        try:
            return open_index(path, binder)
        except StoreError:
            shutil.rmtree(path)  # damaged, and it is ours: made again

    def percent(done: int, **_: float) -> None:
        watch(100 * done // max(len(samples), 1), title="embedding")

    return build_index(binder, samples, path, replace=True, watch=percent)


def _objective(run: Path, binder: Binder) -> tuple[str | None, Objective | None]:
    """What the run was trained with and what that is called, as far as it says so.

    A demo's folder is no run of its own: its binder comes from the run that it chose.
    """
    folder = run
    try:
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        chosen = next(row for row in results["rows"] if row["label"] == results["chosen"])
        folder = run / Path(chosen["config"]["out"]).name
    except (OSError, ValueError, LookupError, TypeError, StopIteration):
        pass
    try:
        objective = run_objective(folder, binder)
        return (None if objective is None else load_config(folder / "config.yaml").objective.name), objective
    except (ConfigError, CheckpointError):
        return None, None  # a page without it is better than none
