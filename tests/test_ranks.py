"""Several ranks give what one process gives: gradients, weights, resumed runs, errors. Gloo on this machine."""

import shutil
import time
from itertools import chain

import pytest
import torch

import ranks_jobs
from centrobind.ranks import ALONE

SIZES = (2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder):
    """What each rank of a group of two, then of three, brings home."""
    path = folder / "interrupted on 2"
    jobs = [("gradients",), ("trained", folder / "on 2"), ("interrupted", path), ("mistakes", folder / "mistakes")]
    made = {2: ranks_jobs.start(2, jobs, folder)}
    shutil.copytree(path, folder / "interrupted on 2, resumed alone")
    made[3] = ranks_jobs.start(3, [("gradients",), ("trained", path, "random", ranks_jobs.SETTINGS, True)], folder)
    for ranks in made.values():
        for jobs in ranks:
            for result in jobs.values():
                assert not isinstance(result, str), result
    return made


@pytest.fixture(scope="module")
def alone(folder):
    """The same run in this process, uninterrupted."""
    return ranks_jobs.trained(ALONE, folder / "alone")


def apart(one, other):
    """The largest difference of two lists of tensors, relative to the largest number in the second."""
    return max((a - b).abs().max() for a, b in zip(one, other)) / max(b.abs().max() for b in other)


def together(parts):
    """The rows of each step, over all ranks."""
    return [list(chain(*step)) for step in zip(*parts)]


@pytest.mark.parametrize("case", ranks_jobs.CASES, ids=str)
def test_gradients_are_those_of_one_process(case, found):
    loss, expected, parts = ranks_jobs.gradient(ALONE, *case)
    assert any(value.abs().max() > 1e-4 for value in expected.values())
    for size in SIZES:
        for rank in range(size):
            total, gradients, _ = found[size][rank]["gradients"][case]
            assert total == pytest.approx(loss, rel=1e-10)
            assert gradients.keys() == expected.keys()
            assert apart(gradients.values(), expected.values()) < 1e-9
        assert found[size][0]["gradients"][case][2] == pytest.approx(parts)


def test_a_run_ends_with_the_weights_of_one_process(found, alone):
    weights, rows = alone
    for rank in range(2):
        same, part = found[2][rank]["trained"]
        assert apart(same.values(), weights.values()) < 1e-8
        assert all(torch.equal(same[name], found[2][0]["trained"][0][name]) for name in same), "ranks drifted apart"
        assert all(len(few) in (len(all_) // 2, len(all_) - len(all_) // 2) for few, all_ in zip(part, rows))
    assert together(ranks["trained"][1] for ranks in found[2]) == rows


def test_a_signal_to_one_rank_stops_all_after_the_same_step(found, folder):
    for rank, (said, said_already, rows) in enumerate(ranks["interrupted"] for ranks in found[2]):
        assert said.startswith("stopped after step 5 of 12") and len(rows) == 5
        assert said_already == (rank > 0) and ("go on with --resume" in said) == (rank == 0)


def test_another_number_of_ranks_goes_on_with_every_sample_once(found, alone, folder):
    weights, rows = alone
    before = together(ranks["interrupted"][2] for ranks in found[2])
    one = ranks_jobs.trained(ALONE, folder / "interrupted on 2, resumed alone", resume=True)
    three = [ranks["trained"] for ranks in found[3]]
    for after in ([one], three):
        seen = before + together(part for _, part in after)
        assert seen == rows
        for epoch in range(0, 12, 3):
            assert sorted(chain(*seen[epoch : epoch + 3])) == list(range(42))
        for same, _ in after:
            assert apart(same.values(), weights.values()) < 1e-8


def test_what_one_rank_finds_wrong_is_said_on_all(found):
    first, second = (ranks["mistakes"] for ranks in found[2])
    assert first == second
    assert first["another seed"].endswith(
        "the ranks do not run the same: rank 0 has {'seed': 0}, rank 1 has {'seed': 1}"
    )
    assert first["a taken folder"].startswith("RunError") and "already holds a run" in first["a taken folder"]
    assert "DataError: nothing to learn from in this batch" in first["no positive"]
    assert first["fine"] is None


def test_a_rank_that_dies_does_not_leave_the_others_waiting(folder):
    began = time.monotonic()
    (folder / "dies").mkdir()
    jobs = ranks_jobs.start(2, [("one_dies", folder / "dies" / "run")], folder / "dies")
    assert time.monotonic() - began < 60
    assert jobs[1] == {} and "RunError: another rank stopped, so this one cannot go on" in jobs[0]["one_dies"]
