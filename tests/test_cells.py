"""A manifest that names files: what is read, what is refused, and what --skip-bad makes of it."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from centrobind.cli.main import app
from centrobind.data import Limits, Reading, Samples, dataset_chunks, open_store, read_chunks, write_store
from centrobind.errors import DataError, ExtraError


@pytest.fixture
def folder(tmp_path):
    """Five samples with a picture, a caption and a walk each; one of each is missing."""
    folder = tmp_path / "set"
    (folder / "files").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / f"files/{i}.png")
        (folder / f"files/{i}.txt").write_text(f"picture number {i}\n")
        np.savetxt(folder / f"files/{i}.csv", draw.normal(size=(10 + i, 3)), delimiter=",", header="x,y,z", comments="")
    rows = [["id", "photo", "caption", "walk", "label", "split"]]
    for i in range(5):
        files = ["" if i == lacking else f"files/{i}.{kind}" for lacking, kind in enumerate(("png", "txt", "csv"))]
        rows.append([f"s{i}", *files, "ab"[i % 2], "train" if i < 4 else "test"])
    with open(folder / "set.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


READINGS = {"photo": "image:16x16x3", "walk": "series:8"}


def read(path, store="store", **options) -> Samples:
    return open_store(write_store(path.parent / store, read_chunks(path, **options), replace=True))


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def png(size=(4, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


def test_a_manifest_of_files_becomes_a_store(folder):
    samples = read(folder / "set.csv", readings=READINGS)
    assert samples.modalities == ("photo", "caption", "walk") and samples.ids[:] == [f"s{i}" for i in range(5)]
    assert samples.present.sum(1).tolist() == [4, 4, 4] and not samples.present[:, :3].diagonal().any()
    shapes = {name: (column.kind, column.shape) for name, column in samples.columns.items()}
    assert shapes == {"photo": ("image", (16, 16, 3)), "caption": ("text", ()), "walk": ("sequence", (8, 3))}
    assert samples.columns["caption"].values[:] == [f"picture number {i}" for i in (0, 2, 3, 4)]
    assert {name: column.reading for name, column in samples.columns.items()} == READINGS | {"caption": "text"}
    whole = Image.open(folder / "files/4.png")
    pixels = np.array(whole.resize((16, 16), Image.Resampling.LANCZOS, box=(5, 0, 25, 20)))
    assert abs(samples.columns["photo"].values[-1].astype(int) - pixels).max() <= 1
    first = np.loadtxt(folder / "files/0.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(samples.columns["walk"].values[0, [0, -1]], first[[0, -1]], rtol=1e-6)


def test_what_is_not_said_is_guessed_and_series_of_different_lengths_are_told_how(folder):
    assert read(folder / "set.csv", modalities=["photo"]).columns["photo"].shape == (64, 64, 3)
    with pytest.raises(DataError, match=r"row 2, column 'walk': .*\(11, 3\).*--read walk=series:64") as caught:
        read(folder / "set.csv")
    assert "3 cells" in str(caught.value)


@pytest.fixture
def spoilt(folder):
    """The same with everything that can be wrong with a file, one thing a row."""
    (folder / "files/0.txt").write_bytes(b"\xff\xfe")
    (folder / "files/1.png").write_bytes(b"")
    (folder / "files/2.png").write_bytes((folder / "files/3.png").read_bytes()[:500])
    (folder / "files/3.png").rename(folder / "files/really a picture.csv")
    (folder / "files/3.png").write_text("hello")
    (folder / "files/3.csv").write_bytes((folder / "files/really a picture.csv").read_bytes())
    (folder / "files/4.png").unlink()
    (folder / "files/4.png").symlink_to("/etc/hostname")
    (folder / "files/4.csv").write_text("1,2,3\n" * 2000)
    return folder


WRONG = {
    (1, "caption"): "files/0.txt: not a text in UTF-8",
    (2, "photo"): "files/1.png: an empty file",
    (3, "photo"): "files/2.png: a broken picture",
    (4, "photo"): "files/3.png: not a picture of a kind",
    (4, "walk"): "files/3.csv: neither a .npy nor a CSV file",
    (5, "photo"): "files/4.png: leaves the folder",
    (5, "walk"): "files/4.csv: about 6,000 numbers, more than the 5,000",
}


def test_everything_wrong_is_listed_at_once(spoilt):
    with pytest.raises(DataError) as caught:
        read(spoilt / "set.csv", readings=READINGS, limits=Limits(numbers=5000))
    lines = str(caught.value).splitlines()
    assert f"{len(WRONG)} cells cannot be read; nothing was imported" in lines[0] and len(lines) == len(WRONG) + 1
    for (row, column), reason in WRONG.items():
        assert any(line.strip().startswith(f"row {row}, column {column!r}: {reason}") for line in lines), reason
    assert not (spoilt / "store").exists()


def test_skip_bad_makes_them_gaps_and_reports(spoilt):
    said = CliRunner().invoke(
        app,
        ["import", str(spoilt / "set.csv"), str(spoilt / "store"), "--skip-bad", "--limit", "numbers=5000"]
        + [part for name, how in READINGS.items() for part in ("--read", f"{name}={how}")],
    )
    assert said.exit_code == 0, said.output
    samples = open_store(spoilt / "store", verify=True)
    # Nobody's picture is left: the modality is, as nothing is known of it, not there.
    assert samples.modalities == ("caption", "walk")
    assert samples.present.tolist() == [[False, False, True, True, True], [True, True, False, False, False]]
    with open(spoilt / "store" / "skipped.csv", newline="") as file:
        found = {(int(row["row"]), row["column"]): row["reason"] for row in csv.DictReader(file)}
    assert found.keys() == WRONG.keys() and all(found[key].startswith(WRONG[key]) for key in found)
    assert "7 cells cannot be read and were left out" in said.output


def test_rows_that_cannot_be_read_are_left_out(tmp_path):
    rows = [{"v": [i, i], "id": f"s{i}"} for i in range(4)]
    path = jsonl(tmp_path / "d.jsonl", rows)
    path.write_text(path.read_text() + "{not json\n" + json.dumps({"v": [9, 9]}) + "\n")
    skipped = []
    samples = read(path, skipped=skipped)
    assert samples.ids[:] == ["s0", "s1", "s2", "s3", "5"] and [bad.row for bad in skipped] == [5]
    path.write_text("{\n")
    with pytest.raises(DataError, match="got none that can be read"):
        read(path, "other", skipped=[])


@pytest.mark.parametrize("cell", ["../out.png", "link.png", "in/../../out.png", "/etc/passwd.png", "linked/out.png"])
def test_no_path_leaves_the_folder(tmp_path, cell):
    inside = tmp_path / "set"
    (inside / "in").mkdir(parents=True)
    (tmp_path / "out.png").write_bytes(png())
    (inside / "link.png").symlink_to(tmp_path / "out.png")
    (inside / "linked").symlink_to(tmp_path)
    with pytest.raises(DataError, match="leaves the folder"):
        read(jsonl(inside / "d.jsonl", [{"photo": cell}]))
    with pytest.raises(DataError, match="leaves the folder"):
        read(jsonl(inside / "e.jsonl", [{"photo": {"path": cell, "bytes": None}}]))


def test_links_inside_the_folder_and_addresses(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    path = jsonl(tmp_path / "d.jsonl", [{"photo": "b.png"}, {"photo": str(tmp_path / "a.png")}])
    assert read(path, readings={"photo": "image:4x4"}).columns["photo"].values.shape == (2, 4, 4)
    with pytest.raises(DataError, match="an address on the net"):
        read(jsonl(tmp_path / "e.jsonl", [{"photo": "https://example.org/a.png"}]))


def test_text_that_looks_like_a_file_is_text_when_said(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", [{"caption": "how to open photo.png"}, {"caption": "[music]"}])
    with pytest.raises(DataError, match="no such file"):
        read(path)
    assert read(path, readings={"caption": "text"}).columns["caption"].values[:] == ["how to open photo.png", "[music]"]


def test_a_chunk_of_gaps_before_the_first_value(tmp_path):
    for name, value in (("v", [1, 2]), ("t", "x")):
        rows = [{name: None, "label": "a"}] * 1500 + [{name: value, "label": "b"}] + [{name: None, "label": "a"}] * 1500
        samples = read(jsonl(tmp_path / f"{name}.jsonl", rows), f"store of {name}")
        assert np.flatnonzero(samples.present[0]).tolist() == [1500] and len(samples) == 3001


def test_large_values_are_written_before_a_thousand_of_them_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr("centrobind.data.importing.CHUNK_BYTES", 100)
    chunks = read_chunks(jsonl(tmp_path / "d.jsonl", [{"v": [float(i)] * 8} for i in range(7)]))
    assert [len(chunk) for chunk in chunks] == [2, 2, 2, 1]


@pytest.mark.parametrize("text", ["photo", "image:", "image:64x", "image:axb", "array", "text:5", "image:1x2x3x4x5"])
def test_ways_to_read_that_are_none(text):
    with pytest.raises(DataError, match="read as"):
        Reading.of(text)


def test_readings_survive_being_written():
    for text in ("image:64x64x3", "sound:400x64", "wave:64000", "series:64", "series", "text"):
        assert str(Reading.of(text)) == text
    assert str(Reading.of("image")) == "image:64x64x3"


def test_a_column_to_be_read_must_be_there(tmp_path):
    with pytest.raises(DataError, match=r"no column \['phot'\] to be read"):
        read(jsonl(tmp_path / "d.jsonl", [{"photo": [1, 2]}]), readings={"phot": "image"})


@pytest.mark.parametrize("given", [{"pixel": "5"}, {"pixels": "many"}, {"pixels": "0"}, {"bytes": "-1"}])
def test_limits_that_are_none(given):
    with pytest.raises(DataError, match="limit"):
        Limits.of(given)
    assert Limits.of({"pixels": "5"}) == Limits(pixels=5)


def test_column_names_that_are_none_are_said_once(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", [{"my photo": [1, 2], "v": [1]}] * 3)
    with pytest.raises(DataError, match=r"columns \['my photo'\] cannot be modality names.*--modalities"):
        read(path)
    assert read(path, modalities=["v"]).modalities == ("v",)
    np.savez(tmp_path / "d.npz", x_v=np.eye(3))
    with pytest.raises(DataError, match="holds arrays"):
        read(tmp_path / "d.npz", readings={"v": "image"})


def test_a_data_set_that_cannot_decode_a_row():
    class Broken(HubSet):
        def __getitem__(self, i):
            if i == 2:
                raise OSError("cannot identify image file")
            return {"picture": np.zeros((4, 4), np.uint8)}

    with pytest.raises(DataError, match="row 3: cannot identify image file"):
        list(dataset_chunks(Broken()))
    skipped = []
    (samples,) = dataset_chunks(Broken(), skipped=skipped)
    assert samples.ids[:] == ["0", "1", "3"] and len(skipped) == 1


class HubSet:
    """What matters of a Hugging Face dataset: decoded pictures and sounds, packed files, labels as numbers."""

    def __init__(self):
        self.features = {"label": type("Label", (), {"names": ("cat", "dog")})}

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {
            "picture": Image.new("RGB", (8, 8), (i, 0, 0)) if i != 1 else None,
            "packed": {"bytes": png(), "path": None},
            "sound": {"array": np.sin(np.arange(8000) / 10), "sampling_rate": 8000, "path": "x.wav"},
            "label": i % 2 if i < 3 else -1,
        }


def test_a_hugging_face_dataset_is_understood():
    readings = {"picture": "image:4x4x3", "packed": "image:2x2", "sound": "sound:50x20"}
    (samples,) = dataset_chunks(HubSet(), readings=readings)
    assert samples.columns["picture"].values[:, 0, 0, 0].tolist() == [0, 2, 3]
    assert samples.columns["packed"].shape == (2, 2) and samples.columns["sound"].shape == (50, 20)
    assert samples.label.names[samples.label.codes[1]] == "dog" and samples.columns["sound"].reading == "sound:50x20"


def test_a_real_one():
    datasets = pytest.importorskip("datasets", reason="a real Hugging Face dataset where datasets is installed")
    made = datasets.Dataset.from_dict(
        {"photo": [{"bytes": png(), "path": None}] * 2, "label": [0, 1], "text": ["a", None]},
        features=datasets.Features(
            photo=datasets.Image(), label=datasets.ClassLabel(names=["x", "y"]), text=datasets.Value("string")
        ),
    )
    (samples,) = dataset_chunks(made, readings={"photo": "image:4x4x3"})
    assert samples.columns["photo"].values.shape == (2, 4, 4, 3) and samples.label.names == ("x", "y")
    assert samples.present.tolist() == [[True, True], [True, False]]


def test_parquet_with_packed_files(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet is read where pyarrow is installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"photo": [{"bytes": png(), "path": "a.png"}, None, {"bytes": b"x", "path": "b.png"}]})
    parquet.write_table(table, tmp_path / "d.parquet")
    skipped = []
    samples = read(tmp_path / "d.parquet", readings={"photo": "image:4x4"}, skipped=skipped)
    assert samples.present.tolist() == [[True, False, False]] and [bad.row for bad in skipped] == [3]


def test_an_absent_package_is_said_once_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(ExtraError, match=r"reading sound needs soundfile: pip install 'centrobind\[audio\]'"):
        read(jsonl(tmp_path / "d.jsonl", [{"clip": "a.wav"}] * 3), skipped=[])


def test_sounds_in_a_manifest(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="sound files are read where soundfile is installed")
    soundfile.write(tmp_path / "a.wav", np.zeros(4000), 8000)
    rows = [{"clip": "a.wav"}, {"clip": "b.wav"}]
    skipped = []
    samples = read(jsonl(tmp_path / "d.jsonl", rows), readings={"clip": "wave:16000"}, skipped=skipped)
    assert samples.columns["clip"].shape == (16000,) and samples.columns["clip"].reading == "wave:16000"
    assert str(skipped[0]) == "row 2, column 'clip': b.wav: no such file"
