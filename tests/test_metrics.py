import math

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from centrobind.errors import DataError
from centrobind.evaluation import metrics
from centrobind.evaluation.metrics import geometry, pair_ranks, rank_metrics, ranks, retrieval, uniformity
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
    for chunk in (1, 5, 16, 17, 1000):
        monkeypatch.setattr(metrics, "CHUNK", chunk)
        assert ranks(queries, candidates, match).tolist() == expected


def test_recall_agrees_with_scikit_learn():
    queries, candidates = unit_vectors(2, 60, 5)
    found = rank_metrics(ranks(queries, candidates, torch.arange(60)))
    for k in (1, 5, 10):
        oracle = top_k_accuracy_score(np.arange(60), (queries @ candidates.T).numpy(), k=k, labels=np.arange(60))
        assert found[f"recall@{k}"] == pytest.approx(oracle)


def test_numbers_by_hand():
    found = rank_metrics(torch.tensor([1, 2, 4, 20]))
    assert found["recall@1"] == 0.25 and found["recall@5"] == 0.75 and found["recall@10"] == 0.75
    assert found["mrr"] == pytest.approx((1 + 0.5 + 0.25 + 0.05) / 4) and found["median_rank"] == 3.0


def test_a_collapsed_space_ranks_last():
    same = Embeddings.of({"a": torch.ones(9, 3), "b": torch.ones(9, 3)})
    found = retrieval(same)
    assert found["mean/recall@1"] == 0 and found["a_to_b/median_rank"] == 9


def test_a_perfect_space_ranks_first_in_every_direction():
    found = retrieval(Embeddings.of({name: torch.eye(6) for name in "abc"}))
    assert all(found[f"{a}_to_{b}/recall@1"] == 1 for a in "abc" for b in "abc" if a != b)
    assert found["worst/mrr"] == 1


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
    rows = [found[f"{a}_to_{b}/recall@5"] for a in "abc" for b in "abc" if a != b]
    assert found["mean/recall@5"] == pytest.approx(sum(rows) / 6) and found["worst/recall@5"] == min(rows)
    medians = [found[f"{a}_to_{b}/median_rank"] for a in "abc" for b in "abc" if a != b]
    assert found["worst/median_rank"] == max(medians)


def test_pairs_nobody_has_are_left_out_and_no_pair_at_all_is_said():
    made = spaces(3, gaps=False)
    made.present[0, :10], made.present[1, 10:] = False, False
    assert "a_to_b/mrr" not in retrieval(made) and "a_to_c/mrr" in retrieval(made)
    made.present[2] = False
    with pytest.raises(DataError, match="no sample has two modalities"):
        retrieval(made)


def test_geometry_by_hand():
    a, b = torch.eye(4)[:2], torch.eye(4)[2:]
    found = geometry(Embeddings.of({"a": a, "b": b}))
    assert found["a_b/alignment"] == pytest.approx(2.0)  # right angles: squared distance 2
    assert found["a_b/gap"] == pytest.approx(1.0)  # (.5, .5, 0, 0) to (0, 0, .5, .5)
    assert found["a/uniformity"] == pytest.approx(-4.0)
    perfect = geometry(Embeddings.of({"a": a, "b": a}))
    assert perfect["mean/alignment"] == 0 and perfect["mean/gap"] == 0


def test_uniformity_equals_the_loop_and_prefers_spread():
    z = unit_vectors(1, 12, 3)[0]
    pairs = [math.exp(-2 * (2 - 2 * dot(z[i], z[j]))) for i in range(12) for j in range(i)]
    assert uniformity(z) == pytest.approx(math.log(sum(pairs) / len(pairs)))
    collapsed = uniformity(torch.ones(5, 3) / 3**0.5)
    assert collapsed == pytest.approx(0, abs=1e-6) and uniformity(z) < collapsed - 0.1
