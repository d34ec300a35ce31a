"""benchmarks/gpu.py on a CPU at toy size: what it would run on a GPU runs, and without one it claims nothing."""

import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu

    return gpu


def test_every_part_runs_and_becomes_a_section(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "SHAPES", ((3, 32, 8),))
    monkeypatch.setattr(gpu, "ROWS", 50)
    monkeypatch.setattr(gpu, "TURNS", 1)
    step = gpu.of_step
    monkeypatch.setattr(gpu, "of_step", lambda device: step(device, steps=4))
    results = json.loads(json.dumps(gpu.measure(CPU)))
    assert results["loss"]["3x32x8"].keys() == set(gpu.NAMES)
    text = gpu.section(results)
    assert "CPU, torch" in text and "3x32x8" in text and "best ten of 50 rows" in text
    assert all(value > 0 for value in results["loss"]["3x32x8"].values()) and results["step"] > 0
    del results["loss"]["3x32x8"]["all pairs, open_clip form"]
    assert "out of memory" in gpu.section(results)


def test_without_a_gpu_nothing_is_claimed(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "gpu.json")
    gpu.main()
    assert "not measured" in capsys.readouterr().out and not gpu.RESULTS.exists()
    (figure,) = gpu.quick()
    assert figure.measured is None and figure.verdict.startswith("not measured")


def test_the_docs_show_what_the_results_file_holds(gpu):
    results = json.loads(gpu.RESULTS.read_text()) if gpu.RESULTS.exists() else None
    shown = gpu.PAGE.read_text()
    assert gpu.pages.filled(shown, {"GPU section": gpu.section(results)}) == shown
