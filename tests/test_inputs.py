import unicodedata
import warnings

import numpy as np
import pytest
import torch

import centrobind as cb
from centrobind.binder.binder import build_binder, rebuild_binder
from centrobind.binder.checkpoint import TOWERS, read_tensors, write_tensors
from centrobind.binder.inputs import INPUTS, Numbers, Pixels, Words, split_words
from centrobind.data import Samples, open_store, read_chunks, write_store
from centrobind.errors import CentrobindWarning, CheckpointError, DataError, StoreError


def learned(kind, values, present=None, **options):
    column = Samples.of({"a": values}, present=present and {"a": present}, kinds={"a": kind}).columns["a"]
    inputs = INPUTS[kind](kind, column.shape, **options)
    inputs.learn(column)
    return inputs


def test_numbers_are_standardised_by_what_is_present():
    draw = np.random.default_rng(0)
    x = 5 + 3 * draw.normal(size=(500, 4))
    inputs = learned("vector", list(x[:400]) + [None] * 100)
    out = inputs(x[:400].astype(np.float32))
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(inputs(x[400:]), (torch.tensor(x[400:]).float() - inputs.mean) / inputs.std)


def test_a_constant_feature_stays_at_zero_even_when_it_is_large_and_wobbles_by_rounding():
    x = np.full((50, 2), 1e6, np.float32)
    x[25:] = np.nextafter(np.float32(1e6), np.float32(2e6))
    assert learned("vector", x)(x).abs().max() <= 0.1


def test_sequences_keep_time_and_flatten_channels():
    x = np.random.default_rng(0).normal(size=(30, 6, 4, 3)) * np.arange(1, 13).reshape(4, 3)
    inputs = learned("sequence", x)
    assert inputs.shape == (6, 12) and inputs(x).shape == (30, 6, 12)
    torch.testing.assert_close(inputs(x).std((0, 1), correction=0), torch.ones(12), atol=1e-4, rtol=0)
    assert torch.equal(inputs(x)[:, :, 4].argmax(), torch.tensor(x.reshape(30, 6, 12)[:, :, 4].argmax()))


@pytest.mark.parametrize(("shape", "prepared"), [((9, 8), (1, 9, 8)), ((9, 8, 3), (3, 9, 8)), ((5, 9, 8), (5, 9, 8))])
def test_images_become_channels_first(shape, prepared):
    x = np.random.default_rng(0).integers(0, 255, (20, *shape), np.uint8)
    inputs = learned("image", x)
    out = inputs(x)
    assert inputs.shape == prepared and out.shape == (20, *prepared)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(prepared[0]), atol=1e-4, rtol=0)
    if shape == (9, 8, 3):
        back = out * inputs.std + inputs.mean
        torch.testing.assert_close(back[7, 2, 4, 5], torch.tensor(float(x[7, 4, 5, 2])), atol=1e-3, rtol=0)


def test_an_image_of_one_or_four_axes_is_refused():
    with pytest.raises(DataError, match=r"\(H, W\)"):
        Pixels("image", (5,))


def test_words_are_numbered_by_how_common_they_are():
    inputs = learned("text", ["the cat", "the dog", "the dog!", "a cat"])
    assert inputs.words() == ["the", "cat", "dog", "!", "a"] and inputs.shape == (7,)
    assert inputs(["the bird", "", "Dog THE"]).tolist() == [[2, 1], [0, 0], [4, 2]]
    assert inputs([]).shape == (0, 1)


def test_words_have_limits():
    inputs = learned("text", ["a b c d", "a b c", "a b"], most=2, longest=3)
    assert inputs.words() == ["a", "b"] and inputs(["a b c d e f"]).shape == (1, 3)
    assert split_words("Héllo, wörld-42!") == ["héllo", ",", "wörld", "-", "42", "!"]


def test_another_shape_than_in_training_is_said():
    with pytest.raises(DataError, match=r"shape \(4,\).*got \(5,\)"):
        Numbers("vector", (4,))(np.zeros((2, 5)))


def test_what_was_learned_is_saved_with_the_weights():
    first = learned("vector", np.random.default_rng(0).normal(3, 2, (40, 4)))
    second = Numbers("vector", (4,))
    second.load_state_dict(first.state_dict())
    x = np.ones((2, 4))
    assert torch.equal(first(x), second(x))
    words = Words()
    words.set_words(["a", "b"])
    assert words(["b a"]).tolist() == [[3, 2]]


OFFSETS = {
    "tesla": (0, 1e-13),
    "volts": (0, 1e-6),
    "metres": (4.5e6, 2.0),
    "seconds": (1.7e9, 1.0),
    "days": (2.46e6, 1e-3),
}


