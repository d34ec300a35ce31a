"""Sound: every format, the literal log-mel beside the fast one, and what is refused."""

import io
import math
import struct

import numpy as np
import pytest
import scipy.signal
import torch

from centrobind.data import Limits, decode_sound, decode_wave, log_mel
from centrobind.data.sound import mel_bands, resampled
from centrobind.errors import DataError


def tone(hertz=440.0, seconds=1.0, rate=16_000):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def literal_log_mel(wave, bands):
    """Frame by frame, frequency by frequency, band by band: what log_mel says it does."""
    frames = len(wave) // 160
    padded = np.concatenate([np.zeros(200), wave, np.zeros(400)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    edges = [700 * (10 ** (2595 * math.log10(1 + 8000 / 700) * k / (bands + 1) / 2595) - 1) for k in range(bands + 2)]
    out = np.empty((frames, bands))
    for frame in range(frames):
        energy = np.abs(np.fft.rfft(padded[160 * frame : 160 * frame + 400] * window, 1024)) ** 2
        for band in range(bands):
            low, middle, high = edges[band : band + 3]
            total = 0.0
            for k, e in enumerate(energy):
                hertz = k * 8000 / 512
                if low < hertz <= middle:
                    total += e * (hertz - low) / (middle - low)
                elif middle < hertz < high:
                    total += e * (high - hertz) / (high - middle)
            out[frame, band] = math.log(total + 1e-8)
    return out


def test_log_mel_is_the_literal_one():
    wave = np.random.default_rng(0).normal(size=800) * 0.1
    found = log_mel(torch.from_numpy(wave).float(), 9)
    assert found.shape == (5, 9)
    np.testing.assert_allclose(found.numpy(), literal_log_mel(wave, 9), atol=1e-3)


@pytest.mark.parametrize("bands", [1, 40, 64, 80, 128])
def test_no_band_is_empty_and_neighbours_share_every_frequency(bands):
    weights = mel_bands(bands)
    assert weights.shape == (513, bands) and (weights.sum(0) > 0).all() and weights.max() <= 1
    if bands > 1:
        inner = weights.sum(1)[weights[:, 0].argmax() + 1 : weights[:, -1].argmax()]
        torch.testing.assert_close(inner, torch.ones_like(inner))


def test_a_higher_tone_is_in_a_higher_band():
    loudest = [int(log_mel(torch.from_numpy(tone(hertz)).float()).mean(0).argmax()) for hertz in (200, 800, 3200)]
    assert loudest == sorted(set(loudest))
    assert torch.isfinite(log_mel(torch.zeros(3, 1600))).all() and log_mel(torch.zeros(3, 1600)).shape == (3, 10, 64)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000])
def test_resampling_keeps_a_tone(rate):
    found, expected = resampled(tone(440, 0.5, rate), rate), tone(440, 0.5)
    assert abs(len(found) - len(expected)) <= 1
    inner = slice(800, 7000)
    assert np.abs(found[inner] - expected[inner]).max() < 0.01


@pytest.mark.parametrize("rate", [1_009, 15_991, 44_101, 191_999, 383_983])
def test_a_rate_without_divisors_costs_no_filter_of_millions(rate, monkeypatch):
    """Its tone stays where it is, and both factors of the resampling stay small."""
    factors = []
    real = scipy.signal.resample_poly

    def counted(wave, up, down):
        factors.append((up, down))
        return real(wave, up, down)

    monkeypatch.setattr(scipy.signal, "resample_poly", counted)
    found, expected = resampled(tone(110, 0.5, rate), rate), tone(110, 0.5)
    ((up, down),) = factors
    assert max(up, down) <= 2**14 and abs(up * rate / (down * 16_000) - 1) < 2 ** (0.1 / 1200) - 1
    assert abs(len(found) - len(expected)) <= 16_000 // rate + 1
    inner = slice(1600, 6400)
    assert np.abs(found[inner] - expected[inner]).max() < 0.01


soundfile = pytest.importorskip("soundfile", reason="sound files are read where soundfile is installed")


def saved(wave, kind="WAV", rate=16_000, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "close"), [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.1), ("MP3", 0.1)])
def test_every_format_gives_the_same_wave(kind, close):
    found = decode_wave(saved(tone(), kind), (12_000,))
    assert found.shape == (12_000,) and found.dtype == np.float32
    lag = range(-1200, 1200, 1) if kind == "MP3" else [0]  # an MP3 may begin with the encoder's delay
    inner = slice(2000, 10_000)
    assert min(np.abs(found[2000 + by : 10_000 + by] - tone()[inner]).max() for by in lag) < close


