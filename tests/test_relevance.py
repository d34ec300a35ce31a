"""Several right answers: groups of relevance, repeated values, in every measure that ranks."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

import centrobind as cb
from centrobind.arena.trials import native_retrieval, subset_retrieval
from centrobind.binder.binder import build_binder
from centrobind.binder.embedding import load_embeddings, save_embeddings
from centrobind.data import Samples, sameness
from centrobind.data.repeats import MISSING
from centrobind.errors import CentrobindWarning, DataError
from centrobind.evaluation.evaluate import recall_differences, recall_intervals
from centrobind.evaluation.metrics import ranks_by_sample, retrieval
from centrobind.evaluation.relevance import with_relevance
from centrobind.types import Embeddings
from twins import dot

PICTURES, CAPTIONS = 4, 5


def captions(noise=0.05):
    """Four pictures with five captions each, found perfectly: a row per caption."""
    picture = torch.eye(PICTURES, 8).repeat_interleave(CAPTIONS, 0)
    caption = picture + noise * torch.randn(len(picture), 8, generator=torch.Generator().manual_seed(0))
    return {"image": picture, "text": caption}


def repeated(modalities, samples=24, seed=0, gaps=True, groups=False):
    """Embeddings in which samples repeat values, and stand in groups, with gaps; none of equal similarity."""
    draw = np.random.default_rng(seed)
    z = torch.zeros(modalities, samples, 5, dtype=torch.float64)
    values = np.zeros((modalities, samples), np.int64)
    for m in range(modalities):
        values[m] = 1 + draw.integers(0, samples * 2 // 3, samples)
        table = torch.nn.functional.normalize(torch.from_numpy(draw.normal(size=(samples, 5))), dim=1)
        z[m] = table[values[m] - 1]
    present = torch.from_numpy(draw.random((modalities, samples)) < (0.7 if gaps else 2))
    present[:2, :4] = True
    values[~present.numpy()] = MISSING
    codes = np.where(draw.random(samples) < 0.8, draw.integers(0, samples // 3, samples), -1) if groups else None
    return Embeddings(z * present[..., None], present, tuple("abcde"[:modalities]), None, codes, values)


def literal(embeddings, query, target, ks=(1, 5, 10)):
    """Ranks, average precision and chance by sample, straight from the definition."""
    a, b = embeddings.index(query), embeddings.index(target)
    here, values, groups = embeddings.present.tolist(), embeddings.values.tolist(), embeddings.groups
    samples = range(len(embeddings))

    def together(i, j):
        if groups is None:
            return here[a][i] and here[a][j] and values[a][i] == values[a][j]
        return i == j or (groups[i] >= 0 and groups[i] == groups[j])

    candidates = {values[b][j]: embeddings.z[b, j] for j in samples if here[b][j]}
    found = {}
    for i in samples:
        if not (here[a][i] and here[b][i]):
            continue
        right = {values[b][j] for j in samples if here[b][j] and together(i, j)}
        score = {value: dot(embeddings.z[a, i], z) for value, z in candidates.items()}
        wrong = [score[value] for value in candidates if value not in right]
        above = sorted(sum(one >= score[value] - 1e-12 for one in wrong) for value in right)
        precision = sum((n + 1) / (n + 1 + worse) for n, worse in enumerate(above)) / len(right)
        n = len(candidates)
        chance = [1 - math.comb(n - len(right), min(k, n)) / math.comb(n, min(k, n)) for k in ks]
        found[i] = above[0] + 1, precision, chance
    return found


def test_a_perfect_model_of_pictures_with_five_captions_finds_everything():
    """CLIP#115: recall@1 was .20 and 0. Any of the five captions is right, and a picture is one candidate."""
    who = np.repeat(np.arange(PICTURES), CAPTIONS)
    found = retrieval(Embeddings.of(captions()), groups=who)
    for row in found.pairs.values():
        assert row.recall[1] == row.map == 1 and row.chance[1] == pytest.approx(1 / 4)
    assert found["text", "image"].recall[5] == 1
    with pytest.warns(CentrobindWarning, match=r"image \(4 of 20 differ\)"):
        assert retrieval(Embeddings.of(captions())) == found


