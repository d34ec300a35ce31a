"""Sound files -> waves and log-mel pictures of them: soundfile decodes, scipy resamples, torch.stft does the rest.

One rate and one hop for everything, so that the shape of a sample says all: (400, 64) is 4 seconds in 64 bands.
"""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from centrobind.data.media import LIMITS, Limits, contents
from centrobind.errors import DataError
from centrobind.extras import extra

RATE = 16_000  # samples a second: holds what speech needs, and what speech models are trained on
HOP = 160  # samples between two frames: 100 frames a second
WINDOW = 400  # samples in a frame, 25 ms
BINS = 1024  # length of the transform: zeros around a frame part the low bands of 128, which 512 would leave empty
FLOOR = 1e-8  # added to a band's energy before the logarithm: digital silence is finite, and 16 bits of noise are below
MOST_BANDS = 128
FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
RATES = (1_000, 384_000)
STREAMED = 0x7FFFF000  # bytes: programs that do not know the length write a number from here on
MOST_CHANNELS = 32  # a compressed file of 255 channels would fill gigabytes
LARGEST_FACTOR = 2**14  # of a resampling: its filter has 20 times as many taps, and a prime rate would need millions


def decode_sound(
    source: bytes | str | Path, shape: tuple[int, int] = (400, 64), *, limits: Limits = LIMITS
) -> np.ndarray:
    """A WAV, FLAC, OGG or MP3 file -> float32 of `shape` (frames, bands): log energies, 100 frames a second.

    Channels are averaged, the rate becomes 16,000; what is longer is cut, what is shorter ends in silence. Raises
    DataError.
    """
    _check_shape(shape, 2)
    return fit_wave(*_decoded(source, shape[0] * HOP, limits), shape)


def decode_wave(source: bytes | str | Path, shape: tuple[int] = (64_000,), *, limits: Limits = LIMITS) -> np.ndarray:
    """The same files -> float32 of `shape` (samples,): the wave itself, one channel at 16,000 samples a second."""
    _check_shape(shape, 1)
    return fit_wave(*_decoded(source, shape[0], limits), shape)