def test_channels_are_averaged_and_what_is_short_ends_in_silence(tmp_path):
    stereo = np.stack([tone(), np.zeros(16_000)], axis=1)
    (tmp_path / "a.wav").write_bytes(saved(stereo, rate=8_000))
    found = decode_wave(tmp_path / "a.wav", (40_000,))
    assert np.abs(found[1000:30_000]).max() == pytest.approx(0.25, abs=0.01) and (found[32_001:] == 0).all()
    mel = decode_sound(tmp_path / "a.wav", (250, 40))
    assert mel.shape == (250, 40) and mel.dtype == np.float32
    np.testing.assert_array_equal(mel, log_mel(torch.from_numpy(found), 40).numpy())


def test_more_channels_than_anybody_records_are_refused():
    with pytest.raises(DataError, match="33 channels, more than the 32"):
        decode_wave(saved(np.zeros((100, 33))), (100,))
    assert decode_wave(saved(np.zeros((100, 32))), (100,)).shape == (100,)


def test_only_what_is_needed_is_decoded():
    long = saved(np.zeros(16_000 * 700, np.int16), "FLAC")
    with pytest.raises(DataError, match="700 seconds, more than the 600"):
        decode_wave(long)
    assert len(decode_wave(long, (100,), limits=Limits(seconds=700))) == 100


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "an empty file"),
        (b"hello there, this is no sound", "not a sound of a kind"),
        (saved(tone(), "AU"), "a AU file; sounds that are read"),
        (saved(tone()[:0]), "without samples"),
        (saved(tone(), rate=500), "500 samples a second"),
        (saved(np.full(99, np.nan), subtype="FLOAT"), "NaN or inf"),
        (saved(tone(), "FLAC")[:9_000], "truncated|broken"),
    ],
)
def test_sounds_that_are_refused(content, says):
    with pytest.raises(DataError, match=says) as caught:
        decode_sound(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(100,), (0, 64), (100, 129), (100, 64, 1)])
def test_shapes_no_sound_has_are_refused(shape):
    with pytest.raises(DataError, match="a sound has shape"):
        decode_sound(saved(tone()), shape)
    with pytest.raises(DataError, match="a wave has shape"):
        decode_wave(saved(tone()), (2, 2))


def test_random_bytes_never_raise_anything_else():
    draw = np.random.default_rng(0)
    whole = [saved(tone(seconds=0.1), kind) for kind in ("WAV", "FLAC", "OGG", "MP3")]
    for round_ in range(200):
        broken = bytearray(whole[round_ % 4])
        for at in draw.integers(min(len(broken), 200), size=draw.integers(1, 8)):
            broken[at] = draw.integers(256)
        try:
            assert np.isfinite(decode_sound(bytes(broken))).all()
        except DataError as error:
            assert "\n" not in str(error)


def wav(samples=8000, order="<", junk=b"", riff=None, data=None, cut=None) -> bytes:
    """A WAV of 16 bits written by hand; its lengths may be other than they are."""
    sound = (9000 * np.sin(np.arange(samples) / 20)).astype(f"{order}i2").tobytes()
    head = b"WAVEfmt " + struct.pack(order + "IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16) + junk
    length = len(sound) if data is None else data
    whole = len(head) + 8 + len(sound) if riff is None else riff
    mark = b"RIFF" if order == "<" else b"RIFX"
    return (mark + struct.pack(order + "I", whole) + head + b"data" + struct.pack(order + "I", length) + sound)[:cut]


LIST = b"LIST" + struct.pack("<I", 7) + b"INFOxyz" + b"\0"


@pytest.mark.parametrize("junk", [b"", LIST])
@pytest.mark.parametrize(
    ("riff", "data"), [(0xFFFFFFFF, 0xFFFFFFFF), (0, 0), (36, 0), (0x80000023, 0x7FFFFFFF), (None, 0xFFFFFFFF)]
)
def test_a_wav_of_a_writer_that_could_not_go_back_is_read_to_its_end(junk, riff, data):
    want = decode_wave(wav(), (8000,))
    assert np.abs(want).max() > 0.2
    assert np.array_equal(decode_wave(wav(junk=junk, riff=riff, data=data), (8000,)), want)
    assert np.array_equal(decode_wave(wav(order=">"), (8000,)), want)


@pytest.mark.parametrize("junk", [b"", LIST])
@pytest.mark.parametrize("cut", [-1, -8000, 100, 60])
def test_a_wav_that_is_cut_is_refused_and_not_filled_with_silence(junk, cut):
    with pytest.raises(DataError, match=r"bytes of samples where 16,000 are promised|broken"):
        decode_wave(wav(junk=junk, cut=cut), (8000,))


def test_a_wav_without_samples_is_none():
    with pytest.raises(DataError, match="without samples"):
        decode_wave(wav(samples=0), (8000,))
    followed = bytearray(wav(samples=0) + LIST)  # what follows is another part of the file, and no sound
    followed[4:8] = struct.pack("<I", len(followed) - 8)
    with pytest.raises(DataError, match="without samples"):
        decode_wave(bytes(followed), (8000,))