def test_candidates_are_distinct_values():
    """A wrong picture stands in the way once, not once per caption: the COCO protocol."""
    made = captions()
    made["text"][:5] = torch.eye(8)[1] + 0.5 * torch.eye(8)[0]  # the first picture's captions say the second first
    found = retrieval(Embeddings.of(made), groups=np.repeat(np.arange(PICTURES), CAPTIONS))
    assert found["text", "image"].recall[1] == 0.75 and found["text", "image"].recall[5] == 1
    assert found["text", "image"].mrr == pytest.approx((15 + 5 / 2) / 20)


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_direction_against_a_loop(count, groups):
    made = repeated(count, groups=groups, seed=count)
    got = retrieval(made)
    for query, target in made.pairs:
        expected = literal(made, query, target)
        by_sample = ranks_by_sample(made, query, target)
        assert {i: rank for i, rank in enumerate(by_sample) if math.isfinite(rank)} == {
            i: rank for i, (rank, _, _) in expected.items()
        }
        row = got[query, target]
        assert row.map == pytest.approx(np.mean([precision for _, precision, _ in expected.values()]))
        assert row.mrr == pytest.approx(np.mean([1 / rank for rank, _, _ in expected.values()]))
        assert row.queries == len(expected)
        for place, k in enumerate((1, 5, 10)):
            assert row.chance[k] == pytest.approx(np.mean([chance[place] for _, _, chance in expected.values()]))


def test_without_repeats_and_groups_it_is_the_plain_rank():
    z = torch.nn.functional.normalize(torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(2)), dim=2)
    made = Embeddings(z, torch.ones(2, 30, dtype=torch.bool), ("a", "b"))
    plain = [int((z[1] @ z[0, i] >= z[0, i] @ z[1, i] - 1e-6).sum()) for i in range(30)]
    assert ranks_by_sample(made, "a", "b").tolist() == plain and retrieval(made)["a", "b"].map is None


def test_a_dead_encoder_repeats_nothing():
    """Equal embeddings of which one stands for most samples: no values that repeat, everything ties, the last rank."""
    spread = torch.nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    dead = torch.ones(40, 6) * (1 + torch.rand(40, 1, generator=torch.Generator().manual_seed(1)))
    found = retrieval(Embeddings.of({"a": spread, "b": dead}))
    assert found["a", "b"].median_rank == 40 and found["a", "b"].recall[10] == 0
    assert found["a", "b"].candidates == 40


def test_groups_of_another_length_are_refused():
    with pytest.raises(DataError, match="groups: expected 20, one per sample, got 19"):
        retrieval(Embeddings.of(captions()), groups=range(19))


def things(group, image, **more):
    return Samples.of(
        {"image": np.asarray(image, np.float32)[:, None], "text": list("abcdefghijkl")[: len(image)]}, group=group
    )


@pytest.mark.parametrize(
    ("group", "image", "expected"),
    [
        ([0, 0, 0, 1, 1, 1], [5, 5, 5, 6, 6, 6], [0, 0, 0, 1, 1, 1]),  # captions of pictures
        ([0, 0, 0, 1, 1, 1], [1, 2, 3, 4, 5, 6], None),  # the plates of two patients
        ([0, 0, 0, 1, 1, 1], [1, 2, 3, 1, 2, 3], None),  # what repeats, repeats across groups
        ([0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 3, 4], [0, 0, 1, 1, 2, 2]),  # most do
        ([0, 1, 2, 3, 4, 5], [1, 1, 2, 2, 3, 4], None),  # nobody stands with another
        ([0, 0, None, 1, 1, ""], [5, 5, 5, 6, 6, 6], [0, 0, -1, 1, 1, -1]),
    ],
)
def test_what_a_group_column_means(group, image, expected):
    found, values = sameness(things(group, image))
    assert (None if found is None else found.tolist()) == expected
    assert values.shape == (2, 6) and len(set(values[1])) == 6


def test_groups_hang_together_by_any_chain_of_values():
    data = Samples.of({"a": np.array([[1.0], [1], [2]]), "b": np.array([[3.0], [4], [4]])}, group=[0, 0, 0])
    assert sameness(data)[0].tolist() == [0, 0, 0]
    gaps = Samples.of({"a": np.array([[1.0], [1], [2]]), "b": [None, [4.0], [4.0]]}, group=[0, 0, 0])
    assert sameness(gaps)[0].tolist() == [0, 0, 0] and sameness(gaps)[1][1, 0] == MISSING


