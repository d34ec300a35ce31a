import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from centrobind.data import builtin, inspect_samples
from centrobind.errors import DataError


@pytest.fixture(scope="module")
def glyphs():
    return builtin.glyphs()


def test_glyphs_are_what_the_docstring_says(glyphs):
    assert 5000 < len(glyphs) < 6500 and glyphs.modalities == ("image", "outline", "name")
    assert glyphs.present.all()
    assert [column.kind for column in glyphs.columns.values()] == ["image", "sequence", "text"]
    assert glyphs.columns["image"].shape == (32, 32) and glyphs.columns["outline"].shape == (64, 3)
    share = {name: len(glyphs.part(name)) / len(glyphs) for name in glyphs.split.names}
    assert share["train"] == pytest.approx(0.7, abs=0.02) and share["test"] == pytest.approx(0.2, abs=0.02)


def test_no_drawing_is_in_two_splits(glyphs):
    assert not any("in train as well" in finding for finding in inspect_samples(glyphs).findings)


def test_glyphs_show_what_their_name_says(glyphs):
    ids = glyphs.ids[:]
    for code, name in (("U+265E", "black chess knight"), ("U+03C8", "greek small letter psi"), ("U+0041", "latin")):
        assert glyphs.columns["name"].values[[ids.index(code)]][0].startswith(name)
    bar, dot = (ids.index(code) for code in ("U+007C", "U+002E"))  # | and .
    outline = glyphs.columns["outline"].values
    assert np.ptp(outline[bar, :, 1]) > 5 * np.ptp(outline[bar, :, 0])
    assert np.ptp(outline[bar, :, 1]) > 5 * np.ptp(outline[dot, :, 1])
    image = glyphs.columns["image"].values
    rows = image[bar].max(1) > 60
    assert rows.sum() > 20 and (image[bar].max(0) > 60).sum() < 8 and (image[dot].max(1) > 60).sum() < 8


def test_outline_walks_each_contour_once_at_even_steps(glyphs):
    ids = glyphs.ids[:]
    o, i = (glyphs.columns["outline"].values[ids.index(code)] for code in ("U+004F", "U+0069"))
    assert o[:, 2].sum() == 2 and i[:, 2].sum() == 2  # a ring has two contours, i a stem and a dot
    assert np.diff(np.sort(i[:, 1])).max() > 0.08, "no point lies between the stem and its dot: the pen was up"
    steps = np.linalg.norm(np.diff(o[:, :2], axis=0), axis=1)[o[1:, 2] == 0]
    assert steps.max() < 1.1 * np.median(steps) and abs(o[:, 0].max() + o[:, 0].min()) < 0.02


def test_glyphs_are_the_same_every_time(glyphs):
    again = builtin.glyphs()
    assert again.ids[:] == glyphs.ids[:] and np.array_equal(again.split.codes, glyphs.split.codes)
    assert np.array_equal(again.columns["outline"].values, glyphs.columns["outline"].values)


def accuracy(x, y):
    half = len(x) // 2
    return LogisticRegression(max_iter=500).fit(x[:half], y[:half]).score(x[half:], y[half:])


def test_synthetic_shows_its_class_in_every_modality_and_less_with_noise():
    samples = builtin.synthetic(2000, 3, noise=[0.1, 1.0, 5.0])
    assert samples.modalities == ("m0", "m1", "m2") and samples.split.names == ("train", "valid", "test")
    scores = [accuracy(samples.columns[name].values, samples.label.codes) for name in samples.modalities]
    assert scores[0] > scores[1] > scores[2] > 0.15 and scores[0] > 0.7


def test_synthetic_gaps_have_their_share_and_leave_nobody_empty():
    samples = builtin.synthetic(3000, 5, missing=[0, 0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(1 - samples.present.mean(1), [0, 0.2, 0.4, 0.6, 0.8], atol=0.05)
    assert builtin.synthetic(500, 2, missing=0.9).present.any(0).all()


def test_shared_nuisance_ties_only_its_pair():
    def tie(a, b, samples):
        """How much of b is linear in a beyond the class."""
        x, y = (samples.columns[name].values.astype(float) for name in (a, b))
        codes = samples.label.codes
        for values in (x, y):
            for c in set(codes):
                values[codes == c] -= values[codes == c].mean(0)
        return 1 - (y - x @ np.linalg.lstsq(x, y, rcond=None)[0]).var() / y.var()

    plain = builtin.synthetic(3000, 3, noise=0.1, latent=2)
    tied = builtin.synthetic(3000, 3, noise=0.1, latent=2, shared_nuisance={(0, 1): 6})
    assert tie("m0", "m1", tied) > tie("m0", "m1", plain) + 0.1
    assert tie("m0", "m1", tied) > tie("m0", "m2", tied) + 0.1


def test_xor_needs_both():
    samples = builtin.xor(3000, bits=2)
    a, b = (samples.columns[name].values for name in "ab")
    label = samples.label.codes
    assert (
        accuracy(a, label) < 0.56 and accuracy(b, label) < 0.56 and accuracy(samples.columns["c"].values, label) > 0.95
    )
    joint = np.einsum("ni,nj->nij", a, b).reshape(len(a), -1)  # products of the two know what neither knows
    assert accuracy(joint, label) > 0.9


@pytest.mark.parametrize(
    "wrong", [{"samples": 5}, {"modalities": 1}, {"missing": 1.0}, {"noise": [0.1, 0.2]}, {"classes": 1}]
)
def test_impossible_synthetic_data_is_said(wrong):
    with pytest.raises(DataError):
        builtin.synthetic(**wrong)