@pytest.mark.parametrize("unit", OFFSETS)
@pytest.mark.parametrize("kind", ["vector", "sequence", "image"])
def test_the_unit_of_a_measurement_changes_nothing(kind, unit):
    """(x - mean) / std in the unit of x is what it is for x itself, of one sample as of all, to float32's digits."""
    offset, size = OFFSETS[unit]
    plain = np.random.default_rng(0).normal(size={"vector": (200, 5), "sequence": (50, 12, 5)}.get(kind, (20, 9, 8, 3)))
    expected = learned(kind, plain)(plain)
    inputs = learned(kind, offset + size * plain)
    given = Samples.of({"a": offset + size * plain}, exact=True).columns["a"].values
    torch.testing.assert_close(inputs(given), expected, atol=2e-3 if offset else 1e-5, rtol=0)
    assert torch.equal(inputs(given[3:4]), inputs(given)[3:4])


def test_a_constant_among_tiny_measurements_stays_at_zero():
    x = np.random.default_rng(0).normal(size=(50, 3)) * 1e-13
    x[:, 1] = 0.1 + 0.2
    x[::2, 1] = 0.3  # the same but for rounding
    out = learned("vector", x)(x)
    assert out[:, 1].abs().max() < 1e-6 and out[:, [0, 2]].std(0, correction=0).allclose(torch.ones(2), atol=1e-4)


@pytest.mark.parametrize("values", [np.float16(1000) + np.zeros((50, 1), np.float16), np.full((50, 1), 200, np.uint8)])
def test_a_constant_of_few_bits_stays_at_zero(values):
    values = values.copy()
    assert learned("vector", values)(values).abs().max() == 0
    if values.dtype == np.float16:
        values[::2] = np.nextafter(np.float16(1000), np.float16(2000))
        assert learned("vector", values)(values).abs().max() <= 0.5
    else:  # a rare one is no rounding
        values[0] = 201
        assert learned("vector", values)(values)[0].item() == pytest.approx(7, abs=1e-3)


def test_a_unit_that_float32_cannot_hold_is_refused():
    with pytest.raises(DataError, match="larger unit"):
        learned("vector", np.random.default_rng(0).normal(size=(20, 2)) * 1e-42)
    with pytest.raises(DataError, match="beyond what float32 can hold"):
        Samples.of({"a": np.array([[1e300], [0.0]])})


def test_what_float32_rounds_away_of_a_mean_is_saved(tmp_path):
    seconds = 1.7e9 + np.random.default_rng(0).normal(size=(60, 2))
    binder = cb.fit(
        {"a": seconds, "b": np.random.default_rng(1).normal(size=(60, 3))}, steps=2, dim=4, show_progress=False
    )
    again = cb.load(cb.save(binder, tmp_path / "b"))
    assert torch.equal(binder.embed({"a": seconds}).z, again.embed({"a": seconds}).z)
    assert again.fingerprint == binder.fingerprint
    one_by_one = torch.cat([again.embed({"a": row[None]}).z for row in seconds], 1)
    torch.testing.assert_close(one_by_one, binder.embed({"a": seconds}).z, atol=1e-6, rtol=0)


def test_a_store_keeps_what_float32_would_blur(tmp_path):
    draw = np.random.default_rng(0).normal(size=(2000, 2))
    arrays = {"x_seconds": 1.7e9 + draw, "x_plain": draw}
    np.savez(tmp_path / "d.npz", **arrays)
    opened = open_store(write_store(tmp_path / "s", read_chunks(tmp_path / "d.npz")), verify=True)
    assert np.array_equal(opened.columns["seconds"].values, 1.7e9 + draw)
    assert opened.columns["plain"].values.dtype == np.float32
    chunks = [Samples.of({"a": draw}), Samples.of({"a": 1.7e9 + draw}, ids=range(2000, 4000))]
    with pytest.raises(StoreError, match="from sample 2000 on, its numbers differ by less than float32 can hold"):
        write_store(tmp_path / "t", chunks)
    assert len(open_store(write_store(tmp_path / "u", chunks[::-1]))) == 4000


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named_before_a_mean_is_learned_from_it(tmp_path, bad):
    ids = [f"s{i}" for i in range(60)]
    present = {"a": np.arange(60) % 3 > 0}
    samples = Samples.of({"a": np.ones((60, 2)) * np.arange(60)[:, None], "b": np.eye(60)}, ids=ids, present=present)
    store = write_store(tmp_path / "s", samples)
    values = np.lib.format.open_memmap(store / "x_a.npy", "r+")
    values[[7, 9], 1] = bad  # samples 11 and 14: of three, the first has none
    values.flush()
    with pytest.raises(DataError, match=r"'a': NaN or inf in 2 of the 40 .*first ids \['s11', 's14'\]"):
        cb.fit(open_store(store), steps=1, valid=samples, show_progress=False)


