import numpy as np
import pytest
import torch
from torch import nn

from centrobind.binder.binder import build_binder, rebuild_binder
from centrobind.binder.embedding import embed_views, load_embeddings, save_embeddings
from centrobind.data import Samples
from centrobind.errors import ConfigError, DataError
from centrobind.types import Embeddings


def test_forward_puts_each_embedding_in_its_place(mixed):
    binder = build_binder(mixed, dim=6).eval()
    rows = np.arange(20)
    batch = binder.prepare(mixed.batch(rows))
    made = binder(batch)
    assert made.z.shape == (4, 20, 6) and torch.equal(made.present, torch.from_numpy(mixed.present[:, rows]))
    torch.testing.assert_close(made.z.norm(dim=2), made.present.float(), atol=1e-5, rtol=0)
    for m, name in enumerate(mixed.modalities):
        alone = binder.towers[name](batch.inputs[name])
        torch.testing.assert_close(made.z[m][made.present[m]], alone)


class NeverNone(nn.Module):
    """An encoder that refuses an empty batch, as attention does."""

    width = 4

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x):
        assert len(x) > 0
        return self.layer(x)


def test_an_encoder_is_never_handed_an_empty_batch():
    """One may refuse it; and towers that are divided among ranks need every layer to run on each of them."""
    samples = Samples.of({"a": np.eye(5), "b": np.ones((5, 3))}, present={"b": np.arange(5) > 2})
    binder = build_binder(samples, dim=6, encoders={"b": NeverNone()})
    made = binder(binder.prepare(samples.batch(np.arange(3))))
    assert made.z.shape == (2, 3, 6) and not made.z[1].any() and not made.present[1].any()
    made.z.sum().backward()
    assert all(value.grad is not None for value in binder.parameters())
    assert not binder.towers["b"].encoder.layer.weight.grad.any() and binder.towers["a"].head.weight.grad.any()


