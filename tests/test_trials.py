"""What a trial measures, against loops; and that it does what its row says."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import centrobind as cb
from centrobind.arena.contenders import contenders
from centrobind.arena.plan import ArenaConfig, finals, starts
from centrobind.arena.trials import native_retrieval, run_trial, store_of, subset_retrieval
from centrobind.binder.checkpoint import load
from centrobind.types import Embeddings
from twins import dot, some_present, unit_vectors

NAMES = ("m0", "m1", "m2")


def space(count, samples, gaps=True):
    z = unit_vectors(count, samples, 4, dtype=torch.float32)
    present = some_present(count, samples) if gaps else torch.ones(count, samples, dtype=torch.bool)
    names = [f"m{m}" for m in range(count)]
    return Embeddings.of(dict(zip(names, z)), dict(zip(names, present)))


def rank_among(scores, own):
    return sum(score >= scores[own] for score in scores)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_many_to_one_against_a_loop(count):
    found = space(count, 13)
    z, present = found.z.tolist(), found.present.tolist()
    for size, got in subset_retrieval(found).items():
        values = []
        for target in range(count):
            rest = [m for m in range(count) if m != target]
            for subset in itertools.combinations(rest, size):
                candidates = [j for j in range(13) if present[target][j]]
                hits = []
                for i in candidates:
                    have = [m for m in subset if present[m][i]]
                    if have:
                        query = [sum(z[m][i][d] for m in have) for d in range(4)]
                        scores = {j: dot(query, z[target][j]) for j in candidates}
                        hits.append(sum(score >= scores[i] - 1e-7 for score in scores.values()) <= 1)
                values.append(sum(hits) / len(hits))
        assert got == pytest.approx(sum(values) / len(values)), size


@pytest.mark.parametrize(
    ("objective", "count"), [("leave_one_out", 2), ("leave_one_out", 5), ("symile", 3), ("gram", 3)]
)
def test_native_retrieval_scores_one_candidate_at_a_time(objective, count):
    found, made = space(count, 40), cb.OBJECTIVES[objective](temperature=0.1)
    whole = found.z[:, found.present.all(0)]
    n = whole.shape[1]
    assert 3 <= n < 40
    ranks = []
    for m in range(count):
        rest = [k for k in range(count) if k != m]
        for i in range(n):
            scores = [float(made.similarity(whole[m, j, None], whole[rest][:, i, None])) for j in range(n)]
            ranks.append(sum(score >= scores[i] - 1e-6 for score in scores))
    got = native_retrieval(made, found)
    assert got["recall@1"] == pytest.approx(np.mean([rank <= 1 for rank in ranks]))
    assert got["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))


def test_native_retrieval_needs_complete_samples():
    found = space(2, 4)
    nobody = found.with_z(found.z, torch.tensor([[True] * 4, [False] * 4]))
    assert math.isnan(native_retrieval(cb.LeaveOneOut(), nobody)["mrr"])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The start and one final trial on a small store."""
    out = tmp_path_factory.mktemp("arena")
    cb.write_store(out / "data", cb.synthetic(160, modalities=3, missing=0.1))
    config = ArenaConfig(data=[str(out / "data")], out=str(out), steps=6, batch_size=32, seeds=1, dim=8)
    (out / "starts").mkdir()
    data = config.datasets()[0]
    start = next(starts(config, data))
    final = next(finals(config, data, contenders(["leave_one_out"], NAMES)[0], (0.1, 5e-3)))
    return out, data, start, run_trial(start, data, out), final, run_trial(final, data, out)


def test_a_row_is_json_and_has_every_measure(done):
    *_, row = done
    assert json.loads(json.dumps(row)) == row
    expected = {
        "mean/recall@1",
        "worst/recall@10",
        "probe/all",
        "transfer/mean",
        "native/recall@1",
        "from_1/recall@1",
        "from_2/recall@1",
        "mean/gap",
    }
    assert expected <= row["test"].keys(), expected - row["test"].keys()
    assert {"cosine", "native", "mean", "worst"} == row["valid"].keys() and row["seconds"] > 0


def test_outcomes_and_measures_agree(done):
    out, _, _, _, final, row = done
    kept = np.load(out / "outcomes" / f"{final.key}.npz")
    for pair in ("m0_to_m1", "m2_to_m0"):
        ranks = kept[f"{pair}/rank"]
        ranks = ranks[np.isfinite(ranks)]
        assert (ranks <= 1).mean() == pytest.approx(row["test"][f"{pair}/recall@1"], abs=1e-6)
    assert np.nanmean(kept["probe/all"]) == pytest.approx(row["test"]["probe/all"], abs=1e-6)


def test_the_same_trial_gives_the_same_row(done):
    out, data, _, _, final, row = done
    again = run_trial(final, data, out)
    assert {**again, "seconds": 0} == {**row, "seconds": 0}


def test_every_contender_starts_from_the_same_towers(done):
    out, data, _, _, final, _ = done
    still = replace(final, stage="search", lr=1e-12)
    begun = load(out / "starts" / f"{data.label}-0.safetensors")
    before = cb.retrieval(begun.embed(cb.open_store(store_of(data, out)).part("train")))
    assert run_trial(still, data, out)["valid"]["cosine"] == pytest.approx(
        cb.retrieval(
            begun.embed(cb.data.train_and_valid(cb.open_store(store_of(data, out)), valid=0.2, seed=0)[1])
        ).mean.mrr,
        abs=1e-4,
    )
    assert before.mean.mrr > 0


def test_the_search_never_sees_the_test_split(done, monkeypatch):
    out, data, _, _, final, _ = done
    asked = []
    part = cb.Samples.part
    monkeypatch.setattr(cb.Samples, "part", lambda self, name: asked.append(name) or part(self, name))
    assert "test" not in run_trial(replace(final, stage="search"), data, out)
    assert "test" not in asked
