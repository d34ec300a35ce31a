import pytest
import torch

from centrobind.binder import encoders
from centrobind.binder.encoders import ENCODERS, KIND_ENCODERS
from centrobind.errors import ConfigError
from chaos.process import python

SHAPES = {"vector": (7,), "sequence": (20, 3), "image": (2, 17, 13), "text": (30,)}
CASES = [(kind, name) for kind, names in KIND_ENCODERS.items() for name in names]


def values(kind, count=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    if kind == "text":
        return torch.randint(1, 30, (count, 5), generator=draw)
    return torch.randn(count, *SHAPES[kind], generator=draw)


def make(kind, name, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ENCODERS[name](SHAPES[kind], **options)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_width_is_what_comes_out(kind, name):
    for width in (8, 64):
        encoder = make(kind, name, width=width)
        out = encoder(values(kind))
        assert encoder.width == width and out.shape == (6, width) and torch.isfinite(out).all()


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_samples_do_not_see_each_other(kind, name):
    encoder, x = make(kind, name), values(kind)
    torch.testing.assert_close(encoder(x[2:3]), encoder(x)[2:3], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_parameter_learns(kind, name):
    encoder = make(kind, name)
    encoder(values(kind)).square().sum().backward()
    for label, parameter in encoder.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), label
        assert parameter.grad.abs().sum() > 0, label


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_different_inputs_give_different_features(kind, name):
    out = make(kind, name)(values(kind))
    assert torch.pdist(out).min() > 1e-4


@pytest.mark.parametrize("name", KIND_ENCODERS["text"])
def test_padding_and_empty_text_change_nothing(name):
    encoder, x = make("text", name), values("text")
    padded = torch.cat([x, torch.zeros(6, 3, dtype=torch.long)], dim=1)
    torch.testing.assert_close(encoder(padded), encoder(x), atol=1e-5, rtol=1e-4)
    empty = torch.zeros(2, 4, dtype=torch.long)
    out = encoder(empty)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_transformer_knows_word_order_and_the_bag_does_not():
    x = values("text")
    turned = x.flip(1)
    assert not torch.allclose(make("text", "transformer")(x), make("text", "transformer")(turned), atol=1e-3)
    torch.testing.assert_close(make("text", "bag")(x), make("text", "bag")(turned))


def test_transformer_width_must_be_a_multiple_of_heads():
    with pytest.raises(ConfigError, match="multiple of heads"):
        make("text", "transformer", width=30, heads=4)


@pytest.mark.parametrize("layer", [torch.nn.Embedding, torch.nn.EmbeddingBag])
def test_words_start_as_torch_starts_them(layer):
    """The same draws, so that a seed gives the weights that it gave before."""
    torch.manual_seed(3)
    expected = layer(7, 5, padding_idx=0).weight
    torch.manual_seed(3)
    assert torch.equal(layer(7, 5, padding_idx=0, _weight=encoders._normal(7, 5, empty_first=True)).weight, expected)


def test_places_start_as_before():
    torch.manual_seed(3)
    expected = 0.02 * torch.randn(7, 5)
    torch.manual_seed(3)
    assert torch.equal(encoders._normal(7, 5, std=0.02), expected)


def test_loading_a_binder_imports_no_compiler(tmp_path):
    """Which costs more than all the rest of a start; torch.nn.Embedding needs it to draw weights without memory."""
    code = """
import sys
import centrobind as cb
from centrobind.binder.binder import build_binder
samples = cb.Samples.of({"a": ["red fox"] * 4, "b": ["blue dog"] * 4})
towers = {"a": "bag", "b": "transformer"}
cb.save(build_binder(samples, dim=4, encoders=towers), sys.argv[1])
cb.load(sys.argv[1])
print("torch._dynamo" in sys.modules)
"""
    assert python("-c", code, tmp_path / "binder.safetensors").strip() == "False"