def test_embed_carries_groups_and_values_and_they_follow_their_samples(tmp_path):
    draw = np.random.default_rng(0)
    picture = np.repeat(draw.normal(size=(6, 3)), 2, 0).astype(np.float32)
    data = Samples.of(
        {"picture": picture, "text": [f"word{i % 9} thing" for i in range(12)]},
        present={"text": np.arange(12) != 3},
        group=np.repeat(list("uvwxyz"), 2),
    )
    made = build_binder(data, dim=4).embed(data, batch_size=5)
    groups, values = sameness(data)
    assert made.groups.tolist() == groups.tolist() == np.repeat(np.arange(6), 2).tolist()
    np.testing.assert_array_equal(made.values, values)
    assert (made.values[1] == MISSING).tolist() == [i == 3 for i in range(12)]
    part = made.take([4, 0]).only(["text"])
    assert part.groups.tolist() == [2, 0] and part.values.tolist() == [[values[1, 4], values[1, 0]]]
    save_embeddings(tmp_path / "e.npz", made)
    again = load_embeddings(tmp_path / "e.npz")
    np.testing.assert_array_equal(again.values, values)
    assert retrieval(again) == retrieval(made) and again.groups.tolist() == groups.tolist()


def test_in_the_demo_a_perfect_model_finds_everything():
    """149 of 1,114 test glyphs share their picture with another one: no model could be above .866."""
    test = cb.glyphs().part("test")
    groups, values = sameness(test)
    shared = Counter(values[0])
    assert sum(shared[one] > 1 for one in values[0]) > 100
    draw = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(len(test), 64, generator=draw), dim=1)

    def perfect(things, groups):
        z = directions[np.unique(things, return_inverse=True)[1]].expand(3, -1, -1)
        return Embeddings(z, torch.ones(3, len(test), dtype=torch.bool), test.modalities, None, groups, values)

    found = retrieval(perfect(groups, groups))
    assert found.mean.recall[1] == found.worst.recall[1] == 1
    found = retrieval(perfect(values[0], None).only(["image", "name"]))  # without groups: whatever shares a picture
    assert found.mean.recall[1] == found.worst.recall[1] == 1


def test_intervals_draw_whole_groups():
    """A group of ten counts once: as wide as the interval of one sample for each group."""
    right = torch.rand(40, generator=torch.Generator().manual_seed(3)) < 0.5
    z = torch.eye(41)
    other = torch.where(right[:, None], z[:40], z[40])
    single = recall_intervals(Embeddings.of({"a": z[:40], "b": other}), 400, groups=range(40))
    ten = {name: rows.repeat_interleave(10, 0) for name, rows in (("a", z[:40]), ("b", other))}
    grouped = recall_intervals(Embeddings.of(ten), 400, groups=np.repeat(np.arange(40), 10))
    assert grouped["a", "b"][1] == pytest.approx(single["a", "b"][1])


def test_paired_differences_know_groups_and_refuse_other_samples():
    who = np.repeat(np.arange(PICTURES), CAPTIONS)
    ids = [f"s{i}" for i in range(20)]
    good = Embeddings.of(captions(), ids=ids)
    bad = Embeddings.of(captions() | {"text": captions()["text"].roll(5, 0)}, ids=ids)
    difference = recall_differences(good, bad, groups=who)
    assert difference["image", "text"] == difference.mean == (1, 1, 1)
    assert recall_differences(good, good, groups=who).worst == (0, 0, 0)
    order = np.arange(20)[::-1].copy()
    with pytest.raises(DataError, match=r"20 of 20 ids differ, the first at row 0: 's0' and 's19'"):
        recall_differences(good, good.take(order), groups=who)
    with pytest.raises(DataError, match="differ in who has what"):
        recall_differences(good, good.only(["text", "image"]), groups=who)


def test_every_measure_takes_groups():
    made = captions()
    made["text"] = made["text"].roll(5, 0)
    wrong, who = Embeddings.of(made), np.repeat(np.arange(PICTURES), CAPTIONS)
    labels = list(who)
    found = cb.evaluate(wrong, labels, groups=who, resamples=20)
    assert found.mean.recall[1] == 0 and found.mean.interval[1].high == 0
    together = cb.evaluate(wrong, labels, groups=[0] * 20, resamples=20)
    assert together.mean.recall[1] == 1, "all are one thing"


def test_the_arena_asks_for_groups_too():
    """From any subset, and by the objective's own score: a perfect model of pictures, captions and sounds."""
    made = captions()
    made["sound"] = made["text"].roll(1, 0)  # the next caption's: of the same picture but at its end
    made["sound"][::5] = made["text"][::5]
    space = with_relevance(Embeddings.of(made), np.repeat(np.arange(PICTURES), CAPTIONS))
    assert subset_retrieval(space) == {1: 1.0, 2: 1.0}
    assert native_retrieval(cb.AllPairs(), space)["recall@1"] == 1
    alone = with_relevance(Embeddings.of(made), range(20))
    assert subset_retrieval(alone)[1] < 0.9 and native_retrieval(cb.AllPairs(), alone)["recall@1"] < 0.9
