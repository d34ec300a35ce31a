"""Several ranks give what one process gives: gradients, weights, resumed runs, errors. Gloo on this machine."""

import pytest
import torch

import ranks_jobs
from centrobind.ranks import ALONE

SIZES = (2, 3)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each rank of groups of two and of three brings home."""
    folder = tmp_path_factory.mktemp("ranks")
    return {size: ranks_jobs.start(size, [("gradients",)], folder) for size in SIZES}


def apart(one, other):
    """The largest difference of two lists of tensors, relative to the largest number in the second."""
    return max((a - b).abs().max() for a, b in zip(one, other)) / max(b.abs().max() for b in other)


@pytest.mark.parametrize("case", ranks_jobs.CASES, ids=str)
def test_gradients_are_those_of_one_process(case, found):
    loss, expected, parts = ranks_jobs.gradient(ALONE, *case)
    assert any(value.abs().max() > 1e-4 for value in expected.values())
    for size in SIZES:
        for rank in range(size):
            assert isinstance(found[size][rank]["gradients"], dict), found[size][rank]["gradients"]
            total, gradients, _ = found[size][rank]["gradients"][case]
            assert total == pytest.approx(loss, rel=1e-10)
            assert gradients.keys() == expected.keys()
            assert apart(gradients.values(), expected.values()) < 1e-9
        assert found[size][0]["gradients"][case][2] == pytest.approx(parts)
