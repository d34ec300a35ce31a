"""A query in another form than training's: the same embeddings where it is clearly the same, else a word about it."""

import warnings

import numpy as np
import pytest
import torch

import centrobind as cb
from centrobind.binder.binder import rebuild_binder
from centrobind.data import Samples, dataset_chunks, read_chunks
from centrobind.data.sound import fit_wave
from centrobind.errors import CentrobindWarning, DataError

DRAW = np.random.default_rng(0)
PICTURES = DRAW.integers(0, 256, (40, 12, 10, 3), np.uint8)
OTHER = DRAW.normal(size=(40, 5))


def trained(values, **options):
    options = {"steps": 2, "dim": 4, "show_progress": False, **options}
    return cb.fit({"a": values, "b": OTHER}, **options)


def same(binder, query, plain):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(binder.embed({"a": query})["a"], binder.embed({"a": plain})["a"], atol=1e-5, rtol=0)


FORMS = {
    "float32 0..1": lambda x: (x / 255).astype(np.float32),
    "float64 0..1": lambda x: x / 255,
    "tensor channels first 0..1": lambda x: torch.tensor(x).permute(0, 3, 1, 2) / 255,
    "channels first": lambda x: x.transpose(0, 3, 1, 2),
    "int64": lambda x: x.astype(np.int64),
    "floats of 0..255": lambda x: x.astype(np.float32),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 40])
def test_a_picture_is_the_same_in_any_form(form, count):
    binder = trained(PICTURES)
    same(binder, FORMS[form](PICTURES[:count]), PICTURES[:count])


def test_white_and_black_pictures_of_floats_are_white_and_black():
    binder = trained(PICTURES)
    for level in (0, 255):
        plain = np.full((1, 12, 10, 3), level, np.uint8)
        same(binder, (plain / 255).astype(np.float32), plain)


def test_trained_on_fractions_and_asked_with_bytes():
    with pytest.warns(CentrobindWarning, match="read as pictures"):
        binder = trained(PICTURES / 255)
    assert binder.kinds["a"] == "image"
    same(binder, PICTURES, PICTURES / 255)
    first = trained((PICTURES / 255).transpose(0, 3, 1, 2))
    assert first.kinds["a"] == "image" and first.towers["a"].inputs.shape == (3, 12, 10)
    same(first, PICTURES, (PICTURES / 255).transpose(0, 3, 1, 2))


def test_grey_pictures_with_and_without_a_channel():
    grey = PICTURES[..., 0]
    binder = trained(grey)
    for form in (grey[..., None], grey[:, None], grey / 255):
        same(binder, form, grey)


def test_sixteen_bits():
    deep = PICTURES.astype(np.uint16) * 257
    with pytest.warns(CentrobindWarning, match="read as pictures"):
        binder = trained(deep)
    same(binder, deep / 65535, deep)


def test_pictures_in_a_range_that_means_something_else_are_refused():
    binder = trained(PICTURES)
    for wrong in (PICTURES / 127.5 - 1, (PICTURES / 255 - 0.45) / 0.22, PICTURES.astype(np.int64) * 257):
        with pytest.raises(DataError, match=r"'a': expected numbers as in training, 0 to 255, got"):
            binder.embed({"a": wrong})
    standard = trained((PICTURES / 255 - 0.45) / 0.22, kinds={"a": "image"})
    with pytest.raises(DataError, match="got 0 to 255; prepare pictures as before training"):
        standard.embed({"a": PICTURES})
    unit = trained(PICTURES / 255, kinds={"a": "image"})
    with pytest.raises(DataError, match=r"got 0 to 255; divide"):
        unit.embed({"a": PICTURES.astype(np.float32)})


def test_the_scale_is_remembered_by_a_saved_binder_and_for_stores(tmp_path):
    binder = trained(PICTURES)
    again = cb.load(cb.save(binder, tmp_path / "b"))
    same(again, PICTURES / 255, PICTURES)
    kinds = {"a": "image"}
    store = cb.open_store(cb.write_store(tmp_path / "s", Samples.of({"a": PICTURES / 255}, kinds=kinds)))
    torch.testing.assert_close(again.embed(store).z, binder.embed({"a": PICTURES}).z, atol=1e-5, rtol=0)
    description = binder.describe()
    for about in description["towers"].values():
        del about["seen"]
    old = rebuild_binder(description)  # of an earlier version: no memory, no opinion
    assert old.embed({"a": PICTURES / 255}).z.isfinite().all()


def test_whole_numbers_and_fractions_of_them_are_not_mixed():
    pixels = PICTURES.reshape(40, -1)
    waves = DRAW.integers(-32768, 32767, (40, 300)).astype(np.int16)
    for given, scale in ((pixels, 255), (waves, 32768)):
        binder = trained(given)
        with pytest.raises(DataError, match="fractions between .* bring them to the scale of training"):
            binder.embed({"a": given[:1] / scale})


