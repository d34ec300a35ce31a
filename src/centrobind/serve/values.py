"""Values for a browser to show and play, and what people drop on it back to values."""

from __future__ import annotations

import io
import json
import threading
import wave
from typing import Any

import numpy as np
import torch

from centrobind.data import Column, Limits, decode_text
from centrobind.data.decoding import decode_as, of_shape
from centrobind.data.sound import BINS, FLOOR, HOP, RATE, WINDOW, log_mel, mel_bands
from centrobind.errors import DataError

# Tighter than for an import, whose files the user chose: these come from whoever can reach the page.
LIMITS = Limits(bytes=2**24, pixels=25_000_000, seconds=120, numbers=2**20, characters=10_000)
MOST_NUMBERS = 100_000  # of a series that is sent to be sketched
ROUNDS = 32  # of phase retrieval
_DECODING = threading.Lock()

File = tuple[bytes, str]  # content and its type


def shows(column: Column) -> str:
    """What a person would call it: image, sound, series, text or numbers."""
    how = column.reading.partition(":")[0]
    if how in ("sound", "wave"):
        return "sound"
    return {"image": "image", "sequence": "series", "text": "text", "vector": "numbers"}[column.kind]


def as_file(column: Column, row: int, *, sketch: bool = False) -> File:
    """One sample's value: PNG, WAV, text or JSON; `sketch` draws a sound instead, as a PNG of its spectrum in time."""
    value = column.take(np.array([row]))[0]
    what = shows(column)
    if what == "image":
        return _png(_picture(value)), "image/png"
    if what == "sound":
        return (_png(_spectrum(value)), "image/png") if sketch else (_wav(_heard(value)), "audio/wav")
    if what == "text":
        return value.encode("utf-8", "replace"), "text/plain; charset=utf-8"
    every = -(-value.size // MOST_NUMBERS)
    shown = {"shape": list(value.shape), "every": every, "values": np.asarray(value[::every], np.float64).tolist()}
    return json.dumps(shown).encode(), "application/json"


def _picture(value: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3 or 4) from any layout that a modality of pictures can have."""
    if value.ndim == 3 and value.shape[-1] not in (1, 3, 4):
        value = np.moveaxis(value, 0, -1)
    if value.ndim == 3 and value.shape[-1] not in (3, 4):
        value = value[..., 0]
    if value.dtype != np.uint8:
        low, high = float(value.min()), float(value.max())
        value = ((value - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    return value


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def _spectrum(value: np.ndarray) -> np.ndarray:
    """(bands, time) uint8: loud is bright, low is below."""
    bands = log_mel(torch.from_numpy(np.array(value, np.float32))).numpy() if value.ndim == 1 else value
    loud = float(bands.max())
    seen = ((bands - loud) / 12 + 1).clip(0, 1)  # the loudest 12 nats, 52 dB
    return (255 * seen.T[::-1]).astype(np.uint8)


def _heard(value: np.ndarray) -> np.ndarray:
    """(samples,) at RATE: the wave itself, or one made up to have these log energies (frames, bands).

    Phases that were never stored are found by Griffin & Lim (1984); it sounds like the original through a wall.
    """
    if value.ndim == 1:
        return np.asarray(value, np.float32)
    bands = mel_bands(value.shape[1])
    energy = (torch.from_numpy(np.array(value, np.float32)).exp() - FLOOR).clamp(min=0)
    size = (energy / bands.sum(0) @ bands.T).T.sqrt()
    window, length = torch.hann_window(WINDOW), len(value) * HOP
    phase = 2 * torch.pi * torch.rand(size.shape, generator=torch.Generator().manual_seed(0))
    for _ in range(ROUNDS):
        heard = torch.istft(torch.polar(size, phase), BINS, HOP, WINDOW, window, length=length - HOP)
        spectrum = torch.stft(heard, BINS, HOP, WINDOW, window, pad_mode="constant", return_complex=True)
        phase = spectrum[:, : len(value)].angle()
    return heard.numpy()


def _wav(samples: np.ndarray) -> bytes:
    """16 bits, as loud as they get without clipping, with the first and the last 5 ms faded."""
    samples = samples / max(float(np.abs(samples).max()), 1e-6) * 0.7
    ramp = np.minimum(np.arange(len(samples)) / (RATE * 0.005), 1)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((samples * ramp * ramp[::-1] * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def from_upload(content: bytes, column: Column) -> Any:
    """A dropped file as a value of a modality, decoded as the modality's own were; DataError says why it cannot be.

    One file at a time, whatever the number of threads: each may take some hundred megabytes for a moment.
    """
    with _DECODING:
        return decode_as(column.kind, column.shape, column.reading, content, limits=LIMITS)


def from_json(given: Any, column: Column | None) -> Any:
    """A text, or nested lists of numbers, as a value of a modality; DataError if it is neither or does not fit.

    Without a column: as a text.
    """
    if column is None or column.kind == "text":
        if not isinstance(given, str):
            raise DataError(f"expected a text, got {type(given).__name__}")
        return decode_text(given.encode("utf-8", "replace"), limits=LIMITS)
    if not isinstance(given, list):
        raise DataError(f"expected lists of numbers of shape {list(column.shape)}, got {type(given).__name__}")
    try:
        values = np.array(given)
    except ValueError:
        raise DataError("expected lists of numbers, all of one length") from None
    # As written: embedding subtracts the mean before it rounds.
    return np.asarray(of_shape(values, column.shape), np.float64)
