from dataclasses import replace

import numpy as np
import pytest
import torch

from centrobind import unit as unit_module
from centrobind.errors import DataError
from centrobind.objectives.anchored import AllPairs
from centrobind.types import Embeddings, unit
from centrobind.unit import unit_stack


def test_of_stacks_normalises_and_zeroes_what_is_absent():
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    b[2] = torch.nan
    made = Embeddings.of({"a": a, "b": b}, present={"b": torch.tensor([True, True, False, True])})
    assert made.z.shape == (2, 4, 3) and made.dim == 3 and len(made) == 4
    torch.testing.assert_close(made["a"], a / a.norm(dim=1, keepdim=True))
    assert made["b"][2].tolist() == [0, 0, 0]
    torch.testing.assert_close(made["b"].norm(dim=1), torch.tensor([1.0, 1.0, 0.0, 1.0]))


def test_gradient_skips_absent_rows_even_when_they_are_nan():
    b = torch.full((3, 2), torch.nan, requires_grad=True)
    present = torch.tensor([False, False, False])
    Embeddings.of({"a": torch.ones(3, 2), "b": b}, present={"b": present}).z.sum().backward()
    assert b.grad.tolist() == [[0, 0]] * 3


def test_unit_is_finite_at_zero_and_float32_for_halves():
    zero = torch.zeros(1, 4, requires_grad=True)
    unit(zero).sum().backward()
    assert torch.isfinite(zero.grad).all() and zero.grad.abs().max() <= 1e6
    assert unit(torch.randn(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert unit(torch.randn(2, 3, dtype=torch.float64)).dtype == torch.float64


def test_take_and_only_keep_rows_and_ids_together():
    made = Embeddings.of({"a": torch.eye(4), "b": torch.eye(4)}, ids=["p", "q", "r", "s"])
    part = made.take([2, 0]).only(["b"])
    assert part.ids.tolist() == ["r", "p"] and part.modalities == ("b",)
    assert part.z[0].argmax(1).tolist() == [2, 0]
    assert made.take(slice(1, 3)).ids.tolist() == ["q", "r"]
    assert made.take(torch.tensor([True, False, False, True])).ids.tolist() == ["p", "s"]


@pytest.mark.parametrize(
    ("tensors", "present", "says"),
    [
        ({}, None, "empty"),
        ({"a": torch.zeros(3)}, None, "batch, dim"),
        ({"a": torch.zeros(3, 2), "b": torch.zeros(4, 2)}, None, "(4, 2)"),
        ({"a": torch.zeros(3, 2)}, {"c": torch.ones(3, dtype=torch.bool)}, "'c'"),
        ({"a": torch.zeros(3, 2)}, {"a": torch.ones(3)}, "expected bool"),
        ({"a": torch.zeros(3, 2)}, {"a": torch.ones(2, dtype=torch.bool)}, "(3,)"),
    ],
)
def test_of_says_what_does_not_fit(tensors, present, says):
    with pytest.raises(DataError) as caught:
        Embeddings.of(tensors, present=present)
    assert says in str(caught.value)


def test_unknown_modality_names_the_known_ones():
    with pytest.raises(DataError, match=r"'c'.*\['a'\]"):
        Embeddings.of({"a": torch.eye(2)})["c"]


def test_pairs_are_ordered_and_all_there():
    made = Embeddings.of({name: torch.eye(2) for name in "abc"}, ids=np.arange(2))
    assert len(made.pairs) == 6 and ("a", "c") in made.pairs and ("c", "a") in made.pairs


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_embeddings_that_are_not_finite_are_refused(bad):
    """A NaN is not below anything: it once had a recall of 1."""
    a, b = torch.eye(4), torch.eye(4)
    b[2, 1] = bad
    with pytest.raises(DataError, match=r"'b' is NaN or infinite in 1 of 4 present samples.*\['r'\]"):
        Embeddings.of({"a": a, "b": b}, ids=list("pqrs"))
    there = torch.tensor([True, True, False, True])
    assert Embeddings.of({"a": a, "b": b}, {"b": there})["b"].isfinite().all()
    loose = Embeddings.of({"a": a, "b": b}, finite=False)
    with pytest.raises(DataError, match=r"here: 'b' is NaN"):
        loose.checked("here")


def test_a_loss_shows_what_is_not_finite_instead_of_refusing_it():
    a = torch.eye(4)
    a[1] = torch.nan
    assert torch.isnan(AllPairs()({"a": a, "b": torch.eye(4)}).total)


@pytest.mark.parametrize("few", [0, 10**6], ids=["one by one", "together"])
@pytest.mark.parametrize("gaps", [False, True])
def test_a_unit_stack_is_the_stack_of_units_and_its_gradients_are_right(gaps, few, monkeypatch):
    monkeypatch.setattr(unit_module, "FEW", few)
    tensors = [torch.randn(5, 3, dtype=torch.float64) for _ in range(3)]
    tensors[1][2] = 1e-8  # shorter than what counts as a vector
    present = torch.ones(3, 5, dtype=torch.bool)
    if gaps:
        present[0, 1] = present[2, 3] = False
        tensors[0][1], tensors[2][3] = torch.nan, torch.inf
    outcomes, along = [], torch.randn(3, 5, 3, dtype=torch.float64)
    for form in (
        lambda *x: unit_stack(x, present if gaps else None),
        lambda *x: unit(torch.where(present[..., None], torch.stack(x), 0)),
    ):
        leaves = [x.clone().requires_grad_() for x in tensors]
        z = form(*leaves)
        first = torch.autograd.grad((z * along).sum(), leaves, retain_graph=True)
        again = torch.autograd.grad((z * along).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum((g * g.detach()).sum() for g in again), leaves)
        outcomes.append([z.detach(), *first, *(g.detach() for g in again), *second])
    for got, expected in zip(*outcomes):
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got, expected)


def test_a_unit_stack_of_halves_is_float32_and_its_gradients_are_halves():
    x, y = torch.randn(4, 3).half().requires_grad_(), torch.randn(4, 3)
    z = unit_stack([x, y])
    z.sum().backward()
    assert z.dtype == torch.float32 and x.grad.dtype == torch.float16
    torch.testing.assert_close(z[0], unit(x.detach().float()))


def test_whether_anything_is_missing_is_known_and_follows():
    tensors, gap = {"a": torch.eye(3), "b": torch.eye(3)}, torch.tensor([True, False, True])
    whole, some = Embeddings.of(tensors), Embeddings.of(tensors, {"b": gap})
    assert whole.complete and not some.complete
    assert whole.with_z(2 * whole.z).complete and not some.with_z(2 * some.z).complete
    assert not whole.with_z(whole.z, some.present).complete and some.with_z(some.z, whole.present).complete
    assert some.take([0, 2]).complete and not some.take([0, 1]).complete and some.only(["a"]).complete
    assert not replace(whole, present=some.present).complete, "what was known is of another"


def test_later_makes_the_same_again_and_refuses_what_was_changed():
    tensors = {"a": torch.randn(3, 2, requires_grad=True), "b": torch.randn(3, 2)}
    made = Embeddings.of(tensors, {"b": torch.tensor([True, False, True])})
    later = made.later()
    assert torch.equal(later().z, made.z) and not later().z.requires_grad
    assert torch.equal(later().present, made.present)
    kept = made.with_z(made.z * 1).later()
    with torch.no_grad():
        tensors["a"] += 1
    with pytest.raises(DataError, match="changed in place after the loss"):
        later()
    assert torch.equal(kept().z, made.z)