@pytest.mark.parametrize("kind", ["vector", "sequence"])
def test_another_unit_is_warned_of(kind):
    values = DRAW.normal(size=(40, 20, 3) if kind == "sequence" else (40, 9))
    binder = trained(values)
    for factor in (1000, 0.001):
        with pytest.warns(CentrobindWarning, match="are they in the same unit"):
            binder.embed({"a": values * factor})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        binder.embed({"a": values[:9] * 0.001})  # of few samples nobody can say
        binder.embed({"a": 3 * values + 2})
        binder.embed({"a": values})


def test_text_and_numbers_are_not_mixed_in_samples():
    texts = [f"w{i % 7} x" for i in range(40)]
    binder = cb.fit({"a": texts, "b": OTHER}, steps=2, dim=4, show_progress=False)
    with pytest.raises(DataError, match="'a': expected text as in training, got vector"):
        binder.embed(Samples.of({"a": OTHER}))
    with pytest.raises(DataError, match="'b': expected vector as in training, got text"):
        binder.embed(Samples.of({"b": texts}))
    with pytest.raises(DataError, match=r"shape \(5,\), as in training, got \(5, 1\)"):
        binder.embed(Samples.of({"b": OTHER[..., None]}))


KINDS = {
    "bytes": (PICTURES, "image", False),
    "channels first, standardised": (DRAW.normal(size=(4, 3, 16, 20)), "image", False),
    "grey with a channel": (DRAW.random((4, 1, 16, 20)), "image", False),
    "fractions, channels last": (DRAW.random((4, 16, 20, 3)), "image", True),
    "halves": (DRAW.random((4, 16, 20, 3)).astype(np.float16), "image", True),
    "whole numbers": (PICTURES.astype(np.int64), "image", True),
    "a skeleton": (DRAW.normal(size=(4, 100, 25, 3)), "sequence", False),
    "grey fractions": (DRAW.random((4, 16, 20)), "sequence", True),
    "a series": (DRAW.normal(size=(4, 100, 9)), "sequence", False),
    "a short series between 0 and 1": (DRAW.random((4, 100, 3)), "sequence", False),
    "video": (DRAW.integers(0, 255, (4, 5, 9, 8, 3), np.uint8), "sequence", False),
}


@pytest.mark.parametrize("name", KINDS)
def test_how_arrays_are_read(name):
    values, kind, said = KINDS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert Samples.of({"a": values}).columns["a"].kind == kind
    assert len(caught) == said and all("else say kinds={'a':" in str(each.message) for each in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for chosen in ("image", "sequence"):
            assert Samples.of({"a": values}, kinds={"a": chosen}).columns["a"].kind == chosen


def test_all_chunks_are_read_as_the_first(tmp_path):
    rows = [{"a": DRAW.random((9, 8, 3))} for _ in range(1024)] + [{"a": 2 * DRAW.random((9, 8, 3))} for _ in range(9)]
    with pytest.warns(CentrobindWarning, match="read as pictures"):
        chunks = list(dataset_chunks(rows))
    assert [chunk.columns["a"].kind for chunk in chunks] == ["image", "image"]
    large = DRAW.random((2100, 64, 64, 3), np.float32)
    large[-1] *= 2
    np.savez(tmp_path / "d.npz", x_a=large, x_b=np.ones((2100, 2)))
    with pytest.warns(CentrobindWarning, match="read as pictures"):
        kinds = [chunk.columns["a"].kind for chunk in read_chunks(tmp_path / "d.npz")]
    assert len(kinds) > 1 and set(kinds) == {"image"}


def test_sounds_as_libraries_give_them():
    wave = (0.5 * np.sin(np.arange(1600) * 0.1)).astype(np.float32)
    expected = fit_wave(wave, 16_000, (1600,))
    forms = {
        "int16": np.round(wave * 32768).astype(np.int16),
        "int32": np.round(wave.astype(np.float64) * 2**31).astype(np.int32),
        "uint8": np.round(wave * 128 + 128).astype(np.uint8),
        "channels first": np.stack([wave, wave]),
        "channels last": np.stack([wave, wave], 1),
        "int16, channels first": np.stack([np.round(wave * 32768).astype(np.int16)] * 2),
    }
    for name, given in forms.items():
        got = fit_wave(given, 16_000, (1600,))
        np.testing.assert_allclose(got, expected, atol=5e-3 if name == "uint8" else 2e-5, err_msg=name)
    with pytest.raises(DataError, match="64-bit whole numbers"):
        fit_wave(np.round(wave * 32768).astype(np.int64), 16_000, (1600,))