def test_embed_equals_forward_in_any_chunks_and_any_subset(mixed):
    binder = build_binder(mixed, dim=6).eval()
    whole = binder.embed(mixed)
    for size in (1, 7, 60, 1000):
        torch.testing.assert_close(binder.embed(mixed, batch_size=size).z, whole.z, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(binder.embed(mixed.only(["text", "picture"]))["text"], whole["text"])
    assert whole.ids.tolist() == mixed.ids[:]
    seen = []
    binder.embed(mixed, batch_size=25, each=seen.append)
    assert seen == [25, 50, 60]


def test_embed_takes_plain_arrays_with_gaps(mixed):
    binder = build_binder(mixed, dim=6).eval()
    vector = np.random.default_rng(1).normal(size=(3, 5))
    made = binder.embed({"text": ["red thing", None, "x"], "vector": vector}, present={"vector": [True, False, True]})
    assert made.modalities == ("text", "vector")
    assert made.present.tolist() == [[True, False, True], [True, False, True]]
    torch.testing.assert_close(made["vector"][2:], binder.embed({"vector": vector[2:]})["vector"])


def test_embeddings_that_are_not_finite_are_refused_where_they_come_out(mixed):
    binder = build_binder(mixed, dim=6)
    with torch.no_grad():
        binder.towers["text"].head.weight[0] = torch.nan
    there = [mixed.ids[:][i] for i in np.flatnonzero(mixed.columns["text"].present)]
    for embed in (binder.embed, lambda data: embed_views(binder, data)):
        with pytest.raises(DataError, match=rf"'text' is NaN or infinite in {len(there)} .*'{there[0]}'"):
            embed(mixed)
    assert binder.embed(mixed.only(["vector"])).z.isfinite().all()


def test_a_file_of_embeddings_that_are_not_finite_is_refused(tmp_path):
    z = torch.eye(4).repeat(2, 1, 1)
    z[1, 2, 0] = torch.nan
    present = torch.ones(2, 4, dtype=torch.bool)
    save_embeddings(tmp_path / "e.npz", Embeddings(z, present, ("a", "b")))
    with pytest.raises(DataError, match=r"e\.npz: 'b' is NaN or infinite in 1 of 4 present samples.*\[2\]"):
        load_embeddings(tmp_path / "e.npz")
    present[1, 2] = False
    save_embeddings(tmp_path / "e.npz", Embeddings(z, present, ("a", "b")))
    assert load_embeddings(tmp_path / "e.npz")["b"][2].tolist() == [0] * 4


def test_embed_leaves_training_mode_as_it_was(mixed):
    binder = build_binder(mixed, dim=6, encoders={"vector": {"encoder": "mlp", "dropout": 0.5}}).train()
    one, other = binder.embed(mixed).z, binder.embed(mixed).z
    assert binder.training and torch.equal(one, other) and not one.requires_grad


def test_embed_says_what_does_not_fit(mixed):
    binder = build_binder(mixed, dim=6)
    with pytest.raises(DataError, match=r"no modality \['smell'\]"):
        binder.embed({"smell": np.zeros((2, 3))})
    with pytest.raises(DataError, match=r"shape \(5,\)"):
        binder.embed({"vector": np.zeros((2, 3))})
    with pytest.raises(DataError, match="none of"):
        binder.embed(Samples.of({"other": np.zeros((2, 3))}))


def test_same_seed_same_weights_and_the_global_generator_is_untouched(mixed):
    state = torch.random.get_rng_state()
    one, same, other = (build_binder(mixed, seed=s).fingerprint for s in (0, 0, 1))
    assert one == same != other and torch.equal(state, torch.random.get_rng_state())


def test_towers_of_one_shape_start_different():
    samples = Samples.of({"a": np.eye(4), "b": np.eye(4)})
    made = build_binder(samples).embed(samples)
    assert not torch.allclose(made["a"], made["b"], atol=0.1)


def test_a_modality_keeps_its_weights_when_its_name_or_the_others_change(mixed):
    alone, both = build_binder(mixed.only(["text"])), build_binder(mixed.only(["text", "vector"]))
    torch.testing.assert_close(alone.embed(mixed)["text"], both.embed(mixed)["text"])


def test_description_and_weights_make_the_same_binder(mixed):
    encoders = {"vector": {"encoder": "mlp", "depth": 3}, "text": "transformer", "series": "linear"}
    first = build_binder(mixed, dim=6, encoders=encoders).eval()
    second = rebuild_binder(first.describe()).eval()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.embed(mixed).z, second.embed(mixed).z) and first.fingerprint == second.fingerprint


def test_an_encoder_of_ones_own_needs_a_width(mixed):
    class Mine(nn.Module):
        width = 3

        def forward(self, x):
            return x[:, :3]

    binder = build_binder(mixed, dim=6, encoders={"vector": Mine()})
    assert binder.embed(mixed).z.shape[2] == 6
    with pytest.raises(ConfigError, match=r"encoder of your own.*'vector'"):
        rebuild_binder(binder.describe())
    assert rebuild_binder(binder.describe(), {"vector": Mine()}).modalities == binder.modalities
    with pytest.raises(ConfigError, match="attribute `width`"):
        build_binder(mixed, encoders={"vector": nn.Identity()})


@pytest.mark.parametrize("name", ["type", "pop", "training", "forward"])
def test_names_that_a_module_uses_itself_are_fair_names(name):
    samples = Samples.of({name: np.eye(4), "b": np.eye(4)})
    assert build_binder(samples).embed(samples).modalities == (name, "b")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"dim": 1}, ConfigError, "dim must be at least 2"),
        ({"encoders": {"smell": "mlp"}}, DataError, r"\['smell'\]"),
        ({"encoders": {"vector": "cnn"}}, ConfigError, "'vector' is vector: expected an encoder of"),
        ({"encoders": {"vector": {"encoder": "mlp", "dept": 3}}}, ConfigError, "it takes .*'depth'"),
    ],
)
def test_wrong_settings_are_said(mixed, options, error, says):
    with pytest.raises(error, match=says):
        build_binder(mixed, **options)


def test_a_modality_missing_everywhere_is_said(mixed):
    samples = Samples.of({"a": np.eye(3), "b": np.eye(3)}, present={"b": [False] * 3})
    with pytest.raises(DataError, match="'b' is missing from all 3"):
        build_binder(samples)
