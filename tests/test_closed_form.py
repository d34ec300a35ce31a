"""The closed form against slow, literal twins, and what must not change it."""

import itertools
import json
from pathlib import Path

import closed_form as bench
import numpy as np
import pytest
import torch

import ranks_jobs
from centrobind.closed_form.bind import fit_closed_form
from centrobind.closed_form.choose import fold_numbers, mean_reciprocal_rank
from centrobind.closed_form.components import Kernel
from centrobind.closed_form.gcca import joined, principal, principal_part, solve
from centrobind.closed_form.grams import BITS, LONGEST, count_grams, count_words, normalised
from centrobind.closed_form.kinds import learned_features, rebuilt_features
from centrobind.closed_form.moments import Moments
from centrobind.data import Samples
from centrobind.distributed import ALONE
from centrobind.errors import DataError
from centrobind.evaluation.metrics import retrieval

ROOT = Path(__file__).parents[1]


def related(widths, count, *, seed=0, share=0.8):
    """Features of one latent per modality, and which are present; the first two samples are complete."""
    draw = np.random.default_rng(seed)
    latent = draw.normal(size=(count, 4))
    views = [latent @ draw.normal(size=(4, w)) + 0.7 * draw.normal(size=(count, w)) + draw.normal() for w in widths]
    present = draw.random((len(widths), count)) < share
    present[:, :2] = True
    return [torch.from_numpy(x) for x in views], torch.from_numpy(present)


def dense_twin(views, present, ridge, weights, dim):
    """From the definition: the leading eigenvectors of the weighted sum of N x N ridge projections, loop by loop."""
    count = present.shape[1]
    total, solvers = np.zeros((count, count)), []
    for x, here, r, w in zip(views, present, ridge, weights):
        rows = [i for i in range(count) if here[i]]
        mean = sum(x[i] for i in rows) / len(rows)
        table = np.zeros(x.shape)
        for i in rows:
            table[i] = x[i] - mean
        covariance = sum(np.outer(table[i], table[i]) for i in rows) / len(rows)
        variances = np.linalg.eigvalsh(covariance)
        variances = variances[variances > 1e-10 * variances.max()]
        inverse = np.linalg.inv(covariance + r * variances.mean() * np.eye(x.shape[1]))
        solver = inverse @ table.T / np.sqrt(len(rows))
        total += w * table @ solver / np.sqrt(len(rows))
        solvers.append(solver)
    values, shared = np.linalg.eigh(total)
    best = np.argsort(-values)[:dim]
    return [solver @ shared[:, best] for solver in solvers], values[best] / sum(weights)


