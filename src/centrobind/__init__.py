"""Bind any number of modalities into one embedding space without choosing an anchor modality.

import centrobind as cb

binder = cb.fit({"image": x1, "outline": x2, "name": x3}, objective="centrobind", dim=64)
embeddings = binder.embed({"image": x1_test, "name": x3_test})
cb.evaluate(embeddings, labels=y_test)
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Every public name and the module it lives in, imported when first used: `centrobind --help` must not wait for
# torch. No module is called like a public name, because importing it would put the module in the name's place.
_PUBLIC = {
    "fit": "fitting",
    "save": "checkpoint",
    "load": "checkpoint",
    "evaluate": "evaluation",
    "diagnose": "diagnosis",
    "retrieval": "metrics",
    "geometry": "metrics",
    "save_embeddings": "embedding",
    "load_embeddings": "embedding",
    "build_index": "index",
    "open_index": "index",
    "query": "index",
    "Index": "index",
    "Hits": "index",
    "Embeddings": "types",
    "Batch": "types",
    "Binder": "model",
    "Samples": "data",
    "open_store": "data",
    "write_store": "data",
    "read_chunks": "data",
    "dataset_chunks": "data",
    "assign_splits": "data",
    "train_and_valid": "data",
    "glyphs": "datasets",
    "synthetic": "datasets",
    "xor": "datasets",
    "replay": "nonfinite",
    "centroid": "anchors",
    "leave_one_out": "anchors",
    "fixed": "anchors",
    "weighted": "anchors",
    "random_modality": "anchors",
    "own_view": "anchors",
    "LearnedWeights": "anchors",
    "OBJECTIVES": "objectives",
    "Objective": "losses",
    "Loss": "losses",
    "AnchorInfoNCE": "losses",
    "CentroBind": "objectives",
    "LeaveOneOut": "objectives",
    "WeightedCentroid": "objectives",
    "LearnedCentroid": "objectives",
    "RandomAnchor": "objectives",
    "FABind": "objectives",
    "AllPairs": "losses",
    "Unimodal": "objectives",
    "gather": "ranks",
    "joined": "ranks",
    "CentrobindError": "errors",
    "DataError": "errors",
    "StoreError": "errors",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "RunError": "errors",
    "ExtraError": "errors",
    "CentrobindWarning": "errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'centrobind' has no attribute {name!r}")
    value = getattr(import_module(f"centrobind.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
