import json

import numpy as np
import pytest

from centrobind.data import Samples, dataset_chunks, open_store, read_chunks, write_store
from centrobind.errors import DataError


def read(path, **options) -> Samples:
    return open_store(write_store(path.parent / f"store of {path.name}", read_chunks(path, **options)))


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_npz_by_the_benchmark_convention(tmp_path):
    draw = np.random.default_rng(0)
    arrays = {
        "x_image": draw.integers(0, 255, (3000, 4, 4), np.uint8),
        "x_sound": draw.normal(size=(3000, 5)),
        "x_name": np.array([f"name {i}" if i % 3 else "" for i in range(3000)]),
        "present_sound": np.arange(3000) % 2 == 0,
        "id": np.array([f"s{i}" for i in range(3000)]),
        "label": np.arange(3000) % 7,
        "split": np.where(np.arange(3000) < 2000, "train", "test"),
        "group": np.arange(3000) // 2,
    }
    np.savez_compressed(tmp_path / "d.npz", **arrays)
    samples = read(tmp_path / "d.npz")
    assert samples.modalities == ("image", "sound", "name") and len(samples) == 3000
    assert samples.columns["name"].present.sum() == 2000 and samples.columns["sound"].present.sum() == 1500
    rows = np.array([2999, 4, 2])
    batch = samples.batch(rows)
    assert np.array_equal(batch.inputs["image"], arrays["x_image"][rows])
    np.testing.assert_array_equal(batch.inputs["sound"], arrays["x_sound"][[4, 2]].astype(np.float32))
    assert batch.inputs["name"] == ["name 2999", "name 4", "name 2"]
    assert samples.ids[[0, 2999]] == ["s0", "s2999"] and samples.label.names == tuple("0123456")
    assert len(samples.split.where("test")) == 1000 and len(samples.group.names) == 1500


def test_npz_with_plain_names_and_fortran_order(tmp_path):
    a = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    np.savez(tmp_path / "d.npz", left=a, right=np.arange(8).reshape(4, 2))
    samples = read(tmp_path / "d.npz")
    assert samples.modalities == ("left", "right") and samples.ids[:] == ["0", "1", "2", "3"]
    assert np.array_equal(samples.columns["left"].values, a)


def test_npz_nan_is_refused_or_taken_for_a_gap(tmp_path):
    a = np.ones((5, 3))
    a[3] = np.nan
    np.savez(tmp_path / "d.npz", x_a=a, x_b=np.ones((5, 2)))
    with pytest.raises(DataError, match=r"'a' has NaN or inf.*\[3\].*--nan-as-missing"):
        read(tmp_path / "d.npz")
    assert read(tmp_path / "d.npz", nan_as_missing=True).columns["a"].present.tolist() == [1, 1, 1, 0, 1]
    np.savez(tmp_path / "f.npz", x_a=a, present_a=np.arange(5) > 0)
    assert read(tmp_path / "f.npz", nan_as_missing=True).columns["a"].present.tolist() == [0, 1, 1, 0, 1]
    a[1, 1] = np.inf
    np.savez(tmp_path / "e.npz", x_a=a)
    with pytest.raises(DataError, match=r"first rows \[1\]"):
        read(tmp_path / "e.npz", nan_as_missing=True)


def test_csv_with_text_numbers_paths_and_gaps(tmp_path):
    np.save(tmp_path / "p.npy", np.arange(4.0))
    (tmp_path / "d.csv").write_text(
        'id,words,numbers,file,label,split\none,hello,"[1, 2]",p.npy,x,train\ntwo,,"[3, 4]",,y,test\n\nthree,"a, b",,,,train\n'
    )
    samples = read(tmp_path / "d.csv")
    assert samples.modalities == ("words", "numbers", "file")
    assert samples.present.tolist() == [[True, False, True], [True, True, False], [True, False, False]]
    assert samples.columns["words"].values[:] == ["hello", "a, b"]
    assert samples.columns["numbers"].values.tolist() == [[1, 2], [3, 4]]
    assert samples.columns["file"].values.tolist() == [[0, 1, 2, 3]]
    assert samples.ids[:] == ["one", "two", "three"] and samples.label.codes.tolist() == [0, 1, -1]