def same_up_to_sign(ours, theirs, tolerance=1e-8):
    """Maps of all modalities together, each dimension up to one sign that all modalities share."""
    ours, theirs = (np.concatenate([np.asarray(w) for w in maps]) for maps in (ours, theirs))
    signs = np.sign((ours * theirs).sum(0))
    np.testing.assert_allclose(ours * signs, theirs, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("widths", [(5, 13), (6, 4, 7), (3, 8, 4, 5, 2)])
@pytest.mark.parametrize("few", [False, True], ids=["features", "rows"])
def test_solution_is_the_dense_twins(widths, few):
    views, present = related(widths, 12 if few else 60)
    ridge, weights = [0.1 * (m + 1) for m in range(len(widths))], [1.0 + m for m in range(len(widths))]
    maps, spectrum = dense_twin([x.numpy() for x in views], present.numpy(), ridge, weights, 3)
    in_memory = joined([principal_part(x, here) for x, here in zip(views, present)])
    assert (in_memory.rows is not None) == few and (in_memory.covariances is None) == few
    for at in (principal(Moments.of(views, present)), in_memory):
        solution = solve(at, ridge=ridge, weights=weights, dim=3)
        same_up_to_sign(solution.maps, maps)
        np.testing.assert_allclose(solution.spectrum, spectrum, rtol=1e-8)


def test_agrees_with_cca_zoo_without_missing_data():
    linear = pytest.importorskip("cca_zoo.linear")
    views, present = related((6, 4, 7), 80, share=1.1)
    theirs = linear.GCCA(n_components=3).fit([x.numpy() for x in views])
    solution = solve(principal(Moments.of(views, present)), ridge=[0.0] * 3, weights=[1.0] * 3, dim=3)
    for ours, their in zip(solution.project(views), theirs.transform([x.numpy() for x in views])):
        for d in range(3):
            assert abs(np.corrcoef(ours[:, d], their[:, d])[0, 1]) == pytest.approx(1, abs=1e-6)


def test_chunks_and_folds_add_up():
    views, present = related((5, 3, 4), 50)
    whole = Moments.of(views, present)
    parts = [Moments.of([x[i : i + 7] for x in views], present[:, i : i + 7]) for i in range(0, 50, 7)]
    torch.testing.assert_close(sum(parts[1:], start=parts[0]).products, whole.products)
    torch.testing.assert_close((whole - parts[0]).products, sum(parts[2:], start=parts[1]).products)


def test_a_missing_value_may_be_anything():
    views, present = related((5, 3, 4), 30)
    filled = [torch.where(here[:, None], x, float("nan")) for x, here in zip(views, present)]
    torch.testing.assert_close(Moments.of(filled, present).products, Moments.of(views, present).products)


def test_order_of_samples_and_modalities_permutes_the_result():
    views, present = related((5, 3, 4), 40)
    ridge, weights = (0.1, 0.2, 0.3), (1.0, 2.0, 0.5)
    plain = solve(principal(Moments.of(views, present)), ridge=ridge, weights=weights, dim=3)
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    order = [2, 0, 1]
    moments = Moments.of([views[m][shuffled] for m in order], present[order][:, shuffled])
    other = solve(principal(moments), ridge=[ridge[m] for m in order], weights=[weights[m] for m in order], dim=3)
    same_up_to_sign([other.maps[order.index(m)] for m in range(3)], plain.maps)


@pytest.mark.parametrize("anchor", [0, 1, 2])
def test_one_weight_near_one_is_ridge_regression_onto_that_modality(anchor):
    views, present = related((5, 3, 4), 60, share=1.1)
    weights = [1.0 if m == anchor else 1e-9 for m in range(3)]
    solution = solve(principal(Moments.of(views, present)), ridge=[0.2] * 3, weights=weights, dim=3)
    centred = [(x - x.mean(0)).numpy() for x in views]
    targets = np.linalg.svd(centred[anchor])[0][:, :3]
    for m, x in enumerate(centred):
        covariance = x.T @ x / 60
        inverse = np.linalg.inv(covariance + 0.2 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
        regression = inverse @ x.T @ targets / np.sqrt(60)
        signs = np.sign((regression * solution.maps[m].numpy()).sum(0))
        np.testing.assert_allclose(solution.maps[m].numpy(), regression * signs, atol=1e-5)


def test_degenerate_features_give_finite_maps():
    views, present = related((5, 30, 4), 12)
    views[0][:, 2] = 7.0  # constant
    views[2][:] = 1.0  # nothing but constants
    for at in (principal(Moments.of(views, present)), joined([*map(principal_part, views, present)])):
        solution = solve(at, ridge=[1e-3] * 3, weights=[1.0] * 3, dim=8)
        assert all(torch.isfinite(w).all() for w in solution.maps)
        assert not solution.maps[2].any() and solution.maps[0][2].abs().max() < 1e-12
        assert (solution.spectrum <= 1).all() and (solution.spectrum > 0).all()


def test_kernel_components_multiply_to_the_kernel():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    kernel = Kernel.learned(x, 40)
    distances = [[float((a - b).square().sum()) for b in x] for a in x]
    middle = np.median([d for row in distances for d in row if d > 0])
    literal = np.exp([[-Kernel.WIDTH * d / middle for d in row] for row in distances])
    centring = np.eye(40) - 1 / 40
    z = kernel(x).numpy()
    np.testing.assert_allclose(z @ z.T, centring @ literal @ centring, atol=1e-3)
    np.testing.assert_allclose(np.diff((z**2).sum(0)), -np.abs(np.diff((z**2).sum(0))), atol=1e-3)  # they descend


def literal_mrr(places, present):
    """Place of the own sample among those that have both, worst of the tied."""
    directions = []
    for a, b in itertools.permutations(range(len(places)), 2):
        both = [i for i in range(present.shape[1]) if present[a, i] and present[b, i]]
        similar = [[float(places[a][i] @ places[b][j]) for j in both] for i in both]
        if len(both) > 1:
            directions.append(np.mean([1 / sum(s >= row[i] for s in row) for i, row in enumerate(similar)]))
    return np.mean(directions)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_mean_reciprocal_rank_is_the_literal_one(count):
    draw = torch.Generator().manual_seed(count)
    # Whole numbers, so that there are ties.
    places = [torch.randint(-1, 2, (9, 4), generator=draw).double() for _ in range(count)]
    present = torch.rand(count, 9, generator=draw) < 0.7
    present[:, :3] = True
    assert mean_reciprocal_rank(places, present) == pytest.approx(literal_mrr(places, present))


def test_folds_keep_groups_together_and_are_even():
    groups = np.repeat(np.arange(20), np.arange(1, 21))
    groups[:5] = -1
    folds = fold_numbers(len(groups), 4, groups=groups, seed=3)
    assert np.array_equal(folds, fold_numbers(len(groups), 4, groups=groups, seed=3))
    for group in range(3, 20):
        assert len(set(folds[groups == group])) == 1
    sizes = np.bincount(folds)
    assert len(sizes) == 4 and sizes.max() - sizes.min() <= 5
    assert len(set(fold_numbers(10, 5, groups=np.zeros(10, int)))) == 5  # one group for all says nothing
    assert len(set(fold_numbers(10, 5, groups=np.arange(10) // 5))) == 2


def grams_twin(text):
    """{(gram): how often}, gram by gram."""
    found = {}
    for start in range(len(text)):
        for n in range(1, LONGEST + 1):
            if start + n <= len(text):
                found[text[start : start + n]] = found.get(text[start : start + n], 0) + 1
    return found


def bucket_twin(gram):
    """The polynomial of the characters, mixed, in plain integers."""
    base, value = 0x9E3779B97F4A7C15, 0
    for place, character in enumerate(gram):
        value += (ord(character) + 1) * base**place
    value %= 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ value >> shift) * factor % 2**64
    return (value ^ value >> 31) >> 64 - BITS


def test_hashed_grams_are_the_literal_ones():
    texts = ["to be or not to be", "", "Straße", "東京タワー", "👩‍🚀 x"]
    table = count_grams(texts)
    for row, text in enumerate(texts):
        expected = {}
        for gram, times in grams_twin(normalised(text)).items():
            expected[bucket_twin(gram)] = expected.get(bucket_twin(gram), 0) + times
        assert {int(b): int(v) for b, v in zip(table[row].indices, table[row].data)} == expected
    words = count_words(["to be, to see"])
    assert {int(b): int(v) for b, v in zip(words.indices, words.data)} == {
        bucket_twin(word): times for word, times in (("to", 2), ("be", 1), (",", 1), ("see", 1))
    }


def test_composed_and_decomposed_letters_count_alike():
    for count in (count_grams, count_words):
        assert (count(["Málaga café"]) != count(["Ma\u0301laga cafe\u0301"])).nnz == 0


@pytest.mark.parametrize("name", ["picture", "series", "text", "vector"])
def test_features_survive_saving_and_chunks(mixed, name):
    column = mixed.columns[name]
    features, forms = learned_features(column.kind, column.values[:], most=16)
    torch.testing.assert_close(features(column.values[:]), forms[-1])
    values = column.values[np.arange(20)]
    expected = features(values)
    assert expected.shape == (20, features.width) and torch.isfinite(expected).all()
    again = rebuilt_features(features.describe())
    again.load_state_dict(features.state_dict())
    torch.testing.assert_close(again(values), expected)
    torch.testing.assert_close(torch.cat([features(values[:7]), features(values[7:])]), expected)


def test_features_have_mean_zero_and_fall_in_variance(mixed):
    for name, column in mixed.columns.items():
        x = learned_features(column.kind, column.values[:], most=16)[0](column.values[:])
        torch.testing.assert_close(x.mean(0), torch.zeros(x.shape[1]), atol=1e-5, rtol=0)
        variances = x.var(0)
        assert (variances[:-1] >= variances[1:] - 1e-6).all(), name


def test_values_of_another_shape_are_refused(mixed):
    features, _ = learned_features("vector", mixed.columns["vector"].values[:], most=4)
    with pytest.raises(DataError, match="expected samples of shape"):
        features(np.zeros((3, 6), np.float32))


def easy(count=120, *, seed=0, **columns):
    views, present = related((6, 5, 8), count, seed=seed)
    arrays = {name: x.numpy() for name, x in zip("abc", views)}
    return Samples.of(arrays | columns, present={name: here.numpy() for name, here in zip("abc", present)})


def ring(count=200, *, seed=0):
    """Two views of an angle that no linear maps bring together: one has its double."""
    draw = np.random.default_rng(seed)
    angle = draw.uniform(0, 2 * np.pi, count)
    views = [np.stack([np.cos(k * angle), np.sin(k * angle)], 1) + 0.02 * draw.normal(size=(count, 2)) for k in (1, 2)]
    return Samples.of({"once": views[0], "twice": views[1]})


def test_a_kernel_is_chosen_where_straight_maps_fail():
    form = fit_closed_form(ring())
    assert "kernel" in form.choice.settings.forms
    assert retrieval(form.embed(ring(seed=1)))["once", "twice"].recall[10] > 0.5


def test_a_modality_of_noise_changes_little():
    samples = easy(300, noise=np.random.default_rng(5).normal(size=(300, 20)))
    train, test = samples.take(slice(0, 200)), samples.take(slice(200, 300))

    def score(names):
        return retrieval(fit_closed_form(train.only(names)).embed(test.only(["a", "b", "c"]))).mean.mrr

    assert score(["a", "b", "c", "noise"]) > 0.9 * score(["a", "b", "c"])


def test_more_samples_than_memory_give_the_same_form(monkeypatch):
    """The last solution comes from sums, chunk by chunk, when not all samples were kept for the choice."""
    whole = fit_closed_form(easy(), dim=8)
    monkeypatch.setattr("centrobind.closed_form.bind.CHOSEN_ON", 119)
    monkeypatch.setattr("centrobind.closed_form.stream.CHUNK", 7)
    monkeypatch.setattr("centrobind.closed_form.bind.choose", lambda *_, **__: whole.choice)
    streamed = fit_closed_form(easy(), dim=8, features=whole.features)
    same_up_to_sign(
        [streamed.features[name](easy().columns[name].values[:]) @ streamed.matrix[name] for name in "abc"],
        [whole.features[name](easy().columns[name].values[:]) @ whole.matrix[name] for name in "abc"],
        1e-4,
    )


@pytest.mark.parametrize("count", [2, 3, 8])
def test_few_or_constant_samples_give_finite_embeddings(count):
    views = {"a": np.eye(count, 3), "b": np.ones((count, 2)), "c": ["same"] * count}
    for names in (["a", "b", "c"], ["b", "c"]):
        samples = Samples.of({name: views[name] for name in names})
        assert torch.isfinite(fit_closed_form(samples, dim=4).embed(samples).z).all()


def test_cliques_that_share_no_sample_are_bound_within():
    samples = easy(120)
    other = {name: x.numpy() for name, x in zip("def", related((4, 7, 5), 120, seed=9)[0])}
    first = np.arange(120) % 2 == 0
    here = {name: column.present & first for name, column in samples.columns.items()} | dict.fromkeys("def", ~first)
    views = {name: x.numpy() for name, x in zip("abc", related((6, 5, 8), 120)[0])}
    form = fit_closed_form(Samples.of(views | other, present=here), dim=16)
    test = Samples.of({name: x.numpy()[:40] for name, x in zip("def", related((4, 7, 5), 120, seed=9)[0])})
    assert retrieval(form.embed(test)).worst.recall[10] > 0.6


def test_features_handed_in_are_not_changed():
    first = fit_closed_form(easy(), dim=8)
    before = {name: module.describe() for name, module in first.features.items()}
    again = fit_closed_form(easy(), dim=8, anchor="a", features=first.features)
    assert {name: module.describe() for name, module in first.features.items()} == before
    straight = learned_features("vector", np.random.default_rng(0).normal(size=(30, 4)))[0]
    plain = straight.without_kernel()
    assert straight.kernel is not None and plain.kernel is None and "kernel.basis" not in plain.state_dict()
    assert again.embed(easy()).dim == 8


def test_a_rare_modality_is_among_the_samples_that_settings_are_chosen_on(monkeypatch):
    monkeypatch.setattr("centrobind.closed_form.bind.CHOSEN_ON", 40)
    rare = [[float(i), 1.0] if i % 40 == 1 else None for i in range(120)]
    form = fit_closed_form(easy(rare=rare), dim=4)
    z = form.embed(easy(rare=rare))
    assert torch.isfinite(z.z).all() and int(z.present[3].sum()) == 3


def test_the_closed_form_finds_what_belongs_together():
    form = fit_closed_form(easy())
    scores = retrieval(form.embed(easy().take(slice(0, 60))))
    assert scores.worst.recall[10] > 0.6
    assert all(form.matrix[name].shape == (form.features[name].width, form.choice.settings.dim) for name in "abc")


def test_embeddings_are_the_units_of_a_linear_map():
    samples = easy()
    form = fit_closed_form(samples, dim=16, anchor="b")
    z = form.embed(samples)
    column = samples.columns["c"]
    x = form.features["c"](column.values[:5]) @ form.matrix["c"] + form.bias["c"]
    rows = np.flatnonzero(column.present)[:5]
    torch.testing.assert_close(z["c"][rows], torch.nn.functional.normalize(x, dim=1))
    assert z.dim == 16 and form.anchor == "b"


def test_the_same_seed_gives_the_same_form():
    a, b = fit_closed_form(easy(), seed=1), fit_closed_form(easy(), seed=1)
    assert a.choice == b.choice
    torch.testing.assert_close(a.matrix["a"], b.matrix["a"])


def test_what_cannot_be_bound_is_refused():
    with pytest.raises(DataError, match="anchor 'd'"):
        fit_closed_form(easy(), anchor="d")
    apart = Samples.of({"a": [[1.0, 2.0]] * 4 + [None] * 4, "b": [None] * 4 + [[1.0, 2.0]] * 4})
    with pytest.raises(DataError, match="two of the modalities"):
        fit_closed_form(apart)


def test_two_ranks_find_what_one_process_finds(tmp_path):
    ranks = [found["closed_form"] for found in ranks_jobs.start(2, [("closed_form",)], tmp_path)]
    maps, scores = ranks_jobs.closed_form(ALONE)
    for rank in ranks:
        assert not isinstance(rank, str), rank
        theirs, their_scores = rank
        assert their_scores == pytest.approx(scores)
        same_up_to_sign([m for m, _ in theirs.values()], [m for m, _ in maps.values()], 1e-5)
    for name in maps:
        assert torch.equal(ranks[0][0][name][0], ranks[1][0][name][0])


def test_the_table_comes_from_the_results_file():
    results = json.loads((ROOT / "benchmarks" / "results" / "closed_form.json").read_text())
    assert bench.summary(results) in (ROOT / "docs" / "closed_form.md").read_text()
    for anchors in results.values():
        assert anchors["dynamic"]["recall@1"] > 0 and len(anchors) >= 3
