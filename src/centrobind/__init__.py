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
# torch. No module at the top is called like a public name, because importing it would put the module in its place.
_PUBLIC = {
    "fit": "training.fit",
    "save": "binder.checkpoint",
    "load": "binder.checkpoint",
    "evaluate": "evaluation.evaluate",
    "diagnose": "evaluation.diagnose",
    "retrieval": "evaluation.metrics",
    "geometry": "evaluation.metrics",
    "save_embeddings": "binder.embedding",
    "load_embeddings": "binder.embedding",
    "build_index": "index",
    "open_index": "index",
    "query": "index",
    "Index": "index",
    "Hits": "index",
    "Embeddings": "types",
    "Batch": "types",
    "Binder": "binder.binder",
    "Samples": "data",
    "open_store": "data",
    "write_store": "data",
    "read_chunks": "data",
    "dataset_chunks": "data",
    "assign_splits": "data",
    "featurize": "binder.features",
    "featurize_store": "binder.features",
    "train_and_valid": "data",
    "glyphs": "data.builtin",
    "synthetic": "data.builtin",
    "xor": "data.builtin",
    "replay": "training.replay",
    "centroid": "objectives.anchors",
    "leave_one_out": "objectives.anchors",
    "fixed": "objectives.anchors",
    "weighted": "objectives.anchors",
    "random_modality": "objectives.anchors",
    "own_view": "objectives.anchors",
    "LearnedWeights": "objectives.anchors",
    "OBJECTIVES": "objectives.table",
    "Objective": "objectives.base",
    "Loss": "objectives.base",
    "AnchorInfoNCE": "objectives.anchored",
    "CentroBind": "objectives.table",
    "LeaveOneOut": "objectives.table",
    "WeightedCentroid": "objectives.table",
    "LearnedCentroid": "objectives.table",
    "RandomAnchor": "objectives.table",
    "FABind": "objectives.table",
    "AllPairs": "objectives.anchored",
    "Unimodal": "objectives.table",
    "gather": "distributed",
    "joined": "distributed",
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