def test_jsonl_with_gaps_and_columns_that_come_late(tmp_path):
    rows = [{"a": [[1, 2], [3, 4]]}, {"a": None, "t": "x"}, {"t": "y", "a": [[5, 6], [7, 8]], "label": 3}]
    samples = read(jsonl(tmp_path / "d.jsonl", rows))
    assert samples.modalities == ("a", "t") and samples.present.tolist() == [[True, False, True], [False, True, True]]
    assert samples.columns["a"].kind == "sequence" and samples.label.codes.tolist() == [-1, -1, 0]


def test_long_manifests_are_streamed_and_equal(tmp_path):
    rows = [{"v": [i, i + 1], "t": f"text {i}" if i % 5 else None, "id": f"r{i}"} for i in range(2500)]
    samples = read(jsonl(tmp_path / "d.jsonl", rows))
    assert samples.columns["v"].values[:, 0].tolist() == list(range(2500))
    assert samples.columns["t"].values[:3] == ["text 1", "text 2", "text 3"] and samples.ids[2499:] == ["r2499"]


def test_columns_can_be_picked_and_kinds_said(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", [{"a": [[1, 2]] * 8, "b": "x", "year": 1999}] * 3)
    samples = read(path, modalities=["a", "b"], kinds={"a": "image"})
    assert samples.modalities == ("a", "b") and samples.columns["a"].kind == "image"
    with pytest.raises(DataError, match=r"no column \['c'\]"):
        list(read_chunks(path, modalities=["a", "c"]))


def test_all_bad_cells_are_listed_at_once(tmp_path):
    (tmp_path / "bad.npy").write_bytes(b"not numpy")
    rows = [
        {"v": [1, 2], "t": "x"},
        {"v": [1, 2, 3], "t": "x"},
        {"v": [1, "b"], "t": "x"},
        {"v": [1, float("nan")], "t": "x"},
        {"v": "gone.npy", "t": "x"},
        {"v": "../outside.npy", "t": "x"},
        {"v": "bad.npy", "t": "x"},
        {"v": 7, "t": "x"},
        {"v": [], "t": "x"},
        {"v": [1, 2], "t": [1]},
    ]
    path = jsonl(tmp_path / "d.jsonl", rows)
    path.write_text(path.read_text() + "{not json}\n[1]\n")
    with pytest.raises(DataError) as caught:
        list(read_chunks(path))
    said = str(caught.value)
    for row, reason in {
        2: "expected numbers of shape (2,)",
        3: "expected numbers or text",
        4: "NaN or inf in 1 of 2",
        5: "gone.npy: no such file",
        6: "leaves the folder",
        8: "a single number",
        9: "at least one number",
        10: "expected text",
        11: "not JSON",
        12: "expected an object",
    }.items():
        assert any(line.strip().startswith(f"row {row}") and reason in line for line in said.splitlines()), (row, said)
    assert "9 cells and 2 whole rows cannot be read" in said and "row 7, column 'v'" in said


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "secret.npy", np.ones(3))
    (tmp_path / "in" / "link.npy").symlink_to(tmp_path / "secret.npy")
    with pytest.raises(DataError, match="leaves the folder"):
        list(read_chunks(jsonl(tmp_path / "in" / "d.jsonl", [{"v": "link.npy"}])))
    with pytest.raises(DataError, match="leaves the folder"):
        list(read_chunks(jsonl(tmp_path / "in" / "e.jsonl", [{"v": str(tmp_path / "secret.npy")}])))


