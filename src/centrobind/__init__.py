"""Bind any number of modalities into one embedding space without choosing an anchor modality.

import centrobind as cb

binder = cb.fit({"image": x1, "outline": x2, "name": x3}, objective="centrobind", dim=64)
embeddings = binder.embed({"image": x1_test, "name": x3_test})
cb.evaluate(embeddings, labels=y_test)

What is used most has a name here; the rest is in its folder: `cb.objectives.GRAM`, `cb.data.read_chunks`,
`cb.errors.DataError`, `from centrobind.binder.features import featurize`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; a test keeps it equal to the table below
    from centrobind import data as data
    from centrobind import distributed as distributed
    from centrobind import errors as errors
    from centrobind import index as index
    from centrobind import objectives as objectives
    from centrobind import types as types
    from centrobind.binder.binder import Binder as Binder
    from centrobind.binder.checkpoint import load as load
    from centrobind.binder.checkpoint import save as save
    from centrobind.data import Samples as Samples
    from centrobind.data import from_mudata as from_mudata
    from centrobind.data import open_store as open_store
    from centrobind.data import write_store as write_store
    from centrobind.data.builtin import glyphs as glyphs
    from centrobind.data.builtin import synthetic as synthetic
    from centrobind.errors import CentrobindError as CentrobindError
    from centrobind.errors import CentrobindWarning as CentrobindWarning
    from centrobind.evaluation.diagnose import diagnose as diagnose
    from centrobind.evaluation.evaluate import evaluate as evaluate
    from centrobind.evaluation.metrics import retrieval as retrieval
    from centrobind.index import build_index as build_index
    from centrobind.index import open_index as open_index
    from centrobind.index import query as query
    from centrobind.objectives import OBJECTIVES as OBJECTIVES
    from centrobind.objectives import AllPairs as AllPairs
    from centrobind.objectives import AnchorInfoNCE as AnchorInfoNCE
    from centrobind.objectives import CentroBind as CentroBind
    from centrobind.objectives import FABind as FABind
    from centrobind.objectives import LearnedCentroid as LearnedCentroid
    from centrobind.objectives import LeaveOneOut as LeaveOneOut
    from centrobind.objectives import Objective as Objective
    from centrobind.objectives import RandomAnchor as RandomAnchor
    from centrobind.objectives import Unimodal as Unimodal
    from centrobind.objectives import WeightedCentroid as WeightedCentroid
    from centrobind.objectives import anchors as anchors
    from centrobind.training.config import TrainConfig as TrainConfig
    from centrobind.training.fit import fit as fit
    from centrobind.types import Embeddings as Embeddings

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
    "build_index": "index",
    "open_index": "index",
    "query": "index",
    "open_store": "data",
    "from_mudata": "data",
    "write_store": "data",
    "glyphs": "data.builtin",
    "synthetic": "data.builtin",
    "Samples": "data",
    "Embeddings": "types",
    "Binder": "binder.binder",
    "TrainConfig": "training.config",
    "OBJECTIVES": "objectives",
    "Objective": "objectives",
    "AnchorInfoNCE": "objectives",
    "AllPairs": "objectives",
    "CentroBind": "objectives",
    "FABind": "objectives",
    "LearnedCentroid": "objectives",
    "LeaveOneOut": "objectives",
    "RandomAnchor": "objectives",
    "Unimodal": "objectives",
    "WeightedCentroid": "objectives",
    "anchors": "objectives",
    "CentrobindError": "errors",
    "CentrobindWarning": "errors",
}
_MODULES = ("data", "distributed", "errors", "index", "objectives", "types")  # those that pass their names on

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"centrobind.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'centrobind' has no attribute {name!r}")
    value = getattr(import_module(f"centrobind.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_MODULES})
