"""Data: the packed store, importers, splits and batches."""

from centrobind.data.arrays import listed
from centrobind.data.batches import ReadAhead, Sampler, assign_splits, fixed_sample, train_and_valid
from centrobind.data.builtin import glyphs, synthetic, xor
from centrobind.data.categories import Codes
from centrobind.data.cells import BadCell
from centrobind.data.decoding import Reading
from centrobind.data.identity import difference, identity
from centrobind.data.importing import dataset_chunks, read_chunks, record_chunks
from centrobind.data.inspecting import Inspection, inspect_samples
from centrobind.data.intake import as_samples, from_mudata, joined
from centrobind.data.media import LIMITS, Limits, decode_image, decode_npy, decode_series, decode_text
from centrobind.data.opening import open_store
from centrobind.data.repeats import MISSING, digests, kinship, same_things, sameness
from centrobind.data.samples import Column, Nan, Samples, channels_last
from centrobind.data.sound import decode_sound, decode_wave, log_mel
from centrobind.data.spread import feature_moments
from centrobind.data.store import write_store
from centrobind.data.strings import WORDS_READ, Strings

__all__ = [
    "LIMITS",
    "MISSING",
    "WORDS_READ",
    "BadCell",
    "Codes",
    "Column",
    "Inspection",
    "Limits",
    "Nan",
    "ReadAhead",
    "Reading",
    "Sampler",
    "Samples",
    "Strings",
    "as_samples",
    "assign_splits",
    "channels_last",
    "dataset_chunks",
    "decode_image",
    "decode_npy",
    "decode_series",
    "decode_sound",
    "decode_text",
    "decode_wave",
    "difference",
    "digests",
    "feature_moments",
    "fixed_sample",
    "from_mudata",
    "glyphs",
    "identity",
    "inspect_samples",
    "joined",
    "kinship",
    "listed",
    "log_mel",
    "open_store",
    "read_chunks",
    "record_chunks",
    "same_things",
    "sameness",
    "synthetic",
    "train_and_valid",
    "write_store",
    "xor",
]