def test_pickled_arrays_are_not_opened(tmp_path):
    np.save(tmp_path / "p.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "p.npz", x_a=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="row 1, column 'v'.*allow_pickle"):
        list(read_chunks(jsonl(tmp_path / "d.jsonl", [{"v": "p.npy"}])))
    with pytest.raises(DataError, match="expected numbers or text"):
        list(read_chunks(tmp_path / "p.npz"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("d.xyz", b"", "expected the ending"),
        ("d.npz", b"PK\x03\x04 truncated", "not a readable .npz"),
        ("d.npz", b"", "not a readable .npz"),
        ("d.csv", b"", "expected a row per sample"),
        ("d.csv", b"a,a\n1,2\n", "distinct column names"),
        ("d.csv", b"a,b\nx\n", "expected 2 cells"),
        ("d.csv", b"id,label\n1,2\n", "a column per modality"),
        ("d.jsonl", b"\n\n", "expected a row per sample"),
        ("d.parquet", b"PAR1", "pyarrow|Parquet"),
    ],
)
def test_foreign_files_are_refused_by_name(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        list(read_chunks(tmp_path / name))
    assert name in str(caught.value)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_chunks(tmp_path / "d.npz")


def test_a_truncated_npz_is_said(tmp_path):
    np.savez(tmp_path / "d.npz", x_a=np.random.default_rng(0).normal(size=(4000, 9)))
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated"):
        list(read_chunks(tmp_path / "d.npz"))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x_a": np.eye(3), "x_b": np.eye(4)}, "same number of rows"),
        ({"x_a": np.eye(3), "label": np.arange(2)}, "same number of rows"),
        ({"label": np.arange(2)}, "x_<modality>"),
        ({"x_../a": np.eye(3)}, "cannot be modality names"),
        ({"x_a": np.float64(3)}, "one row per sample"),
        ({"x_a": np.zeros(3)}, "one number per sample"),
    ],
)
def test_npz_that_does_not_fit_is_said(tmp_path, arrays, says):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=says):
        list(read_chunks(tmp_path / "d.npz"))


def test_any_map_style_dataset_will_do():
    class Pairs:
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return {"image": np.full((2, 2), i, np.uint8), "text": None if i == 1 else f"t{i}", "label": i}

    (samples,) = dataset_chunks(Pairs())
    assert samples.present.tolist() == [[True] * 3, [True, False, True]] and samples.columns["image"].kind == "image"


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet is read where pyarrow is installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"v": [[1.0, 2.0], None, [3.0, 4.0]], "t": ["a", "b", None], "id": ["p", "q", "r"]})
    parquet.write_table(table, tmp_path / "d.parquet")
    samples = read(tmp_path / "d.parquet")
    assert samples.columns["v"].values.tolist() == [[1, 2], [3, 4]] and samples.ids[:] == ["p", "q", "r"]
    assert samples.present.tolist() == [[True, False, True], [True, True, False]]


@pytest.mark.parametrize("name", ["Label", "SPLIT", "Group", "Id"])
def test_a_column_in_another_case_is_no_modality(tmp_path, name):
    path = jsonl(tmp_path / "d.jsonl", [{"a": [1, 2], "b": "x", name: "y"}] * 3)
    np.savez(tmp_path / "d.npz", x_a=np.ones((3, 2)), x_b=np.ones((3, 2)), **{f"x_{name}": np.ones((3, 1))})
    for source in (path, tmp_path / "d.npz"):
        with pytest.raises(DataError, match=f"column '{name}' .*'{name.lower()}'.*--modalities"):
            list(read_chunks(source))
        (chunk,) = read_chunks(source, modalities=["a", name])
        assert chunk.modalities == ("a", name)


def test_names_of_files_are_texts_where_that_is_said(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", [{"a": [1, 2], "file": f"{i}.mp4"} for i in range(3)])
    with pytest.raises(DataError, match="names of files such as '0.mp4'"):
        list(read_chunks(path))
    assert read(path, readings={"file": "text"}).columns["file"].values[:] == ["0.mp4", "1.mp4", "2.mp4"]