@pytest.mark.parametrize("shape", [(16, 16, 2), (32, 32, 5), (2, 16, 16), (5, 9, 8), (3, 9, 8), (9, 8, 4), (3, 20, 3)])
def test_the_channels_of_a_picture_are_the_small_axis(shape):
    expected = shape if shape in ((2, 16, 16), (5, 9, 8), (3, 9, 8)) else (shape[2], *shape[:2])
    x = np.random.default_rng(0).integers(0, 255, (4, *shape), np.uint8)
    assert learned("image", x).shape == expected == tuple(learned("image", x)(x).shape[1:])


def test_a_binder_of_an_earlier_version_keeps_its_layout(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (40, 16, 16, 2), np.uint8)
    binder = cb.fit({"a": x, "b": x.reshape(40, -1)[:, :9] / 7}, steps=1, dim=4, show_progress=False)
    description = binder.describe()
    for about in description["towers"].values():
        assert about.pop("seen")
    old = rebuild_binder(description)
    assert old.towers["a"].inputs.shape == (16, 16, 2) and "seen" not in old.describe()["towers"]["a"]
    state = old.state_dict()
    path = tmp_path / "old.safetensors"
    write_tensors(path, {TOWERS + name: value for name, value in state.items()}, {"binder": description})
    assert cb.load(path).fingerprint == old.fingerprint


@pytest.mark.parametrize(
    "seen", [{"low": float("nan")}, {"low": 9e9}, {"rest": [1.0]}, {"rest": "x"}, {"high": None}, {"low": "x"}, []]
)
def test_forged_memories_of_training_are_refused(tmp_path, seen):
    binder = cb.fit({"a": np.eye(9), "b": np.eye(9)}, steps=1, dim=4, show_progress=False)
    tensors, state = read_tensors(cb.save(binder, tmp_path / "b"))
    told = state["binder"]["towers"]["a"]["seen"]
    state["binder"]["towers"]["a"]["seen"] = {**told, **seen} if isinstance(seen, dict) else seen
    write_tensors(tmp_path / "c.safetensors", tensors, state)
    with pytest.raises(CheckpointError, match="do not fit its description"):
        cb.load(tmp_path / "c")


def test_composed_and_decomposed_texts_are_one():
    texts = ["café noir", "crème brûlée", "naïve art", "über alles"] * 10
    other = np.random.default_rng(0).normal(size=(40, 5))
    apart = [unicodedata.normalize("NFD", text) for text in texts]
    assert apart[0] != texts[0]
    for given in (texts, apart):
        binder = cb.fit({"a": given, "b": other}, steps=2, dim=4, show_progress=False)
        assert (
            sorted(binder.towers["a"].inputs.words())[:2] == ["alles", "art"]
            and "café" in binder.describe()["towers"]["a"]["words"]
        )
        assert torch.equal(binder.embed({"a": texts}).z, binder.embed({"a": apart}).z)
        assert binder.towers["a"].inputs.unknown(apart[0]) == []
    description = binder.describe()
    assert description["towers"]["a"].pop("seen") == {"form": "NFC"}
    old = rebuild_binder(description)
    assert "seen" not in old.describe()["towers"]["a"]
    assert old.towers["a"].inputs([apart[0]]).tolist() != old.towers["a"].inputs([texts[0]]).tolist()


def test_long_texts_are_said_to_be_cut_and_can_be_read_to_their_end():
    words = [f"w{i}" for i in range(70)]
    texts = [" ".join([*words, f"end{i % 5}"]) for i in range(40)]
    other = np.random.default_rng(0).normal(size=(40, 5))
    with pytest.warns(CentrobindWarning, match="'a': 40 of 40 texts are longer than the 64 words"):
        binder = build_binder(Samples.of({"a": texts, "b": other}), dim=4)
    assert torch.equal(binder.embed({"a": texts[:1]}).z, binder.embed({"a": texts[1:2]}).z)
    for longest in (32, 128):
        encoders = {"a": {"encoder": "transformer", "longest": longest}}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            binder = build_binder(Samples.of({"a": texts, "b": other}), dim=4, encoders=encoders)
        assert len(caught) == (longest == 32)
        again = rebuild_binder(binder.describe())
        again.load_state_dict(binder.state_dict())
        for each in (binder, again.eval()):
            assert torch.equal(each.embed({"a": texts[:1]}).z, each.embed({"a": texts[1:2]}).z) == (longest == 32)


def test_a_few_long_texts_are_no_news():
    texts = ["short one"] * 150 + ["x " * 100]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cb.fit({"a": texts, "b": np.arange(302.0).reshape(151, 2)}, steps=1, dim=4, batch_size=40, show_progress=False)
