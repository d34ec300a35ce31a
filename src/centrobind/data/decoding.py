"""The one table of files: what a file ends in -> what it is -> what decodes it.

Import, `search --file` and the page's upload all read it, and the page is sent the endings: a kind of file that is
added here is known everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from centrobind.data.media import LIMITS, Limits, decode_image, decode_npy, decode_series, decode_text
from centrobind.data.sound import decode_sound, decode_wave
from centrobind.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
TABBED = ".tsv"  # a table whose columns are separated by tabs, whatever its first lines look like


@dataclass(frozen=True)
class Decoder:
    """A way to read a file."""

    decode: Callable[..., np.ndarray | str]
    shape: tuple[int, ...] | None  # of what comes out where none is said; None = as it is in the file
    endings: tuple[str, ...]


# The first decoder that has an ending is taken for it where nothing else is said.
DECODERS = {
    "image": Decoder(decode_image, (64, 64, 3), PICTURES),
    "sound": Decoder(decode_sound, (400, 64), SOUNDS),
    "wave": Decoder(decode_wave, (64_000,), SOUNDS),
    "array": Decoder(decode_npy, None, (".npy",)),
    "series": Decoder(decode_series, None, (".csv", ".tsv", ".npy")),
    "text": Decoder(decode_text, None, (".txt",)),
}
ENDINGS: dict[str, str] = {}
for _how, _decoder in DECODERS.items():
    for _ending in _decoder.endings:
        ENDINGS.setdefault(_ending, _how)
# How a modality that was not imported from files can be asked for by one.
BY_KIND = {"image": ("image", "array"), "text": ("text",), "sequence": ("series", "array"), "vector": ("array",)}


@dataclass(frozen=True)
class Reading:
    """How the files of a column become samples of one shape; as text "image:64x64x3"."""

    how: str  # one of DECODERS
    shape: tuple[int, ...] | None

    @classmethod
    def of(cls, text: str) -> Reading:
        """From its text; DataError if it is none."""
        how, colon, sizes = text.partition(":")
        if how not in DECODERS or how == "array":
            raise DataError(f"read as {text!r}: expected one of {[way for way in DECODERS if way != 'array']}")
        if colon and (how == "text" or not re.fullmatch(r"\d{1,9}(x\d{1,9}){0,3}", sizes)):
            raise DataError(
                f"read as {text!r}: expected a shape after the colon, such as image:64x64x3 or sound:400x64"
            )
        return cls(how, tuple(map(int, sizes.split("x"))) if colon else DECODERS[how].shape)

    def __str__(self) -> str:
        return self.how + (":" + "x".join(map(str, self.shape)) if self.shape else "")

    def decode(self, source: bytes | str | Path, limits: Limits = LIMITS) -> np.ndarray | str:
        """The value in a file; DataError says why there is none."""
        decode = DECODERS[self.how].decode
        if self.how in ("text", "array"):
            return decode(source, limits=limits)
        return decode(source, self.shape, limits=limits)


def reading_for(ending: str) -> Reading:
    """How files with this ending are read if nothing else is said; DataError for an ending that is not read."""
    how = ENDINGS.get(ending.lower())
    if how is None:
        raise DataError(f"expected the ending {', '.join(ENDINGS)}")
    return Reading(how, DECODERS[how].shape)


def ways(kind: str, reading: str = "") -> tuple[str, ...]:
    """How a file can become a value of a modality of this kind, whose own values were read in the way `reading`.

    A reading with a bar names features that a model made of files: only an array can be such a value.
    """
    how = reading.partition(":")[0]
    if "|" in reading:
        return ("array",)
    if how in DECODERS and how not in ("text", "array"):
        return how, "array"
    return BY_KIND[kind]


def endings(kind: str, reading: str = "") -> tuple[str, ...]:
    """What a file may end in that becomes a value of such a modality."""
    return tuple(dict.fromkeys(ending for how in ways(kind, reading) for ending in DECODERS[how].endings))


def decode_as(
    kind: str,
    shape: tuple[int, ...],
    reading: str,
    source: bytes | str | Path,
    *,
    ending: str | None = None,
    limits: Limits = LIMITS,
) -> np.ndarray | str:
    """A file as a value of a modality, decoded as the modality's own were; DataError says why it cannot be one.

    `ending` is what the file is called like; without it the modality's usual way is taken, or the way of an array where
    the content is one.
    """
    known = ways(kind, reading)
    if ending is not None:
        how = next((how for how in known if ending.lower() in DECODERS[how].endings), None)
        if how is None:
            raise DataError(f"expected a file ending with one of {' '.join(endings(kind, reading))}")
    else:
        array = isinstance(source, bytes) and source[:6] == npy.MAGIC_PREFIX and "array" in known
        how = "array" if array and known[0] != "series" else known[0]
    value = Reading(how, shape if how not in ("text", "array") else None).decode(source, limits)
    return of_shape(value, shape) if isinstance(value, np.ndarray) else value


def of_shape(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The same finite numbers; DataError if they have another shape."""
    if values.dtype.kind not in "biuf" or values.shape != tuple(shape):
        raise DataError(f"expected numbers of shape {list(shape)}, got {values.dtype} of {list(values.shape)}")
    if not np.isfinite(values).all():
        raise DataError("expected finite numbers, got NaN or inf")
    return values
