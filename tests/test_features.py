"""Features made once: what comes out, what is refused, and that a kill costs a part and not the whole."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import centrobind.binder.features as features
from centrobind.binder.features import featurize, featurize_store, fingerprint
from centrobind.cli.main import app
from centrobind.data import Samples, open_store, write_store
from centrobind.errors import ConfigError, DataError, StoreError


def lengths(texts):
    """The literal twin of an extractor: letters and words of each text."""
    return [[len(text), len(text.split())] for text in texts]


def sums(pictures):
    return pictures.reshape(len(pictures), -1).astype(np.float64).sum(1, keepdims=True)


def by_hand(samples, name, extractor):
    """One sample at a time, NaN where it is missing."""
    out = []
    for i in range(len(samples)):
        value = samples.columns[name].take(np.array([i]))
        out.append(np.asarray(extractor(value))[0] if len(value) else None)
    width = next(len(row) for row in out if row is not None)
    return np.array([np.full(width, np.nan) if row is None else row for row in out])


def spread(column):
    """(N, width), NaN where missing."""
    out = np.full((len(column.rows), *column.shape), np.nan)
    out[column.present] = column.take(np.arange(len(column.rows)))
    return out


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_features_are_those_of_one_sample_at_a_time(mixed, batch_size):
    shuffled = mixed.take(np.random.default_rng(0).permutation(60)[:41])
    for samples in (mixed, shuffled, mixed.part("test")):
        found = featurize(samples, {"text": lengths, "picture": sums}, batch_size=batch_size)
        np.testing.assert_array_equal(spread(found.columns["text"]), by_hand(samples, "text", lengths))
        np.testing.assert_array_equal(spread(found.columns["picture"]), by_hand(samples, "picture", sums))
        assert found.columns["text"].kind == "vector" and found.modalities == samples.modalities
        assert found.columns["series"] is samples.columns["series"] and found.split is samples.split
    assert len(featurize(mixed.part("test"), {"text": lengths}).columns["text"].values) < 60


@pytest.mark.parametrize("part", [5, 1000])
def test_a_store_of_features_is_the_same(mixed, tmp_path, monkeypatch, part):
    monkeypatch.setattr(features, "PART", part)
    monkeypatch.setattr(features, "CHUNK", 13)
    write_store(tmp_path / "raw", mixed)
    done = []
    featurize_store(tmp_path / "raw", tmp_path / "out", {"text": lengths, "picture": sums}, watch=done.append)
    found, expected = open_store(tmp_path / "out", verify=True), featurize(mixed, {"text": lengths, "picture": sums})
    for name in mixed.modalities:
        np.testing.assert_array_equal(
            spread(found.columns[name]), spread(expected.columns[name])
        ) if name != "series" else None
    assert found.ids[:] == mixed.ids[:] and found.split.codes.tolist() == mixed.split.codes.tolist()
    assert done == sorted(done) and done[-1] == mixed.present[[0, 2]].sum()
    assert not (tmp_path / "out.features").exists()
    with pytest.raises(StoreError, match="exists already"):
        featurize_store(tmp_path / "raw", tmp_path / "out", {"text": lengths})


class Counting(torch.nn.Module):
    """Counts the values it has seen, and stops after some."""

    def __init__(self, stop_after=10**9):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen, self.stop_after = 0, stop_after

    def forward(self, x):
        if self.seen >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(x)
        assert isinstance(x, torch.Tensor) and not self.training and not torch.is_grad_enabled()
        return self.weight * x.flatten(1).float().mean(1, keepdim=True)


def test_it_goes_on_where_it_was_stopped_and_only_there(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 10)
    write_store(tmp_path / "raw", mixed)
    count = int(mixed.columns["series"].present.sum())
    with pytest.raises(KeyboardInterrupt):
        featurize_store(tmp_path / "raw", tmp_path / "out", {"series": Counting(25)}, batch_size=5)
    assert not (tmp_path / "out").exists() and len(list((tmp_path / "out.features").glob("*.npy"))) == 2
    again = Counting()
    featurize_store(tmp_path / "raw", tmp_path / "out", {"series": again})
    assert again.seen == count - 20
    np.testing.assert_allclose(
        open_store(tmp_path / "out").columns["series"].values[:, 0],
        mixed.columns["series"].values.mean((1, 2)),
        rtol=1e-5,
    )
    # Other weights, or another source: nothing of what is there may be used.
    for change in ("weights", "source"):
        with pytest.raises(KeyboardInterrupt):
            featurize_store(tmp_path / "raw", tmp_path / change, {"series": Counting(25)}, batch_size=5)
        other = Counting()
        if change == "weights":
            other.weight.data += 1
        else:
            write_store(tmp_path / "raw", mixed.take(slice(0, 50)), replace=True)
        featurize_store(tmp_path / "raw", tmp_path / change, {"series": other})
        assert other.seen == open_store(tmp_path / "raw").columns["series"].present.sum()


def test_a_fingerprint_changes_with_any_weight():
    one, two = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    two.load_state_dict(one.state_dict())
    assert fingerprint(one) == fingerprint(two) and len(fingerprint(one)) == 16
    two.bias.data[1] += 1e-6
    assert fingerprint(one) != fingerprint(two)
    assert "lengths" in fingerprint(lengths)


@pytest.mark.parametrize(
    ("extractors", "says"),
    [
        ({}, "at least one modality"),
        ({"sound": lengths}, r"unknown modalities \['sound'\]"),
        ({"text": lambda texts: [[1.0]]}, r"\(49, features\) numbers .* got float64 of shape \(1, 1\)"),
        ({"text": lambda texts: [len(text) for text in texts]}, "one row for each value"),
        ({"text": lambda texts: [["a"] for _ in texts]}, "got <U1"),
        ({"text": lambda texts: [[np.nan] for _ in texts]}, "NaN or inf"),
        ({"text": "own.py:nothing"}, "no Python file 'own.py'"),
        ({"text": "something"}, "expected hf:FOLDER, hf:NAME or file.py:function"),
        ({"text": "hf:"}, "expected hf:FOLDER"),
    ],
)
def test_mistakes_are_said(mixed, extractors, says):
    with pytest.raises((DataError, ConfigError), match=says):
        featurize(mixed, extractors)


OWN = """
import numpy as np
def lengths(texts):
    return [[len(text), len(text.split())] for text in texts]
