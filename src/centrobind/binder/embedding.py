"""Embeddings on disk: an .npz for what fits in memory, a store for what does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from centrobind.binder.augment import augment
from centrobind.binder.binder import Binder
from centrobind.data import Codes, Samples, sameness, write_store
from centrobind.data.npz import NOT_A_ZIP
from centrobind.data.samples import NOT_AN_ARRAY
from centrobind.errors import DataError
from centrobind.files import not_written
from centrobind.progress import Watch, silent
from centrobind.types import Embeddings

CHUNK = 8192


@torch.no_grad()
def embed_views(binder: Binder, samples: Samples, *, strength: float = 1.0, seed: int = 0) -> Embeddings:
    """Embeddings of augmented views, as training makes them: row i belongs to row i of `binder.embed(samples)`.

    Raises DataError if none of the modalities is the binder's.
    """
    samples = samples.only([name for name in binder.modalities if name in samples.modalities])
    if not samples.columns:
        raise DataError(f"none of the modalities here is one of the binder's, {list(binder.modalities)}")
    z = torch.zeros(len(samples.columns), len(samples), binder.dim)
    binder.eval()
    for start in range(0, len(samples), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(samples)))
        batch = augment(binder.prepare(samples.batch(rows)), binder.kinds, seed=(seed, start), strength=strength)
        z[:, rows] = binder(batch).z.float().cpu()
    views = Embeddings(
        z, torch.from_numpy(samples.present), samples.modalities, np.array(samples.ids[:]), *sameness(samples)
    )
    return views.checked("the binder's embeddings of views")


def save_embeddings(path: str | Path, embeddings: Embeddings, *, fingerprint: str = "", about: Samples | None = None):
    """Write `x_<modality>`, `present_<modality>` and `id`, with label and split `about` the samples, to an .npz.

    The names are those that `centrobind import` reads, so embeddings can be data again; what says which answers are
    right, `same` (N,) and `value_<modality>` (N,), is for load_embeddings.
    """
    arrays = {f"x_{name}": embeddings[name].numpy() for name in embeddings.modalities}
    arrays |= {f"present_{name}": embeddings.present[m].numpy() for m, name in enumerate(embeddings.modalities)}
    arrays["id"] = np.arange(len(embeddings)) if embeddings.ids is None else embeddings.ids
    if embeddings.groups is not None:
        arrays["same"] = embeddings.groups
    if embeddings.values is not None:
        arrays |= {f"value_{name}": row for name, row in zip(embeddings.modalities, embeddings.values)}
    for what in ("label", "split", "group"):
        codes: Codes | None = None if about is None else getattr(about, what)
        if codes is not None:
            arrays[what] = np.array([*codes.names, ""])[codes.codes]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, fingerprint=np.array([fingerprint]), **arrays)
        os.replace(temporary, path)
    except OSError as error:
        said = not_written(path, error, sum(array.nbytes for array in arrays.values()))
        temporary.unlink(missing_ok=True)
        raise DataError(f"{said}; make room and embed again, or embed into a store, chunk by chunk") from None


def load_embeddings(path: str | Path) -> Embeddings:
    """Read what save_embeddings wrote; DataError for anything else."""
    try:
        # Opened here: numpy leaves a file open that turns out to be no archive.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            names = tuple(key.removeprefix("x_") for key in archive.files if key.startswith("x_"))
            z = np.stack([archive[f"x_{name}"] for name in names])
            present = np.stack([archive[f"present_{name}"] for name in names])
            ids = archive["id"]
            z[~present] = 0
            groups = archive["same"] if "same" in archive.files else None
            known = all(f"value_{name}" in archive.files for name in names)
            values = np.stack([archive[f"value_{name}"] for name in names]) if known else None
            if any(each is not None and each.shape[-1:] != ids.shape for each in (groups, values)):
                raise ValueError(f"same and value_ need {len(ids)} rows")
    except (*NOT_AN_ARRAY, *NOT_A_ZIP, IndexError) as error:
        raise DataError(f"{path}: not a file of embeddings ({error}); expected one from `centrobind embed`") from None
    return Embeddings(torch.from_numpy(z), torch.from_numpy(present), names, ids, groups, values).checked(str(path))


def embed_to(binder: Binder, samples: Samples, out: str | Path, *, force: bool = False, watch: Watch = silent) -> None:
    """Embed all samples into an .npz (by its ending) or, chunk by chunk, into a store.

    Raises DataError or StoreError, also when `out` exists and `force` is not given.
    """
    out = Path(out)
    if out.suffix != ".npz":
        write_store(out, embedded_chunks(binder, samples, watch), replace=force)
        return
    if out.exists() and not force:
        raise DataError(f"{out} exists already; choose another name, or overwrite it with --force")
    embeddings = binder.embed(samples, device="auto", each=watch)
    save_embeddings(out, embeddings, fingerprint=binder.fingerprint, about=samples)


def embedded_chunks(binder: Binder, samples: Samples, watch: Watch = silent) -> Iterator[Samples]:
    """The embeddings of samples as samples again, a vector modality each, with ids, labels, splits and groups."""
    for start in range(0, len(samples), CHUNK):
        chunk = samples.take(slice(start, start + CHUNK))
        embedded = binder.embed(chunk, device="auto")
        arrays = {name: embedded[name].numpy() for name in embedded.modalities}
        present = {name: embedded.present[m].numpy() for m, name in enumerate(embedded.modalities)}
        made = Samples.of(arrays, present=present, ids=chunk.ids[:])
        yield replace(made, label=chunk.label, split=chunk.split, group=chunk.group)
        watch(min(start + CHUNK, len(samples)))
