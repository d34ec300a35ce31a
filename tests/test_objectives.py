"""One battery for every objective in the table, then what defines each."""

import inspect
import math

import pytest
import torch

import centrobind as cb
from centrobind.errors import ConfigError, DataError
from centrobind.objectives import tiles
from centrobind.objectives.anchored import AnchorInfoNCE, intra_and_inter, leak
from centrobind.objectives.base import HIGHEST, LOWEST
from centrobind.objectives.table import OBJECTIVES
from centrobind.training.memory import allocations
from centrobind.types import Embeddings
from twins import loop_joint, loop_objective, loop_ova_ib, some_present, symmetric, unit_vectors

COUNTS = (2, 3, 5)
JOINT = ("symile", "gram", "triangle", "pmrl")  # learn from complete samples only
CASES = [
    (name, count) for name in OBJECTIVES for count in COUNTS if (name, count) not in (("triangle", 2), ("triangle", 5))
]
SAMPLES, DIM = 7, 4


def make(name, count=3, **options):
    names = tuple("abcde"[:count])
    takes = inspect.signature(OBJECTIVES[name]).parameters
    known = {"anchor": names[count // 2], "modalities": names, "weights": dict(zip(names, (2.0, 1.0, 0.5, 1.0, 3.0)))}
    options = {key: value for key, value in known.items() if key in takes} | {"temperature": 0.3} | options
    return OBJECTIVES[name](**options).double()


def data(count=3, samples=SAMPLES, dim=DIM, seed=0, gaps=True):
    present = some_present(count, samples, seed=seed) if gaps else torch.ones(count, samples, dtype=torch.bool)
    names = tuple("abcde"[:count])
    z, views = (
        Embeddings(unit_vectors(count, samples, dim, seed=s) * present[..., None], present, names)
        for s in (seed, seed + 50)
    )
    return z, views


def value(objective, z, views, groups=None):
    """The loss, with the same draw each time for objectives that draw."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return objective(z, views=views, groups=groups).total


def draw_of(count):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return int(torch.randint(count, ()))


@pytest.mark.parametrize(("name", "count"), CASES)
def test_equals_the_loop(name, count):
    z, views = data(count)
    if name in JOINT:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            expected = loop_joint(name, z.z, views.z, z.present, 0.3)
    elif name == "ova_ib":
        expected = loop_ova_ib(z.z, views.z, z.present, 0.3, beta=1.0)
    else:
        weights = {"weighted": (2.0, 1.0, 0.5, 1.0, 3.0)[:count]}.get(name)
        anchor = draw_of(count) if name == "random" else count // 2
        expected = loop_objective(name, z.z, views.z, z.present, 0.3, anchor, weights)
    assert value(make(name, count), z, views).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "unimodal"])
def test_without_views_the_embeddings_stand_in_for_them(name):
    z, _ = data()
    torch.testing.assert_close(value(make(name), z, None), value(make(name), z, z))


@pytest.mark.parametrize(("name", "count"), CASES)
def test_order_of_samples_and_of_modalities_does_not_matter(name, count):
    z, views = data(count)
    before = value(make(name, count), z, views)
    shuffle = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1))
    if name != "symile":  # it shuffles by itself, and by place
        torch.testing.assert_close(value(make(name, count), z.take(shuffle), views.take(shuffle)), before)
    # What the first two draw is a number, not a name; and two opposed modalities give PMRL's direction no sign.
    if name not in ("random", "symile") and (name, count) != ("pmrl", 2):
        turned = z.modalities[1:] + z.modalities[:1]
        torch.testing.assert_close(value(make(name, count), z.only(turned), views.only(turned)), before)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_an_absent_row_holds_changes_nothing(name):
    present = some_present(3, SAMPLES)
    assert not present.all()
    results = []
    for filling in (0.0, 3.0, math.nan):
        z, views = ({n: t.clone() for n, t in zip("abc", unit_vectors(3, SAMPLES, DIM, seed=s))} for s in (0, 1))
        for tensors in (z, views):
            for name_, here in zip("abc", present):
                tensors[name_][~here] = filling
                tensors[name_].requires_grad_()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            out = make(name)(z, views=views, present=dict(zip("abc", present)))
        out.total.backward()
        gradients = [t.grad for tensors in (z, views) for t in tensors.values() if t.grad is not None]
        results.append([out.total, *gradients])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


# random, learned and weighted draw or hold a number per modality, so one more is another objective
@pytest.mark.parametrize("name", ["centrobind", "leave_one_out", "fabind", "all_pairs", "unimodal"])
def test_a_modality_that_nobody_has_changes_nothing(name):
    z, views = data(3)
    ghost = [
        Embeddings(torch.cat([e.z, e.z[:1] * 0]), torch.cat([e.present, e.present[:1] & False]), (*"abc", "d"))
        for e in (z, views)
    ]
    torch.testing.assert_close(value(make(name), *ghost), value(make(name), z, views))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_right(name):
    z, views = data()
    objective = make(name, learn_temperature=True)
    learned = [p for p in objective.parameters() if p.requires_grad]

    def total(a, b, *_):
        return value(objective, z.with_z(a), views.with_z(b))

    assert torch.autograd.gradcheck(total, (z.z.requires_grad_(), views.z.requires_grad_(), *learned))


@pytest.mark.parametrize("tau", [LOWEST, 0.07, HIGHEST])
@pytest.mark.parametrize("where", ["collapse", "optimum", "opposite", "one dimension"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_finite_in_the_corners(name, where, tau):
    same = torch.ones(SAMPLES, 8)
    corner = {
        "collapse": [same] * 3,
        "optimum": [torch.eye(8)[:SAMPLES]] * 3,
        "opposite": [same, -same, torch.eye(8)[:SAMPLES]],
        "one dimension": [torch.tensor([[1.0], [-1.0]]).repeat(4, 1)[:SAMPLES]] * 3,
    }[where]
    z = {n: t.clone().requires_grad_() for n, t in zip("abc", corner)}
    out = make(name, temperature=tau, learn_temperature=True).float()
    loss = out(z, views={n: t.detach() for n, t in z.items()})
    loss.total.backward()
    assert torch.isfinite(loss.total) and loss.total >= -1e-4
    assert all(t.grad is None or torch.isfinite(t.grad).all() for t in z.values())
    assert all(torch.isfinite(p.grad).all() for p in out.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_parts_are_named_and_add_up(name):
    z, views = data()
    objective = make(name)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        out = objective(z, views=views)
    ways = [part for key, part in out.parts.items() if "/" in key]
    rest = out.parts.get("closeness", 0.0)
    assert (2 if name == "pmrl" else 1) * sum(ways) / len(ways) + rest == pytest.approx(out.total.item())
    assert {"intra", "inter", "leak", "temperature"} <= out.parts.keys()
    assert out.parts["temperature"] == pytest.approx(0.3)
    assert all(math.isfinite(part) for part in out.parts.values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_nothing_to_learn_from_is_said(name):
    """A sample with one modality is no positive for anything that crosses modalities."""
    alone = torch.eye(3, dtype=torch.bool) if name != "unimodal" else torch.zeros(3, 3, dtype=torch.bool)
    z = Embeddings(unit_vectors(3, 3, DIM), alone, tuple("abc"))
    with pytest.raises(DataError, match="nothing to learn from"):
        make(name)(z, views=z)


@pytest.mark.parametrize(("name", "count"), CASES)
def test_positives_are_those_it_learns_from(name, count):
    """A batch of `least` positives and others has a loss; without them it has none."""
    present = some_present(count, 40, seed=3, share=0.25)
    z, views = (
        Embeddings(unit_vectors(count, 40, DIM, seed=s) * present[..., None], present, tuple("abcde"[:count]))
        for s in (0, 1)
    )
    objective = make(name, count)
    positives = objective.positives(z.present, z.modalities)
    assert 0 < positives.sum() < 40 or name == "unimodal"
    for place in positives.nonzero()[:, 0].tolist():
        rows = torch.cat(
            [torch.tensor([place]), positives.nonzero()[: objective.least, 0], (~positives).nonzero()[:, 0]]
        )
        assert torch.isfinite(value(objective, z.take(rows), views.take(rows)))
    rest = torch.cat([(~positives).nonzero()[:, 0], positives.nonzero()[: objective.least - 1, 0]])
    if len(rest):
        with pytest.raises(DataError, match="nothing to learn from"):
            value(objective, z.take(rest), views.take(rest))


def test_modalities_that_cannot_be_bound_are_said_before_training():
    present = torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(DataError, match="exactly three modalities, got 2"):
        cb.objectives.TRIANGLE().positives(present, ("a", "b"))
    with pytest.raises(DataError, match="no modality 'z' here"):
        cb.FABind(anchor="z").positives(present, ("a", "b"))
    heavy = cb.WeightedCentroid(weights={"a": 0.0, "b": 0.0}).positives(
        torch.tensor([[1, 1], [1, 1], [0, 1]]).bool(), ("a", "b", "c")
    )
    assert heavy.tolist() == [False, True], "a sample of modalities that do not count has no anchor"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_wrong_input_is_said(name):
    z, views = data()
    objective = make(name)
    with pytest.raises(DataError, match="at least two modalities"):
        objective(z.only(["b"]), views=views.only(["b"]))
    with pytest.raises(DataError, match="views must have"):
        objective(z, views=views.only(["a", "b"]))
    for wrong in (0.0, -1.0, LOWEST / 2, HIGHEST * 2):
        with pytest.raises(ConfigError, match="temperature must lie between"):
            make(name, temperature=wrong)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", ["leave_one_out", "all_pairs", "gram", "pmrl"])
def test_the_temperature_of_a_float64_loss_is_a_float64(name, learned):
    """.07 is not what float32 keeps of it, and a difference of 1e-8 in it is one of 1e-7 in the loss."""
    z, views = data(3)
    loop = loop_joint if name in JOINT else loop_objective
    expected = loop(
        *((name, z.z, views.z, z.present, 0.07)), **({} if name in JOINT else {"anchor": 0, "weights": None})
    )
    objective = OBJECTIVES[name](temperature=0.07, learn_temperature=learned)
    for module in (objective, objective.double()):
        assert value(module, z, views).item() == pytest.approx(expected, rel=1e-11)
    assert OBJECTIVES[name](temperature=0.07).temperature().dtype == torch.float32


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_learned_temperature_is_bounded_after_the_step_and_comes_back(name):
    objective = make(name, learn_temperature=True)
    log = objective.temperature.log
    assert log.shape == (1,) and log.requires_grad
    with torch.no_grad():
        log.fill_(math.log(HIGHEST) + 3)
    z, views = data()
    before = log.item()
    value(objective, z, views).backward()
    assert log.item() == before, "forward never writes"
    assert log.grad.abs() > 0, "beyond its bound it still has a gradient"
    objective.bound()
    assert objective.temperature().item() == pytest.approx(HIGHEST)
    assert not make(name).temperature.log.requires_grad


# ---- what defines each ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("tau", [0.05, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_centrobind_is_bounded_by_intra_and_inter(count, tau, seed):
    """log-sum-exp is convex, so L(z_m; centroid) <= mean over m' of L(z_m; z'_m'), m' = m included (docs/theory.md)."""
    z, views = data(count, gaps=False, seed=seed)
    out = make("centrobind", count, temperature=tau)(z, views=views)
    bound = (out.parts["intra"] + (count - 1) * out.parts["inter"]) / count
    assert out.total.item() <= bound + 1e-9


def test_centrobind_leaks_one_mth_when_aligned_and_all_when_unrelated():
    z, _ = data(gaps=False)
    aligned = z.with_z(z.z[:1].expand(3, -1, -1).clone())
    assert make("centrobind")(aligned).parts["leak"] == pytest.approx(1 / 3)
    apart = Embeddings(torch.eye(12, dtype=torch.float64).view(3, 4, 12), torch.ones(3, 4, dtype=torch.bool), (*"abc",))
    assert make("centrobind")(apart).parts["leak"] == pytest.approx(1.0)
    # Independent embeddings, nothing aligned: the loss is far below log N all the same (design: 1.4 against 5.5).
    lost = make("centrobind", temperature=0.07)(Embeddings.of(dict(zip("abc", torch.randn(3, 256, 128))))).total
    assert lost < 0.5 * math.log(256)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["leave_one_out", "fabind", "random", "all_pairs"])
def test_others_do_not_leak(name, count):
    z, views = data(count)
    assert make(name, count)(z, views=views).parts["leak"] == pytest.approx(0, abs=1e-12)


def test_unimodal_is_nothing_but_leak():
    z, views = data(gaps=False)
    assert make("unimodal")(z, views=views).parts["leak"] == pytest.approx(1.0)
    with pytest.raises(DataError, match="pass views="):
        make("unimodal")(z)


def test_two_modalities_leave_one_out_is_all_pairs():
    z, views = data(2)
    torch.testing.assert_close(value(make("leave_one_out", 2), z, views), value(make("all_pairs", 2), z, views))


def test_the_mean_of_all_fixed_anchors_is_all_pairs():
    z, views = data(3, gaps=False)
    anchored = [value(make("fabind", anchor=a), z, views) for a in "abc"]
    torch.testing.assert_close(torch.stack(anchored).mean(), value(make("all_pairs"), z, views))


def test_a_random_anchor_is_one_of_the_fixed_ones_and_is_each_of_them_sometimes():
    z, views = data(3)
    fixed = [value(make("fabind", anchor=a), z, views).item() for a in "abc"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = {round(make("random")(z, views=views).total.item(), 9) for _ in range(40)}
    assert drawn == {round(v, 9) for v in fixed}


def test_a_fixed_anchor_is_deaf_to_pairs_without_it():
    z, views = data(3, gaps=False)
    a = z.z.clone().requires_grad_()
    value(make("fabind", anchor="a"), z.with_z(a), views).backward()
    before = a.grad[1].clone()
    moved = z.z.clone()
    moved[2] = moved[2].flip(0)
    b = moved.requires_grad_()
    value(make("fabind", anchor="a"), z.with_z(b), views).backward()
    torch.testing.assert_close(b.grad[1], before)


def test_frozen_names_the_tower_to_leave_alone_and_stops_the_gradient():
    z, views = data(3)
    u, v = z.z.clone().requires_grad_(), views.z.clone().requires_grad_()
    objective = make("fabind", anchor="a", frozen=True)
    value(objective, z.with_z(u), views.with_z(v)).backward()
    assert objective.frozen == ("a",) and v.grad is None and u.grad[1:].abs().sum() > 0
    assert make("fabind", anchor="a").frozen == ()


def test_learned_weights_start_as_the_centroid_and_move():
    z, views = data(3)
    objective = make("learned")
    torch.testing.assert_close(value(objective, z, views), value(make("centrobind"), z, views))
    value(objective, z, views).backward()
    assert objective.anchor.scores.grad.abs().sum() > 0


def test_intra_and_inter_equal_the_loops():
    z, views = data(3)
    found = intra_and_inter(z, views, torch.tensor([0.3]))
    same = [symmetric(z.z[m], views.z[m], z.present[m], views.present[m], 0.3) for m in range(3)]
    cross = [
        symmetric(z.z[a], views.z[b], z.present[a], views.present[b], 0.3) for a in range(3) for b in range(3) if a != b
    ]
    assert found["intra"] == pytest.approx(sum(same) / 3)
    assert found["inter"] == pytest.approx(sum(cross) / 6)


def test_an_anchor_of_ones_own_is_ten_lines():
    """The median of the others: no class, no registry; leak and parts come with it."""

    def median_of_others(views):
        rows = [torch.cat([views.z[:m], views.z[m + 1 :]]).median(0).values for m in range(len(views.modalities))]
        others = views.present.sum(0) - views.present.long() == len(views.modalities) - 1
        return views.with_z(torch.stack(rows), others)

    z, views = data(3)
    out = AnchorInfoNCE(median_of_others, temperature=0.1)(z, views=views)
    assert torch.isfinite(out.total) and leak(median_of_others, z, views) == 0


def test_plain_dicts_of_plain_tensors_work():
    draw = torch.Generator().manual_seed(0)
    z = {name: torch.randn(6, 3, generator=draw) for name in ("image", "audio")}
    has_audio = torch.tensor([True, True, True, True, False, False])
    out = cb.CentroBind(temperature=0.2)(z, present={"audio": has_audio})
    expected = cb.CentroBind(temperature=0.2)(Embeddings.of(z, {"audio": has_audio}))
    torch.testing.assert_close(out.total, expected.total)
    assert {"image/to_anchor", "audio/from_anchor"} <= out.parts.keys()


# ---- the peers ------------------------------------------------------------------------------------------------


def test_symile_equals_their_package():
    theirs = pytest.importorskip("symile", reason="compared with the symile package where it is installed")
    z = unit_vectors(3, 9, 16)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = theirs.Symile()(list(z), logit_scale=16**0.5 / 0.3)
        torch.manual_seed(3)
        got = make("symile")(Embeddings(z, torch.ones(3, 9, dtype=torch.bool), tuple("abc"))).total
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", JOINT)
def test_joint_objectives_need_complete_samples_and_use_no_others(name):
    z, views = data()
    complete = z.present.all(0)
    assert 2 <= complete.sum() < SAMPLES
    torch.testing.assert_close(value(make(name), z, views), value(make(name), z.take(complete), views.take(complete)))


def test_triangle_says_that_it_needs_three():
    z, views = data(2)
    with pytest.raises(DataError, match="exactly three modalities, got 2"):
        make("triangle", 2)(z, views=views)


@pytest.mark.parametrize(("name", "count"), [(n, c) for n, c in CASES if n in (*JOINT, "ova_ib", "all_pairs")])
def test_the_native_score_ranks_the_true_tuple_first_when_all_agree(name, count):
    same = unit_vectors(1, 6, 8)[0]
    if name == "symile":
        same = same.abs() / same.abs().norm(dim=1, keepdim=True)  # odd products of signs would cancel
    others = same.expand(count - 1, 6, 8)
    scores = make(name, count).similarity(same, others)
    assert scores.shape == (6, 6)
    if name in ("gram", "triangle"):  # degenerate: when the others coincide every volume is 0, as their docstrings say
        assert (scores.max() - scores.min()) < 0.02 if count > 2 else scores.argmax(1).tolist() == list(range(6))
    elif name != "symile":
        assert scores.argmax(1).tolist() == list(range(6))


def test_only_a_joint_score_solves_xor():
    """Signs of three bits with c = a b: no pair agrees more than chance, the product always does."""
    bits = torch.randint(0, 2, (2, 40, 16), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    a, b = bits / 4
    c = 4 * a * b
    native = make("symile").float().similarity(c, torch.stack([a, b]))
    assert (native.argmax(0) == torch.arange(40)).all()
    centroid = make("all_pairs").similarity(c, torch.stack([a, b]))
    assert (centroid.argmax(0) == torch.arange(40)).float().mean() < 0.3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_groups_leave_out_negatives(name):
    z, views = data(3, samples=20)
    objective = make(name)
    groups = torch.arange(20) % 4
    if name != "symile":  # where its shuffles bring a sample's own tuple back, that is no negative either
        torch.testing.assert_close(value(objective, z, views, torch.arange(20)), value(objective, z, views))
    assert value(objective, z, views, groups) < value(objective, z, views)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        assert objective(z, views=views, groups=groups).parts["inter"] < objective(z, views=views).parts["inter"]


@pytest.mark.parametrize(("name", "count"), [case for case in CASES if case[0] in JOINT])
def test_joint_objectives_with_groups_equal_the_loop(name, count):
    z, views = data(count, samples=24)
    groups = torch.arange(24) % 3
    kept = groups[z.present.all(0)]
    assert len(kept.unique()) < len(kept)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = loop_joint(name, z.z, views.z, z.present, 0.3, groups)
    assert value(make(name, count), z, views, groups).item() == pytest.approx(expected, rel=1e-6)


def test_an_objective_that_knows_no_groups_says_so():
    class Own(cb.Objective):
        pass

    with pytest.raises(DataError, match="Own knows no groups"):
        Own(0.1, False)(data(3)[0], groups=torch.zeros(SAMPLES, dtype=torch.int64))


def test_weights_of_modalities():
    from centrobind.objectives import anchors

    z, views = data(3)
    weights = {"a": 3.0, "c": 0.0}
    out = AnchorInfoNCE(anchors.leave_one_out, weights=weights)(z, views=views)
    sym = {m: (out.parts[f"{m}/to_anchor"] + out.parts[f"{m}/from_anchor"]) / 2 for m in "abc"}
    assert out.total.item() == pytest.approx((3 * sym["a"] + sym["b"]) / 4)
    with pytest.raises(DataError, match="not be negative"):
        AnchorInfoNCE(anchors.centroid, weights={"a": -1.0})
    with pytest.raises(DataError, match=r"name \['x'\]"):
        AnchorInfoNCE(anchors.centroid, weights={"x": 1.0})(z, views=views)
    with pytest.raises(DataError, match="nothing to learn"):
        AnchorInfoNCE(anchors.centroid, weights=dict.fromkeys("abc", 0.0))(z, views=views)


def test_a_call_with_a_dict_holds_one_copy_of_the_embeddings(monkeypatch):
    """By the most that is allocated at a time, beyond the gradients that it leaves: z, and parts of its size / M."""
    monkeypatch.setitem(tiles.TILES, "cpu", (64, 64))
    given = {name: torch.randn(1500, 64, requires_grad=True) for name in "abcd"}
    size = 4 * 1500 * 64 * 4
    objective = cb.CentroBind()
    objective.memory = 0
    losses = []
    _, _, peak = allocations(lambda: losses.append(objective(given)) or losses[0].total.backward())
    assert peak - size < 1.7 * size
    assert losses[0].parts["leak"] > 0
