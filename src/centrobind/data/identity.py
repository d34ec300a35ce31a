"""Which data a run was trained on, in a few lines that can stand in its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np

from centrobind.data.repeats import value_digests
from centrobind.data.samples import Samples

SHOWN = 1024  # samples whose values are compared: a large store is not read twice, and no shuffle escapes them all
CHUNK = 2**16


def identity(samples: Samples) -> dict[str, Any]:
    """Counts, kinds and shapes, and a digest of all ids, of who has what, and of the values of up to SHOWN samples."""
    digest = blake2b(digest_size=16)
    for start in range(0, len(samples), CHUNK):
        digest.update("\0".join(samples.ids[start : start + CHUNK]).encode("utf-8", "surrogatepass"))
    digest.update(np.packbits(samples.present).tobytes())
    rows = np.linspace(0, len(samples) - 1, min(SHOWN, len(samples))).astype(np.int64)
    digest.update(value_digests(samples.take(rows)).tobytes())
    modalities = {
        name: {"kind": column.kind, "shape": list(column.shape), "present": int(column.present.sum())}
        for name, column in samples.columns.items()
    }
    return {"samples": len(samples), "modalities": modalities, "digest": digest.hexdigest()}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two identities, in words; nothing if they are of the same data."""
    if before["samples"] != now["samples"]:
        return f"{before['samples']} training samples then, {now['samples']} now"
    if before["modalities"] != now["modalities"]:
        names = before["modalities"].keys() | now["modalities"].keys()
        differ = sorted(name for name in names if before["modalities"].get(name) != now["modalities"].get(name))
        return "; ".join(f"{n}: {before['modalities'].get(n)} then, {now['modalities'].get(n)} now" for n in differ)
    return "" if before["digest"] == now["digest"] else "other values, ids or another order than then"
