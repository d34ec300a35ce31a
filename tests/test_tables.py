"""Tables as programs write them: separators, encodings, many columns, rows with names of their own."""

import codecs
import csv
import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from centrobind.cli.main import app
from centrobind.data import Limits, open_store, read_chunks, tables
from centrobind.errors import DataError

CAPTIONS = ['café au lait, "hot"', "naïve; résumé | x"]


def table(separator=",", end="\n", quoting=csv.QUOTE_MINIMAL) -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([["id", "caption", "other"], ["r0", CAPTIONS[0], "x y"], ["r1", CAPTIONS[1], "z"]])
    return file.getvalue()


def captions(path, content: bytes, **options):
    path.write_bytes(content)
    (chunk,) = read_chunks(path, **options)
    assert chunk.ids[:] == ["r0", "r1"] and chunk.modalities == ("caption", "other")
    return chunk.columns["caption"].values[:]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_every_separator_and_line_end(tmp_path, separator, end, quoting):
    assert captions(tmp_path / "t.csv", table(separator, end, quoting).encode()) == CAPTIONS


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_tsv_is_a_table_too(tmp_path, ending):
    assert captions(tmp_path / f"t.{ending}", table("\t").encode()) == CAPTIONS
    with pytest.raises(DataError, match="columns"):
        list(read_chunks(_written(tmp_path / "comma.tsv", table(",").encode())))


def _written(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_encodings_that_say_so_themselves(tmp_path, encoding):
    assert captions(tmp_path / "t.csv", table().encode(encoding)) == CAPTIONS
    assert captions(tmp_path / "u.csv", codecs.BOM_UTF16_BE + table().encode("utf-16-be")) == CAPTIONS
    line = json.dumps({"caption": CAPTIONS[0]}, ensure_ascii=False) + "\n"
    (chunk,) = read_chunks(_written(tmp_path / "t.jsonl", line.encode(encoding)))
    assert chunk.columns["caption"].values[:] == [CAPTIONS[0]]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_encodings_that_have_to_be_said(tmp_path, encoding):
    """Refused by line and byte, read right when said; and never other text."""
    content = table().encode(encoding)
    with pytest.raises(DataError, match=r"line 2 is not in UTF-8 \(byte 0xe9 after 'r0,\"caf'\).*--encoding cp1252"):
        list(read_chunks(_written(tmp_path / "t.csv", content)))
    assert captions(tmp_path / "t.csv", content, encoding=encoding) == CAPTIONS
    line = json.dumps({"caption": "café"}, ensure_ascii=False).encode(encoding)
    with pytest.raises(DataError, match="line 1 is not in UTF-8"):
        list(read_chunks(_written(tmp_path / "t.jsonl", line)))
    (chunk,) = read_chunks(tmp_path / "t.jsonl", encoding=encoding)
    assert chunk.columns["caption"].values[:] == ["café"]
    done = CliRunner().invoke(app, ["import", str(tmp_path / "t.csv"), str(tmp_path / "s"), "--encoding", encoding])
    assert done.exit_code == 0 and open_store(tmp_path / "s").columns["caption"].values[:] == CAPTIONS


def test_encodings_that_are_wrong(tmp_path):
    path = _written(tmp_path / "t.csv", table().encode("utf-16-le"))
    with pytest.raises(DataError, match="zero bytes.*--encoding utf-16-le"):
        list(read_chunks(path))
    assert captions(path, path.read_bytes(), encoding="utf-16-le") == CAPTIONS
    with pytest.raises(DataError, match="not in the encoding"):
        list(read_chunks(_written(tmp_path / "t.csv", table().encode("cp1252")), encoding="shift_jis_2004"))
    for name in ("klingon", "zip", "rot13"):
        with pytest.raises(DataError, match="unknown encoding"):
            list(read_chunks(path, encoding=name))
    np.savez(tmp_path / "d.npz", x_a=np.eye(3))
    with pytest.raises(DataError, match="for CSV and JSONL"):
        read_chunks(tmp_path / "d.npz", encoding="latin-1")


def genes(path, rows, columns, **options):
    values = np.random.default_rng(0).normal(size=(rows, columns)).round(3)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", *(f"ENSG{i}" for i in range(columns)), "note"])
        writer.writerows([f"c{i}", "ab"[i % 2], *row, f"cell {i}"] for i, row in enumerate(values.tolist()))
    return values


def test_a_table_of_genes_is_one_modality(tmp_path):
    values = genes(tmp_path / "g.csv", 40, 20_000)
    with pytest.raises(DataError, match=r"20,000 columns hold a single number each \(ENSG0, ENSG1, .*--columns NAME="):
        list(read_chunks(tmp_path / "g.csv"))
    (chunk,) = read_chunks(tmp_path / "g.csv", columns={"genes": ["ENSG*"]})
    assert chunk.modalities == ("note", "genes") and chunk.columns["genes"].shape == (20_000,)
    np.testing.assert_array_equal(chunk.columns["genes"].values, values.astype(np.float32))


def test_twice_the_columns_take_twice_the_steps(tmp_path, monkeypatch):
    """Counted, not timed: how often a name is compared with a pattern."""
    counts = []
    real = tables.fnmatchcase
    monkeypatch.setattr(tables, "fnmatchcase", lambda *pair: counts.append(1) or real(*pair))
    for columns in (100, 200):
        counts.clear()
        genes(tmp_path / "g.csv", 3, columns)
        list(read_chunks(tmp_path / "g.csv", columns={"genes": ["ENSG*"]}))
        assert len(counts) == columns + 3


def test_columns_are_joined_in_the_order_that_is_asked(tmp_path):
    path = _written(tmp_path / "t.csv", b"ax,ay,az,g,note\n1,2,3,9,a\n,,,8,b\n4,5,6,,c\n")
    (chunk,) = read_chunks(path, columns={"acc": ["az", "ax"], "g": ["g"]}, modalities=["acc", "g", "note"])
    assert chunk.columns["acc"].values.tolist() == [[3, 1], [6, 4]] and chunk.columns["g"].values.tolist() == [[9], [8]]
    assert chunk.present.tolist() == [[True, False, True], [True, True, False], [True] * 3]
    rows = [{"ax": 1, "ay": 2.5, "note": "a"}, {"ax": None, "ay": None, "note": "b"}]
    path = _written(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)).encode())
    (chunk,) = read_chunks(path, columns={"acc": ["a?"]})
    assert chunk.columns["acc"].values.tolist() == [[1, 2.5]]


