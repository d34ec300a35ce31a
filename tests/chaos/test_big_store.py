"""`benchmarks/big_store.py` in small, without its clock: a store is as good as memory, and takes less of it."""

import json
from pathlib import Path

import numpy as np
import torch

from centrobind.binder.binder import build_binder
from centrobind.data import Samples, open_store, write_store
from centrobind.objectives.table import LeaveOneOut
from centrobind.training.config import TrainConfig
from centrobind.training.loop import train
from chaos.process import python

ROOT = Path(__file__).parents[2]


def test_the_benchmark_runs_and_both_ways_end_with_the_same_weights(tmp_path):
    out = tmp_path / "big.json"
    script = ROOT / "benchmarks" / "big_store.py"
    python(script, "--gb", 0.15, "--steps", 16, "--turn", 8, "--folder", tmp_path, "--out", out)
    found = json.loads(out.read_text())
    assert found["same_weights"] and found["store_gb"] >= 0.15
    assert found["peak_gb"]["store"]["anonymous"] < found["peak_gb"]["memory"]["anonymous"] - 0.1
    pages = found["pages_of_one_of_two_processes"]
    assert pages["shared_mb"] > 10 * pages["private_mb"] and pages["pss_mb"] < 0.6 * pages["rss_mb"]
    assert [path.name for path in tmp_path.iterdir()] == ["big.json"]


def test_training_reads_a_store_as_it_reads_memory(mixed, tmp_path):
    """With gaps, text and pictures; the values of the opened store are never read into memory whole."""
    opened = open_store(write_store(tmp_path / "s", mixed))
    for column in opened.columns.values():
        assert isinstance(column.values if isinstance(column.values, np.ndarray) else column.values.blob, np.memmap)
    settings = TrainConfig(steps=7, batch_size=16, tensorboard=False)
    weights = []
    for samples in (mixed, opened):
        assert isinstance(samples, Samples)
        weights.append(train(build_binder(samples, dim=8), LeaveOneOut(), samples, None, settings).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