"""


def test_on_the_command_line_with_a_function_of_ones_own(mixed, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    write_store(tmp_path / "raw", mixed)
    said = CliRunner().invoke(
        app,
        ["featurize", str(tmp_path / "raw"), str(tmp_path / "out"), "--modality", f"text={tmp_path}/own.py:lengths"],
    )
    assert said.exit_code == 0, said.output
    found = open_store(tmp_path / "out")
    np.testing.assert_array_equal(spread(found.columns["text"]), by_hand(mixed, "text", lengths))
    assert found.columns["text"].reading == f"text | {tmp_path}/own.py:lengths"
    with pytest.raises(ConfigError, match="no function 'length'"):
        featurize(mixed, {"text": f"{tmp_path}/own.py:length"})


def test_torchrun_shares_the_parts_and_goes_on_where_another_was_stopped(mixed, tmp_path, monkeypatch):
    small = "import centrobind.binder.features\ncentrobind.binder.features.PART = 10\n"
    stop = "seen = []\ndef lengths(texts, whole=lengths):\n    seen.append(1)\n    if len(seen) > 2: raise KeyboardInterrupt\n    return whole(texts)\n"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(features, "PART", 10)
    write_store("raw", mixed)
    Path("own.py").write_text(OWN + stop)
    with pytest.raises(KeyboardInterrupt):
        featurize_store("raw", "out", {"text": "own.py:lengths"})
    parts = {file.name: file.read_bytes() for file in Path("out.features").glob("*.npy")}
    assert sorted(parts) == ["text-0.npy", "text-1.npy"]
    Path("own.py").write_text(
        OWN.replace("len(text), ", "len(text) + 1000 * int(os.environ['RANK']), ") + "import os\n" + small
    )
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "centrobind", "featurize"]
    command += ["raw", "out", "--modality", "text=own.py:lengths"]
    ways = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=ways, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    found, expected = spread(open_store("out", verify=True).columns["text"]), by_hand(mixed, "text", lengths)
    np.testing.assert_array_equal(found % 1000, expected)
    by_rank = (found[mixed.columns["text"].present, 0] // 1000).astype(int)
    # The first two parts are those of the run that was stopped; then the ranks take turns.
    assert by_rank.tolist() == [0] * 20 + [part % 2 for part in range(2, 5) for _ in range(10)][: len(by_rank) - 20]


def test_features_train(mixed, tmp_path):
    import centrobind

    found = featurize(mixed, {"text": lengths})
    binder = centrobind.fit(found.only(["text", "series"]), steps=3, show_progress=False)
    assert isinstance(found, Samples) and binder.kinds["text"] == "vector"
