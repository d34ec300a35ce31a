"""The command line as a person meets it: what works, and what a mistake says."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from centrobind.binder.embedding import load_embeddings
from centrobind.cli.main import app, main


def run(*arguments):
    """Exit code and what was printed, through main(), so that errors take the way they take for a user."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def unwrapped(said):
    """Long paths make a terminal break lines anywhere."""
    return " ".join(said.split())


def fails(capsys, *arguments):
    """The message of a mistake: exit code 2, no traceback."""
    argv = sys.argv
    sys.argv = ["centrobind", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stopped:
            main()
    finally:
        sys.argv = argv
    said = capsys.readouterr()
    assert stopped.value.code == 2 and "Traceback" not in said.err
    return re.sub(r"\s+", " ", said.err)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An npz, a store made of it, and a run trained on that, all through the command line."""
    folder = tmp_path_factory.mktemp("world")
    draw = np.random.default_rng(0)
    label = np.arange(90) % 3
    np.savez(
        folder / "data.npz",
        x_a=np.eye(6)[label] + 0.3 * draw.normal(size=(90, 6)),
        x_b=np.eye(4)[label] + 0.3 * draw.normal(size=(90, 4)),
        present_b=draw.random(90) > 0.2,
        label=label,
        split=np.where(np.arange(90) < 60, "train", "test"),
    )
    (folder / "run.yaml").write_text(
        f"data: {folder / 'store'}\nout: {folder / 'run'}\ndim: 8\nobjective: {{name: centrobind}}\n"
        "train: {steps: 20, batch_size: 32, tensorboard: false}\n"
    )
    imported = run("import", folder / "data.npz", folder / "store")
    trained = run("train", folder / "run.yaml")
    assert imported.exit_code == 0 and trained.exit_code == 0, imported.output + trained.output
    return folder, imported.output, trained.output


def test_import_shows_what_it_found(world):
    said = unwrapped(world[1])
    assert "90 samples" in said and "vector" in said and "a + b" in said and "train 60, test 30" in said


def test_train_leaves_a_run(world):
    folder, _, said = world
    names = {path.name for path in (folder / "run").iterdir()}
    assert {"config.yaml", "metrics.jsonl", "last.safetensors", "best.safetensors", "binder.safetensors"} <= names
    assert "binder.safetensors" in said


def test_evaluate_prints_a_table_and_writes_json(world):
    folder, _, _ = world
    said = run("evaluate", folder / "run", folder / "store", "--out", folder / "e.json").output
    assert "30 samples" in said and "worst" in said and "trained on one and tested on another: a → b" in said
    assert max(map(len, said.splitlines())) <= 100
    found = json.loads((folder / "e.json").read_text())
    assert found["a_to_b/recall@10"] >= found["a_to_b/recall@1"] and "probe/all" in found
    valid = run("evaluate", folder / "run", folder / "store", "--split", "train")
    assert valid.exit_code == 0 and "60 samples" in valid.output


def test_embed_writes_npz_or_store_and_both_can_be_data_again(world):
    folder, _, _ = world
    assert run("embed", folder / "run", folder / "store", folder / "e.npz").exit_code == 0
    assert run("embed", folder / "run", folder / "store", folder / "e", "--split", "test").exit_code == 0
    made = load_embeddings(folder / "e.npz")
    assert made.z.shape == (2, 90, 8) and made.modalities == ("a", "b") and not made.present.all()
    assert "90 samples" in unwrapped(run("import", folder / "e.npz", folder / "again").output)
    assert json.loads(run("inspect", folder / "e", "--json").output)["samples"] == 30


def test_inspect_and_verify(world):
    folder, _, _ = world
    assert "findings" in run("inspect", folder / "store", "--verify").output
    found = json.loads(run("inspect", folder / "store", "--json").output)
    assert found["modalities"]["b"]["missing"] > 0.05


def test_resume_of_a_finished_run_changes_nothing_and_force_starts_over(world):
    folder, _, _ = world
    before = (folder / "run" / "binder.safetensors").read_bytes()
    assert run("train", folder / "run.yaml", "--resume").exit_code == 0
    assert (folder / "run" / "binder.safetensors").read_bytes() == before
    assert run("train", folder / "run.yaml", "--force", "--set", "seed=1").exit_code == 0
    assert (folder / "run" / "binder.safetensors").read_bytes() != before
    assert run("train", folder / "run.yaml", "--force").exit_code == 0
    assert (folder / "run" / "binder.safetensors").read_bytes() == before


def test_mistakes_are_said_in_words(world, capsys, tmp_path):
    folder, _, _ = world
    (tmp_path / "bad.yaml").write_text("data: x\nout: y\nobjective: {name: centrobin}\n")
    (tmp_path / "thesis").mkdir()
    for arguments, says in {
        ("import", "nowhere.npz", tmp_path / "s"): "no such file",
        ("import", folder / "data.npz", folder / "store"): "exists already",
        ("import", folder / "data.npz", tmp_path / "s", "--kind", "a"): "expected modality=value",
        ("import", folder / "data.npz", tmp_path / "s", "--modalities", "z"): "no modality ['z']",
        ("import", folder / "data.npz", tmp_path / "s", "--kind", "z=image"): "['z']",
        ("inspect", tmp_path / "thesis"): "is not a store (no meta.json in it)",
        ("train", tmp_path / "bad.yaml"): "did you mean 'centrobind'?",
        ("train", folder / "run.yaml"): "already holds a run",
        ("train", folder / "run.yaml", "--resume", "--set", "train.lr=0.5"): "these differ: train.lr",
        ("evaluate", tmp_path / "thesis", folder / "store"): "no such file",
        ("evaluate", folder / "run", folder / "store", "--split", "valid"): "the splits are ['test', 'train']",
        ("evaluate", folder / "run", "synthetic"): "none of ['m0', 'm1', 'm2']",
        ("embed", folder / "run", folder / "store", folder / "data.npz"): "exists already",
        ("train",): "Missing argument",
        ("trian",): "No such command",
        ("demo", "--seed", "-1"): "greater than or equal to 0",
        ("demo", "--out", folder): "not a run",
    }.items():
        assert says in fails(capsys, *arguments), arguments


def test_help_is_quick_and_complete():
    """`--help` must not import torch: that alone takes seconds."""
    code = "import sys, centrobind.cli.main; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    for command in ("demo", "import", "inspect", "train", "evaluate", "diagnose", "embed"):
        said = run(command, "--help").output
        assert said.strip() and "Usage" in said


def test_it_runs_as_a_module():
    said = subprocess.run([sys.executable, "-m", "centrobind", "--help"], capture_output=True, text=True)
    assert said.returncode == 0 and "demo" in said.stdout
