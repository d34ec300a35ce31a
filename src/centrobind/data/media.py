"""Untrusted files -> arrays: pictures, series, text. Pure functions of a path or of bytes, with limits.

Each takes the shape of one sample, the one that a store holds and a binder was trained on, and returns exactly that
shape. What is broken, too large or of another type raises DataError with one line that says why; nothing of a file
is run or unpickled, and a header is checked before what it promises is allocated. Sound is in sound.py.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from centrobind.data.samples import NOT_AN_ARRAY
from centrobind.errors import DataError

PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # never EPS: pillow hands it to ghostscript, which runs it
ORIENTATION = 0x0112  # its number in EXIF
MOST_AXES = 32  # of an array: what every numpy can hold
STRIP = 2**20  # pixels that are converted at a time
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> what pillow calls it


@dataclass(frozen=True)
class Limits:
    """The most that is decoded of one file; beyond it the file is refused, whatever is in it."""

    bytes: int = 2**27  # of the file as it lies on the disk
    pixels: int = 50_000_000  # of a picture before it is made smaller
    seconds: int = 600  # of a sound
    numbers: int = 2**22  # of a series
    characters: int = 100_000  # of a text

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Limits:
        """The usual ones, but for those given as text; DataError for a name or a number that is none."""
        known = {field.name for field in fields(cls)}
        for name, value in given.items():
            if name not in known or not value.isdecimal() or int(value) == 0:
                raise DataError(f"limit {name}={value}: expected one of {sorted(known)} and a whole number above 0")
        return cls(**{name: int(value) for name, value in given.items()})


LIMITS = Limits()


def decode_image(
    source: bytes | str | Path, shape: tuple[int, ...] = (64, 64, 3), *, limits: Limits = LIMITS
) -> np.ndarray:
    """A PNG, JPEG, WebP, GIF, BMP or TIFF file -> uint8 of `shape`: (H, W) grey, (H, W, 3) or (H, W, 4).

    Turned upright as its EXIF says, the largest middle part of the wanted proportions, made smaller or larger to H x W;
    transparent parts become white, of an animation only the first frame counts. Raises DataError.
    """
    from PIL import Image

    _check_picture_shape(shape)
    content = contents(source, limits)
    try:
        with Image.open(io.BytesIO(content), formats=PICTURES) as picture:
            return fit_picture(picture, shape, limits)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"more pixels than the {limits.pixels:,} that are decoded") from None
    except Image.UnidentifiedImageError:
        raise DataError(f"not a picture of a kind that is read ({', '.join(PICTURES)})") from None
    except DataError:
        raise
    except Exception as error:  # a decoder fed with arbitrary bytes raises whatever it stumbles over
        raise DataError(f"a broken picture ({_short(error)})") from None


def fit_picture(picture: Any, shape: tuple[int, ...], limits: Limits = LIMITS) -> np.ndarray:
    """The same for a picture that pillow has opened, which is changed on the way."""
    from PIL import Image, ImageOps

    _check_picture_shape(shape)
    height, width = shape[:2]
    if picture.width * picture.height > limits.pixels:
        raise DataError(f"{picture.width} x {picture.height} pixels, more than the {limits.pixels:,} that are decoded")
    picture.draft(None, (2 * max(height, width),) * 2)  # a JPEG at a half, a quarter or an eighth, if that does
    upright = _converted(picture, MODES[shape[2] if len(shape) == 3 else 1])
    ImageOps.exif_transpose(upright, in_place=True)
    fitted = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
    return np.array(fitted, np.uint8).reshape(shape)


def _converted(picture: Any, mode: str) -> Any:
    """The picture in 8 bits of `mode`, white where it is transparent unless the mode can say so.

    Strip by strip: a conversion of the whole holds four to eight times its pixels in between, and a file of 48 kB can
    have 25 million of them.
    """
    from PIL import Image

    if picture.mode == mode and not picture.has_transparency_data:
        return picture
    picture = _exactly_transparent(picture)
    picture.load()  # which turns a TIFF upright, and only a TIFF
    orientation = picture.getexif().get(ORIENTATION, 1)
    whole = Image.new(mode, picture.size)
    rows = max(1, STRIP // picture.width)
    for top in range(0, picture.height, rows):
        strip = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        whole.paste(_in_mode(_eight_bits(strip), mode), (0, top))
    whole.getexif()[ORIENTATION] = orientation
    return whole


def _check_picture_shape(shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 3) or (shape[2:] or (1,))[0] not in MODES or min(shape) < 1:
        raise DataError(f"a picture has shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {tuple(shape)}")


def _eight_bits(picture: Any) -> Any:
    """16-bit grey as 8-bit grey: pillow's own conversion would cut off everything above 255."""
    from PIL import Image

    if picture.mode in ("I", "F"):
        raise DataError("a picture of 32-bit pixels, which have no stated range; save it with 8 or 16 bits")
    if not picture.mode.startswith("I;16"):
        return picture
    values = np.array(picture)
    grey = Image.fromarray((values / 257).round().astype(np.uint8))
    clear = picture.info.get("transparency")
    if not isinstance(clear, int):
        return grey
    # In 16 bits: another grey with the same upper half is not transparent.
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))


