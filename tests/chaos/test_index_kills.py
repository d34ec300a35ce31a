"""A few rounds of `make chaos-index`: no write is lost, none is half there."""

import json

import pytest

from chaos.process import python


@pytest.mark.parametrize("engine", ["exact", "lancedb"])
def test_killed_writers_leave_whole_writes(tmp_path, engine):
    if engine == "lancedb":
        pytest.importorskip("lancedb", reason="needs centrobind[lancedb]")
    out = tmp_path / "found.json"
    python("-m", "chaos.index_kills", "--engines", engine, "--rounds", 1, "--points", 2, 14, 40, 60, "--out", out)
    found = json.loads(out.read_text())
    assert all(part["whole"] == part["rounds"] > 0 for part in found.values())
    if engine == "exact":
        assert len(found["exact, before every change to a file"]["landed"]) > 1
