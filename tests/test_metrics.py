import math

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from centrobind.errors import DataError
from centrobind.evaluation import ranks as blocks
from centrobind.evaluation.metrics import geometry, pair_ranks, rank_metrics, retrieval, uniformity
from centrobind.evaluation.ranks import Right, average_precision, first_ranks, ranks, score_ranks
from centrobind.types import Embeddings
from twins import dot, some_present, unit_vectors


def spaces(count=3, samples=20, dim=4, seed=0, gaps=True):
    present = some_present(count, samples, seed=seed) if gaps else torch.ones(count, samples, dtype=torch.bool)
    z = unit_vectors(count, samples, dim, seed=seed) * present[..., None]
    return Embeddings(z, present, tuple("abcde"[:count]))


def test_ranks_equal_the_loop_in_any_chunks(monkeypatch):
    queries, candidates = unit_vectors(2, 17, 3)
    match = torch.randperm(17, generator=torch.Generator().manual_seed(0))
    expected = []
    for q, m in zip(queries, match):
        own = dot(q, candidates[m])
        expected.append(sum(dot(q, c) >= own - 1e-12 for c in candidates))
    for queries_at_once, block in ((1, 10**6), (5, 10**6), (128, 1), (128, 17 * 7), (128, 10**6)):
        monkeypatch.setattr(blocks, "QUERIES", queries_at_once)
        monkeypatch.setattr(blocks, "BLOCK", block)
        assert ranks(queries, candidates, match).tolist() == expected


def several_right(queries=23, candidates=31, seed=0):
    """A list of right candidates for each query: one, some, or all but one."""
    draw = np.random.default_rng(seed)
    lists = [sorted(draw.choice(candidates, size, replace=False)) for size in draw.integers(1, 6, queries)]
    lists[3] = list(range(1, candidates))
    starts = torch.tensor([0, *np.cumsum([len(some) for some in lists])])
    return lists, Right(starts, torch.tensor(np.concatenate(lists)))


def test_the_first_of_several_right_answers_against_a_loop(monkeypatch):
    (q, c), (lists, right) = (unit_vectors(1, n, 3, seed=n)[0] for n in (23, 31)), several_right()
    c[5], c[9] = c[2], c[2]  # ties, right and wrong
    first, precision = [], []
    for i, some in enumerate(lists):
        scores = [dot(q[i], one) for one in c]
        wrong = [score for k, score in enumerate(scores) if k not in some]
        places = sorted((scores[k] for k in some), reverse=True)
        above = [sum(score >= one - 1e-9 for score in wrong) for one in places]
        first.append(above[0] + 1)
        precision.append(np.mean([(n + 1) / (n + 1 + worse) for n, worse in enumerate(above)]))
    for at_once in (1, 4, 128):
        monkeypatch.setattr(blocks, "QUERIES", at_once)
        assert first_ranks(q, c, right).tolist() == first
        assert average_precision(q, c, right).tolist() == pytest.approx(precision)


@pytest.mark.parametrize("dim", [2, 3, 7, 64, 100, 257, 1024])
@pytest.mark.parametrize("samples", [5, 129, 1003])
def test_equal_embeddings_tie_whatever_rounding_says(dim, samples):
    """Vectors that are one vector but for the rounding of their lengths and sums: every rank is the last."""
    draw = torch.Generator().manual_seed(dim)
    length = 1 + torch.rand(samples, 1, generator=draw)
    for one in (torch.ones(1, dim), torch.randn(1, dim, generator=draw)):
        same = Embeddings.of({"a": one * length, "b": one * length.flip(0)})
        assert pair_ranks(same, "a", "b").tolist() == [samples] * samples


def test_candidates_a_little_further_away_are_no_ties():
    angle = torch.tensor([0.0, 1e-2, 2e-2])
    candidates = torch.stack([angle.cos(), angle.sin()], 1)
    assert ranks(candidates[:1], candidates, torch.tensor([0])).tolist() == [1]


def test_ranks_follow_their_samples():
    """Repeated candidates: a rank depends neither on where a sample stands nor on its block."""
    z = unit_vectors(2, 1503, 24, dtype=torch.float32)
    z[:, 700:900] = z[:, :200]
    order = torch.randperm(1503, generator=torch.Generator().manual_seed(1))
    here = ranks(z[0], z[1], torch.arange(1503))
    assert ranks(z[0][order], z[1][order], torch.arange(1503)).equal(here[order])
    exact = z.double()
    for q in (0, 150, 699, 700, 899, 1000):
        scores = exact[1] @ exact[0, q]
        assert here[q] == int((scores >= scores[q] - 1e-9).sum()), q


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_never_wins(bad):
    z = unit_vectors(2, 9, 4, dtype=torch.float32)
    z[1] = z[0]
    broken = z.clone()
    broken[0, 3] = bad  # a query: its rank is the last one
    assert ranks(broken[0], z[1], torch.arange(9)).tolist() == [1, 1, 1, 9, 1, 1, 1, 1, 1]
    broken = z.clone()
    broken[1, 3] = torch.nan  # a candidate: it is not below anything
    assert ranks(z[0], broken[1], torch.arange(9)).tolist() == [2, 2, 2, 9, 2, 2, 2, 2, 2]
    scores = z[0] @ z[1].T
    scores[3, 3] = torch.nan
    assert score_ranks(scores, Right.single(torch.arange(9))).tolist() == [1, 1, 1, 9, 1, 1, 1, 1, 1]
    lists = Right(torch.tensor([0, 2]), torch.tensor([0, 3]))
    assert first_ranks(z[0][:1], broken[1], lists).tolist() == [1]  # by the right one that is a number


