"""A few rounds of `make chaos`: what is killed comes back the same."""

import json

import pytest

from chaos.process import python


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """In a process of its own: it forks, and forking a process that has run all of this suite is no test of anything."""
    out = tmp_path_factory.mktemp("chaos") / "chaos.json"
    python("-m", "chaos.kills", "--rounds", 2, "--points", 2, 9, 14, "--out", out)
    return json.loads(out.read_text())


@pytest.mark.parametrize("part", ["training", "every point", "import", "every point of an import"])
def test_what_is_killed_comes_back_the_same(found, part):
    assert found[part]["identical"] == found[part]["rounds"] >= 2
    assert sum(found[part]["landed"].values()) == found[part]["kills"]


def test_the_kills_at_points_landed(found):
    assert found["every point"]["kills"] == 3 and found["every point of an import"]["kills"] > 2
    assert any(phase.startswith("checkpoint") for phase in found["every point"]["landed"])