def fit_wave(wave: np.ndarray, rate: int, shape: tuple[int, ...]) -> np.ndarray:
    """A decoded wave -> (samples,) at 16,000 a second, or (frames, bands).

    (samples,), (samples, channels) or, as torchaudio and librosa have it, (channels, samples): the channels are fewer.
    Whole numbers are brought to -1..1 by what their type can hold, as in a file.
    """
    _check_shape(shape, len(shape))
    if wave.ndim not in (1, 2) or wave.size == 0:
        raise DataError("a sound without samples" if wave.size == 0 else f"a wave of shape {wave.shape}")
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"{rate} samples a second, expected {RATES[0]:,} to {RATES[1]:,}")
    if wave.ndim == 2 and wave.shape[0] < wave.shape[1]:
        wave = wave.T
    if wave.dtype.kind in "iu":
        wave = _scaled(wave)
    if not np.isfinite(wave).all():
        raise DataError("a sound with NaN or inf in its samples")
    wanted = shape[0] if len(shape) == 1 else shape[0] * HOP
    needed = wave[: -(-wanted * rate // RATE) + 1]
    wave = resampled(needed.mean(1) if needed.ndim == 2 else needed, rate)[:wanted]
    wave = np.pad(wave, (0, wanted - len(wave)))
    return wave if len(shape) == 1 else log_mel(torch.from_numpy(wave), shape[1]).numpy()


def _scaled(wave: np.ndarray) -> np.ndarray:
    """Whole numbers as fractions of what their type can hold: 16 bits are -32768 to 32767, 8 bits are 0 to 255."""
    limits = np.iinfo(wave.dtype)
    if limits.bits > 32:
        raise DataError("a wave of 64-bit whole numbers; how loud is 1? Make it int16, or floats between -1 and 1")
    half = (limits.max + 1) / (1 if limits.min < 0 else 2)
    return ((wave - (0 if limits.min < 0 else half)) / half).astype(np.float32)


def _check_shape(shape: tuple[int, ...], axes: int) -> None:
    if axes == 1 and (len(shape) != 1 or shape[0] < 1):
        raise DataError(f"a wave has shape (samples,), not {tuple(shape)}")
    if axes != 1 and (len(shape) != 2 or shape[0] < 1 or not 1 <= shape[1] <= MOST_BANDS):
        raise DataError(f"a sound has shape (frames, bands up to {MOST_BANDS}), not {tuple(shape)}")


def _decoded(source: bytes | str | Path, samples: int, limits: Limits) -> tuple[np.ndarray, int]:
    """As many moments as `samples` samples at 16,000 a second need, (moments, channels), and their own rate."""
    soundfile = extra("soundfile", of="audio", to="reading sound")
    content = with_its_length(contents(source, limits))
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            _check(file, limits)
            wanted = min(-(-samples * file.samplerate // RATE) + 1, file.frames)  # never more than is needed
            wave = file.read(wanted, dtype="float32", always_2d=True)
            rate, short = file.samplerate, file.format != "MP3" and len(wave) < wanted  # an MP3 only guesses its length
    except DataError:
        raise
    except Exception as error:  # a decoder fed with arbitrary bytes raises whatever it stumbles over
        said = " ".join(str(error).split())[:100]
        raise DataError(f"not a sound of a kind that is read (WAV, FLAC, OGG, MP3), or broken ({said})") from None
    if short:
        raise DataError(f"{len(wave)} samples where {wanted} are promised; is it truncated?")
    return wave, rate


def with_its_length(content: bytes) -> bytes:
    """A WAV whose header says how long its samples are; other files as they are. DataError if samples are missing.

    A writer that cannot go back (a pipe, a crash) leaves 0 or the largest number there: all that follows is meant. Any
    other length is a promise, which libsndfile does not hold a file to: half a file would be a sound that ends early.
    """
    order = {b"RIFF": "<", b"RIFX": ">"}.get(content[:4])
    if order is None or content[8:12] != b"WAVE":
        return content
    at = 12
    while at + 8 <= len(content):
        size = int(struct.unpack(order + "I", content[at + 4 : at + 8])[0])
        there = len(content) - at - 8
        if content[at : at + 4] == b"data":
            whole = struct.unpack(order + "I", content[4:8])[0] == len(content) - 8
            if size >= STREAMED or (size == 0 and there and not whole):
                lengths = struct.pack(order + "I", len(content) - 8), struct.pack(order + "I", there)
                return content[:4] + lengths[0] + content[8 : at + 4] + lengths[1] + content[at + 8 :]
            if size > there:
                raise DataError(f"{there:,} bytes of samples where {size:,} are promised; is it truncated?")
            return content
        at += 8 + size + size % 2
    return content


def _check(file: Any, limits: Limits) -> None:
    if file.format not in FORMATS:
        raise DataError(f"a {file.format} file; sounds that are read are WAV, FLAC, OGG and MP3")
    if file.channels > MOST_CHANNELS:
        raise DataError(f"{file.channels} channels, more than the {MOST_CHANNELS} that are averaged")
    if file.frames <= 0:
        raise DataError("a sound without samples")
    if file.frames > limits.seconds * file.samplerate:
        raise DataError(
            f"{file.frames / file.samplerate:,.0f} seconds, more than the {limits.seconds} that are decoded"
        )


def resampled(wave: np.ndarray, rate: int, *, to: int = RATE) -> np.ndarray:
    """(samples,) at `rate` -> float32 at another, low-pass filtered, by scipy's polyphase filter.

    A rate without a common divisor is taken for the nearest one that has one, less than a tenth of a cent away.
    """
    if rate == to:
        return wave.astype(np.float32)
    from scipy.signal import resample_poly

    factor = Fraction(to, rate)
    if max(factor.numerator, factor.denominator) > LARGEST_FACTOR:
        factor = factor.limit_denominator(int(LARGEST_FACTOR * min(1, rate / to)))
    return resample_poly(wave, factor.numerator, factor.denominator).astype(np.float32)


def log_mel(wave: Tensor, bands: int = 64) -> Tensor:
    """(..., samples) at 16,000 a second -> (..., samples // 160, bands): natural logarithm of the energy in each band.

    Frames of 25 ms under a Hann window, centred on every 10 ms; bands are triangles evenly spread over the mel scale,
    from 0 to 8,000 Hz.
    """
    window = torch.hann_window(WINDOW, device=wave.device)
    spectrum = torch.stft(
        wave, BINS, HOP, WINDOW, window, center=True, pad_mode="constant", onesided=True, return_complex=True
    )
    energy = spectrum.abs().square().transpose(-1, -2)[..., : wave.shape[-1] // HOP, :]
    return (energy @ mel_bands(bands).to(wave.device) + FLOOR).log()


@lru_cache(maxsize=8)
def mel_bands(bands: int) -> Tensor:
    """(513, bands): the weight of every frequency in every band, 1 at its centre and 0 at its neighbours' centres.

    Mel = 2595 log10(1 + f / 700): O'Shaughnessy 1987, as in the HTK book.
    """
    highest = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, bands + 2) / 2595) - 1)
    frequency = np.linspace(0, RATE / 2, BINS // 2 + 1)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return torch.from_numpy(np.minimum(rising, falling).clip(0).astype(np.float32))
