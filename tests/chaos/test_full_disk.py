"""A disk without room: what is said names the file, and what was there before is intact."""

import json

import pytest

from chaos.process import python


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return json.loads(python("-m", "chaos.full_disk", tmp_path_factory.mktemp("full")))


@pytest.mark.parametrize(
    ("case", "error", "file"),
    [("checkpoint", "CheckpointError", "fresh.safetensors"), ("log", "RunError", "metrics.jsonl")],
)
def test_a_run_keeps_its_last_checkpoint_and_goes_on_when_there_is_room(found, case, error, file):
    case = found[case]
    assert case["said"].startswith(error) and f"{file}: could not be written (File too large" in case["said"]
    assert "it needs " in case["said"] and " bytes free on that disk" in case["said"] and "intact" in case["said"]
    assert case["step"] == 4 and case["resumed"]
    assert not [name for name in case["names"] if name.endswith(".partial") or name.startswith("fresh")]


@pytest.mark.parametrize(("case", "left"), [("import", False), ("replace", True)])
def test_an_import_leaves_no_store_or_the_old_one(found, case, left):
    case = found[case]
    assert case["said"].startswith("StoreError") and ".npy: could not be written (File too large" in case["said"]
    assert case["left"] == left and case.get("names", ["store"]) == ["store"]


@pytest.mark.parametrize(("case", "file"), [("binder", "binder.safetensors"), ("embeddings", "e.npz")])
def test_results_are_written_whole_or_not_at_all(found, case, file):
    case = found[case]
    assert f"{file}: could not be written (File too large, it needs " in case["said"] and case["left"] == []