def test_recall_agrees_with_scikit_learn():
    queries, candidates = unit_vectors(2, 60, 5)
    found = rank_metrics(ranks(queries, candidates, torch.arange(60)))
    for k in (1, 5, 10):
        oracle = top_k_accuracy_score(np.arange(60), (queries @ candidates.T).numpy(), k=k, labels=np.arange(60))
        assert found.recall[k] == pytest.approx(oracle)


def test_numbers_by_hand():
    found = rank_metrics(torch.tensor([1, 2, 4, 20]))
    assert found.recall == {1: 0.25, 5: 0.75, 10: 0.75}
    assert found.mrr == pytest.approx((1 + 0.5 + 0.25 + 0.05) / 4) and found.median_rank == 3.0


def test_a_collapsed_space_ranks_last():
    same = Embeddings.of({"a": torch.ones(9, 3), "b": torch.ones(9, 3)})
    found = retrieval(same)
    assert found.mean.recall[1] == 0 and found["a", "b"].median_rank == 9


def test_a_perfect_space_ranks_first_in_every_direction():
    found = retrieval(Embeddings.of({name: torch.eye(6) for name in "abc"}))
    assert len(found) == 6 and all(found[pair].recall[1] == 1 for pair in found)
    assert found.worst.mrr == 1


@pytest.mark.parametrize("count", [2, 3, 5])
def test_missing_samples_are_neither_asked_nor_found(count):
    made = spaces(count)
    for query, target in made.pairs:
        a, b = made.index(query), made.index(target)
        both = [i for i in range(len(made)) if made.present[a, i] and made.present[b, i]]
        there = [i for i in range(len(made)) if made.present[b, i]]
        expected = [
            sum(dot(made.z[a, i], made.z[b, k]) >= dot(made.z[a, i], made.z[b, i]) - 1e-12 for k in there) for i in both
        ]
        assert pair_ranks(made, query, target).tolist() == expected


def test_mean_and_worst_are_over_ordered_pairs():
    found = retrieval(spaces())
    rows = [found[a, b].recall[5] for a in "abc" for b in "abc" if a != b]
    assert found.mean.recall[5] == pytest.approx(sum(rows) / 6) and found.worst.recall[5] == min(rows)
    medians = [found[a, b].median_rank for a in "abc" for b in "abc" if a != b]
    assert found.worst.median_rank == max(medians)


def test_pairs_nobody_has_are_left_out_and_no_pair_at_all_is_said():
    made = spaces(3, gaps=False)
    made.present[0, :10], made.present[1, 10:] = False, False
    assert ("a", "b") not in retrieval(made).pairs and ("a", "c") in retrieval(made).pairs
    made.present[2] = False
    with pytest.raises(DataError, match="no sample has two modalities"):
        retrieval(made)


def test_geometry_by_hand():
    a, b = torch.eye(4)[:2], torch.eye(4)[2:]
    found = geometry(Embeddings.of({"a": a, "b": b}))
    assert found.alignment["a", "b"] == pytest.approx(2.0)  # right angles: squared distance 2
    assert found.gap["a", "b"] == pytest.approx(1.0)  # (.5, .5, 0, 0) to (0, 0, .5, .5)
    assert found.uniformity["a"] == pytest.approx(-4.0)
    perfect = geometry(Embeddings.of({"a": a, "b": a}))
    assert perfect.mean["alignment"] == 0 and perfect.mean["gap"] == 0


def test_uniformity_equals_the_loop_and_prefers_spread():
    z = unit_vectors(1, 12, 3)[0]
    pairs = [math.exp(-2 * (2 - 2 * dot(z[i], z[j]))) for i in range(12) for j in range(i)]
    assert uniformity(z) == pytest.approx(math.log(sum(pairs) / len(pairs)))
    collapsed = uniformity(torch.ones(5, 3) / 3**0.5)
    assert collapsed == pytest.approx(0, abs=1e-6) and uniformity(z) < collapsed - 0.1
