"""Data: the packed store, importers, splits and batches."""

from centrobind.data.batches import ReadAhead, Sampler, assign_splits, train_and_valid
from centrobind.data.importing import dataset_chunks, read_chunks, record_chunks
from centrobind.data.inspecting import Inspection, inspect_samples
from centrobind.data.opening import open_store
from centrobind.data.samples import Codes, Column, Samples, Strings
from centrobind.data.store import write_store

__all__ = [
    "Codes",
    "Column",
    "Inspection",
    "ReadAhead",
    "Sampler",
    "Samples",
    "Strings",
    "assign_splits",
    "dataset_chunks",
    "inspect_samples",
    "open_store",
    "read_chunks",
    "record_chunks",
    "train_and_valid",
    "write_store",
]
