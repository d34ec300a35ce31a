import numpy as np
import pytest
import torch

from centrobind.binder.inputs import INPUTS, Numbers, Pixels, Words, split_words
from centrobind.data import Samples
from centrobind.errors import DataError


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