def _exactly_transparent(picture: Any) -> Any:
    """A 16-bit colour PNG in which one colour is transparent, with that as alpha; any other picture as it is.

    Pillow keeps the upper half of each number, in which other colours are the same; read once more as if the bytes of
    a number were the other way round, the lower halves come out.
    """
    from PIL import Image

    clear = picture.info.get("transparency")
    tiles = [tile for tile in picture.tile if tile[0] == "zip" and tile[3] == "RGB;16B"]
    if picture.format != "PNG" or not isinstance(clear, tuple) or not tiles or not hasattr(picture, "fp"):
        return picture
    place = picture.fp.tell()
    lower = Image.open(io.BytesIO(_all_of(picture)), formats=("PNG",))
    lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
    low, colour = np.array(lower), picture
    picture.fp.seek(place)
    del colour.info["transparency"]
    wanted = np.array(clear)
    same = (np.array(colour) == wanted >> 8).all(-1) & (low == wanted & 255).all(-1)
    colour.putalpha(Image.fromarray(np.where(same, 0, 255).astype(np.uint8)))
    return colour


def _all_of(picture: Any) -> bytes:
    picture.fp.seek(0)
    return bytes(picture.fp.read())


def _in_mode(picture: Any, mode: str) -> Any:
    from PIL import Image

    if mode != "RGBA" and (picture.has_transparency_data or picture.mode in ("LA", "PA", "RGBA")):
        seen = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return picture if picture.mode == mode else picture.convert(mode)


def decode_series(
    source: bytes | str | Path, shape: tuple[int, ...] | None = None, *, limits: Limits = LIMITS
) -> np.ndarray:
    """Numbers over time from a .npy or a CSV file -> float32 (time, channels...).

    A CSV has a line per moment and a column per channel, separated by commas, semicolons or tabs; a first line without
    any number is a heading. `shape` (steps,) or (steps, channels...) brings every series to `steps`, by straight lines
    between its moments; without it the series stays as long as it is. Raises DataError.
    """
    content = contents(source, limits)
    values = decode_npy(content, limits=limits) if content[:6] == npy.MAGIC_PREFIX else _csv(content, limits)
    values = (values[:, None] if values.ndim == 1 else values).astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"NaN or inf in {int((~np.isfinite(values)).sum())} of {values.size} numbers")
    if shape is None:
        return values
    if tuple(shape[1:]) not in ((), values.shape[1:]):
        raise DataError(f"expected {tuple(shape[1:])} channels, got {values.shape[1:]}")
    return np.ascontiguousarray(_in_steps(values, shape[0]))


def _in_steps(values: np.ndarray, steps: int) -> np.ndarray:
    """Linear interpolation at evenly spread moments, the first and the last kept."""
    at = np.linspace(0, len(values) - 1, steps)
    before = np.minimum(at.astype(np.int64), max(len(values) - 2, 0))
    share = (at - before).astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
    after = np.minimum(before + 1, len(values) - 1)
    return values[before] * (1 - share) + values[after] * share


