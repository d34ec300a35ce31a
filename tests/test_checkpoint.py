import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from centrobind.binder.binder import build_binder
from centrobind.binder.checkpoint import load, read_tensors, save, write_tensors
from centrobind.errors import CheckpointError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False]), "c": torch.tensor(7)}


def test_tensors_and_state_come_back(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS | {"t": TENSORS["a"].T, "empty": torch.zeros(0, 3)}, {"step": 3})
    tensors, state = read_tensors(tmp_path / "x.safetensors")
    assert state == {"step": 3} and torch.equal(tensors["t"], TENSORS["a"].T) and tensors["empty"].shape == (0, 3)
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in TENSORS.items()
    )
    assert list(read_tensors(tmp_path / "x.safetensors", prefix="b")[0]) == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_any_flipped_bit_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"step": 3, "words": ["a", "b"]})
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    for place in [*range(40), *draw.integers(0, len(whole), 150)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(damaged)
        try:
            tensors, state = read_tensors(path)
        except CheckpointError as error:
            assert str(path) in str(error)
        else:  # a bit that means nothing, such as a space in the header: then everything is as it was
            assert state == {"step": 3, "words": ["a", "b"]}
            assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


def test_every_truncation_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="x.safetensors"):
            read_tensors(path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("pickle_was_opened",)


def test_foreign_and_newer_files_are_refused_and_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.zeros(2)}, "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not written by centrobind"):
        read_tensors("foreign.safetensors")
    newer = json.dumps({"format": "centrobind-checkpoint", "version": 2})
    save_file({}, "newer.safetensors", metadata={"centrobind": newer})
    with pytest.raises(CheckpointError, match="version 2, this centrobind reads 1"):
        read_tensors("newer.safetensors")
    for name, content in (("p.safetensors", pickle.dumps(Bomb())), ("t.safetensors", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            read_tensors(name)
    torch.save({"a": Bomb()}, "torch.safetensors")
    with pytest.raises(CheckpointError):
        load("torch.safetensors")
    assert not (tmp_path / "pickle_was_opened").exists()
    with pytest.raises(CheckpointError, match="no such file"):
        load("nowhere")


def test_a_write_that_fails_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device.*intact"):
        write_tensors(path, TENSORS, {"step": 2})
    assert read_tensors(path)[1] == {"step": 1} and [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_binder_comes_back_the_same(mixed, tmp_path):
    binder = build_binder(mixed, dim=6, encoders={"text": "transformer"})
    assert save(binder, tmp_path / "sub" / "mine") == tmp_path / "sub" / "mine.safetensors"
    for path in (tmp_path / "sub" / "mine", tmp_path / "sub" / "mine.safetensors"):
        again = load(path)
        assert again.fingerprint == binder.fingerprint and not again.training
        assert torch.equal(again.embed(mixed).z, binder.embed(mixed).z)


def test_a_custom_encoder_must_come_along(mixed, tmp_path):
    class Mine(nn.Linear):
        width = 3

    save(build_binder(mixed, encoders={"vector": Mine(5, 3)}), tmp_path / "mine")
    again = load(tmp_path / "mine", encoders={"vector": Mine(5, 3)})
    assert again.embed(mixed).z.shape[2] == 64
    with pytest.raises(CheckpointError, match="do not fit"):
        load(tmp_path / "mine", encoders={"vector": Mine(5, 4)})


def test_a_description_that_does_not_fit_is_said(tmp_path):
    for state in ({}, {"binder": None}, {"binder": {"dim": 4, "towers": {"a": {"kind": "smell", "shape": []}}}}):
        write_tensors(tmp_path / "x.safetensors", {}, state)
        with pytest.raises(CheckpointError, match="do not fit"):
            load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "harm",
    [
        {"dim": 10**9},
        {"dim": -1},
        {"towers": {"vector": {"kind": "vector", "shape": [2**31 - 1], "encoder": "linear", "width": 2**31 - 1}}},
        {"towers": {"vector": {"kind": "vector", "shape": [5], "encoder": "mlp", "depth": 10**9}}},
        {"towers": {"vector": {"kind": "vector", "shape": [5], "encoder": "mlp", "width": "wide"}}},
        {"towers": []},
    ],
)
def test_a_description_larger_than_its_weights_takes_no_memory(mixed, tmp_path, harm):
    """Under a checksum that fits; building it would take gigabytes or minutes, and refusing it takes neither."""
    binder = build_binder(mixed.only(["vector"]), dim=6)
    write_tensors(
        tmp_path / "x.safetensors",
        {f"towers/{name}": value for name, value in binder.state_dict().items()},
        {"binder": binder.describe() | harm},
    )
    with pytest.raises(CheckpointError, match="do not fit"):
        load(tmp_path / "x.safetensors")


def test_a_state_that_is_no_object_is_refused(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {}, [1])
    with pytest.raises(CheckpointError, match="expected its state to be an object, got list"):
        read_tensors(tmp_path / "x.safetensors")
