"""Texts that no file can be called, folders in the place of files, and the reverse, for every command that opens one."""

import numpy as np
import pytest
from typer.testing import CliRunner

import centrobind as cb
from centrobind.binder.embedding import load_embeddings
from centrobind.cli.main import app
from centrobind.data import read_chunks
from centrobind.data.builtin import xor
from centrobind.errors import CentrobindError, DataError
from centrobind.files import named

NAMES = [
    "x" * 5000,
    "long/" + "x" * 5000,
    "a\0b",
    "circle",
    "folder",
    "file",
    "file/below",
    "nowhere",
    ".",
    "/",
    "",
    "\ud800",
]
COMMANDS = [
    ("inspect", "NAME"),
    ("inspect", "--plan", "NAME"),
    ("import", "NAME", "out"),
    ("train", "NAME"),
    ("replay", "NAME"),
    ("evaluate", "NAME", "xor"),
    ("diagnose", "NAME", "xor"),
    ("embed", "NAME", "xor", "out.npz"),
    ("embed", "run", "NAME", "out.npz"),
    ("index", "NAME", "xor"),
    ("index", "run", "NAME"),
    ("search", "NAME", "--id", "1"),
    ("search", "run", "--index", "NAME", "--id", "1"),
    ("search", "run", "--file", "NAME"),
    ("serve", "NAME", "xor"),
    ("serve", "run", "NAME"),
    ("featurize", "NAME", "out", "--modality", "a=x.py:f"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    (folder / "folder").mkdir()
    (folder / "file").write_bytes(bytes(range(256)))
    (folder / "circle").symlink_to("circle")
    samples = xor()
    binder = cb.fit(samples, valid=samples, steps=1, dim=4, show_progress=False)
    cb.save(binder, folder / "run" / "binder")
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_what_is_no_file_of_the_kind_is_refused_in_words(world, command, monkeypatch):
    monkeypatch.chdir(world)
    for name in NAMES:
        done = CliRunner().invoke(app, [name if word == "NAME" else word for word in command])
        assert isinstance(done.exception, CentrobindError | SystemExit), (name[:20], repr(done.exception)[:200])
        assert done.exit_code != 0 and len(str(done.exception)) < 20_000


def test_a_name_is_a_name_whether_something_lies_there_or_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    for name in ("x" * 5000, "a\0b", "circle"):
        with pytest.raises(DataError, match="not the name of a file") as refused:
            named(name, DataError)
        assert len(str(refused.value)) < 200
    for name in ("nowhere", ".", "/", tmp_path, "nowhere/below"):
        assert named(name, DataError) == type(tmp_path)(name)


@pytest.mark.parametrize("harm", ["encrypted", "method", "zeros", "cut"])
def test_damaged_archives_end_in_our_own_errors(tmp_path, harm):
    np.savez_compressed(tmp_path / "a.npz", x_a=np.random.default_rng(0).normal(size=(30, 2)), x_b=np.ones((30, 2)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    central = content.find(b"PK\x01\x02")
    if harm == "encrypted":
        content[6] |= 1
        content[central + 8] |= 1
    elif harm == "method":
        content[8] = content[central + 10] = 99
    elif harm == "zeros":
        content[60:120] = bytes(60)
    else:
        del content[len(content) // 2 :]
    (tmp_path / "a.npz").write_bytes(content)
    for use in (lambda path: list(read_chunks(path)), load_embeddings):
        with pytest.raises(CentrobindError):
            use(tmp_path / "a.npz")