def decode_npy(source: bytes | str | Path, *, limits: Limits = LIMITS) -> np.ndarray:
    """The array in a .npy file, of numbers and never unpickled, any shape; DataError if it is broken or empty."""
    content = contents(source, limits)
    file = io.BytesIO(content)
    shape, fortran, dtype = npy_header(file)
    if dtype.kind not in "biuf":
        pickled = "; objects would be unpickled, which is refused (allow_pickle)" if dtype.hasobject else ""
        raise DataError(f"expected numbers, got {dtype}{pickled}")
    count = math.prod(shape)
    if not 0 < count <= limits.numbers:
        raise DataError(f"{count:,} numbers, expected 1 to {limits.numbers:,}" if count else "an array without numbers")
    if len(content) - file.tell() != count * dtype.itemsize:
        raise DataError(f"{len(content) - file.tell():,} bytes of {count * dtype.itemsize:,}; is it truncated?")
    return np.frombuffer(content, dtype, count, file.tell()).reshape(shape, order="F" if fortran else "C")


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and type that the header of a .npy promises; DataError for what no array has.

    numpy itself takes negative sizes, whose product is a number of bytes again if there are two of them.
    """
    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
    except NOT_AN_ARRAY as error:
        raise DataError(f"not a .npy file ({_short(error)})") from None
    if len(shape) > MOST_AXES or any(type(size) is not int or size < 0 for size in shape):
        raise DataError(f"not a .npy file (a shape of {str(shape)[:60]})")
    return shape, fortran, dtype


def _csv(content: bytes, limits: Limits) -> np.ndarray:
    text = _utf8(content, "neither a .npy nor a CSV file")
    mark = max(",;\t", key=text.split("\n", 1)[0].count)
    if (most := text.count(mark) + text.count("\n")) > limits.numbers:
        raise DataError(f"about {most:,} numbers, more than the {limits.numbers:,} that are read")
    lines = [line.split(mark) for line in text.splitlines() if line.strip()]
    if lines and all(_number(cell) is None for cell in lines[0]):
        lines = lines[1:]
    if not lines:
        raise DataError("a series without numbers")
    values = np.empty((len(lines), len(lines[0])), np.float32)
    for number, cells in enumerate(lines):
        found = [_number(cell) for cell in cells]
        if len(found) != values.shape[1]:
            raise DataError(f"moment {number + 1} has {len(found)} columns, the first one {values.shape[1]}")
        if None in found:
            at = found.index(None)
            raise DataError(f"moment {number + 1}, column {at + 1}: expected a number, got {cells[at].strip()[:20]!r}")
        values[number] = found
    return values


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def decode_text(source: bytes | str | Path, *, limits: Limits = LIMITS) -> str:
    """A UTF-8 text file -> its text, without white space around it; DataError if there is none, or too much."""
    text = _utf8(contents(source, limits), "not a text in UTF-8").strip()
    if not text:
        raise DataError("a text without a letter")
    if len(text) > limits.characters:
        raise DataError(f"{len(text):,} characters, more than the {limits.characters:,} that are read")
    return text


def _utf8(content: bytes, otherwise: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{otherwise} (byte {error.start})") from None
    if "\0" in text:
        raise DataError(f"{otherwise} (it holds zero bytes)")
    return text


def contents(source: bytes | str | Path, limits: Limits = LIMITS) -> bytes:
    """The bytes of a file, or the bytes given; DataError if there are none, or more than the limit."""
    if not isinstance(source, bytes | bytearray | memoryview):
        path = Path(source)
        try:
            if not path.is_file():  # a pipe or a device would be read for ever
                raise DataError("not an ordinary file" if path.exists() else "no such file")
            with open(path, "rb") as file:
                source = file.read(limits.bytes + 1)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})") from None
        except ValueError as error:  # a name with a zero byte in it
            if isinstance(error, DataError):
                raise
            raise DataError(f"not the name of a file ({error})") from None
    if len(source) == 0:
        raise DataError("an empty file")
    if len(source) > limits.bytes:
        raise DataError(f"more than the {limits.bytes:,} bytes that are read of one file")
    return bytes(source)


def _short(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 100 else said[:97] + "..."