@pytest.mark.parametrize(
    ("cells", "columns", "says"),
    [
        (b"1,x,a", {"acc": ["ax", "ay"]}, "row 1, column 'acc': column 'ay': expected a number, got 'x'"),
        (b"1,,a", {"acc": ["ax", "ay"]}, "NaN or inf in 1 of 2"),
        (b"1,2,a", {"acc": ["ax", "b*"]}, r"no column 'b\*', expected some of"),
        (b"1,2,a", {"acc": ["ax"], "b": ["a*"]}, r"wants \['ax'\] in more than one"),
    ],
)
def test_columns_that_do_not_join(tmp_path, cells, columns, says):
    with pytest.raises(DataError, match=says):
        list(read_chunks(_written(tmp_path / "t.csv", b"ax,ay,note\n" + cells), columns=columns))


def test_columns_on_the_command_line(tmp_path):
    _written(tmp_path / "t.csv", b"ax,ay,note\n1,2,a\n3,4,b\n")
    done = CliRunner().invoke(
        app, ["import", str(tmp_path / "t.csv"), str(tmp_path / "s"), "--columns", "acc=ax,ay"], catch_exceptions=False
    )
    assert done.exit_code == 0 and open_store(tmp_path / "s").columns["acc"].values.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(("index", "ids"), [(["s1", "s2"], ["s1", "s2"]), ([4, 7], ["0", "1"])])
def test_names_of_a_frames_rows_are_ids_and_no_modality(tmp_path, index, ids):
    """As pandas writes them: a column __index_level_0__ in Parquet, one without a name in CSV."""
    columns = {"cap": ["a b", "b c"], "vec": [[1.0, 2.0], [3.0, 4.0]], "__index_level_0__": index}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    (chunk,) = read_chunks(tmp_path / "t.parquet")
    assert chunk.modalities == ("cap", "vec") and chunk.ids[:] == ids
    pyarrow.parquet.write_table(pyarrow.table({"id": ["p", "q"], **columns}), tmp_path / "u.parquet")
    assert next(iter(read_chunks(tmp_path / "u.parquet"))).ids[:] == ["p", "q"]
    _written(tmp_path / "t.csv", f",cap\n{index[0]},a b\n{index[1]},b c\n".encode())
    (chunk,) = read_chunks(tmp_path / "t.csv")
    assert chunk.modalities == ("cap",) and chunk.ids[:] == list(map(str, index))


def test_columns_of_one_name(tmp_path):
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["cap", "cap"])
    pyarrow.parquet.write_table(twice, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="distinct column names"):
        list(read_chunks(tmp_path / "t.parquet"))


def test_lines_and_texts_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LONGEST_LINE", 1000)
    for name in ("t.csv", "t.jsonl"):
        with pytest.raises(DataError, match="line 1 is longer than 1,000"):
            list(read_chunks(_written(tmp_path / name, b'{"a": "' + b"x" * 2000)))
    monkeypatch.undo()
    path = _written(tmp_path / "t.jsonl", json.dumps({"a": "x" * 101}).encode())
    with pytest.raises(DataError, match="101 characters, more than the 100 that are read of a text"):
        list(read_chunks(path, limits=Limits(characters=100)))
    long = ",".join(["0.125"] * 30_000)  # longer than Python's csv takes by itself
    before = csv.field_size_limit()
    (chunk,) = read_chunks(_written(tmp_path / "t.csv", f'a,b\n"[{long}]",x\n'.encode()))
    assert chunk.columns["a"].shape == (30_000,) and csv.field_size_limit() == before


def test_names_of_sources_that_are_none(tmp_path):
    for name in ("x" * 300 + ".csv", "a\0b.csv", ".", ""):
        with pytest.raises(DataError, match="no such file|not the name of a file"):
            read_chunks(f"{tmp_path}/{name}")
