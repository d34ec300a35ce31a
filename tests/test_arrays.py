"""What a modality can be handed in as: the same numbers whatever holds them, or a refusal that names what was got."""

import pathlib

import numpy as np
import pyarrow
import pytest
import torch
from scipy import sparse

import centrobind as cb
from centrobind.data import Samples, dataset_chunks
from centrobind.data.arrays import MOST_DENSE, is_missing, listed
from centrobind.errors import DataError

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
HALVES = np.round(X * 4) / 4  # numbers that any floating type of eight bits or more holds


class Frame:
    """As pandas': iterating it gives the names of its columns, numpy gets objects where one holds NA."""

    def __init__(self, values, index=None):
        self.values, self.shape = values, values.shape
        self.columns = [f"g{i}" for i in range(values.shape[1])]
        if index is not None:
            self.index, self.iloc = index, None

    def __iter__(self):
        return iter(self.columns)

    def __len__(self):
        return len(self.values)

    def to_numpy(self):
        return self.values

    def items(self):
        return zip(self.columns, self.values.T)


class Index:
    """As pandas' of strings."""

    def __init__(self, names):
        self.names = names

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)

    def equals(self, other):
        return self.names == other.names


class NAType:
    """As pandas' NA: no comparison with it is true or false."""

    def __ne__(self, other):
        return self

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = None


NA = NAType()


def values(given, **options):
    return Samples.of({"x": given, "y": Y}, **options).columns["x"]


SAME = {
    "frame": lambda: Frame(X),
    "frame of objects": lambda: Frame(X.astype(object)),
    "arrow table": lambda: pyarrow.table({f"g{i}": X[:, i] for i in range(4)}),
    "scipy csr": lambda: sparse.csr_matrix(X),
    "scipy coo array": lambda: sparse.coo_array(X),
    "torch sparse": lambda: torch.tensor(X).to_sparse(),
    "tensor with gradient": lambda: torch.tensor(X, requires_grad=True),
    "list of tensors with gradient": lambda: [torch.tensor(row, requires_grad=True) for row in X],
    "list of sparse rows": lambda: [sparse.csr_matrix(row).toarray()[0] for row in X],
    "list of lists": lambda: X.tolist(),
    "tuple of arrays": lambda: tuple(X),
    "matrix": lambda: X.view(np.matrix),
    "objects": lambda: X.astype(object),
    "masked array without a mask": lambda: np.ma.masked_array(X),
    "big endian": lambda: X.astype(">f4"),
    "arrow list array": lambda: pyarrow.array(X.tolist()),
    "arrow chunks": lambda: pyarrow.chunked_array([pyarrow.array(X[:2].tolist()), pyarrow.array(X[2:].tolist())]),
}


@pytest.mark.parametrize("how", SAME)
def test_any_container_gives_the_same_numbers(how):
    column = values(SAME[how]())
    np.testing.assert_array_equal(np.asarray(column.values, np.float32), X)
    assert column.kind == "vector" and column.rows.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_tensors_of_types_that_numpy_does_not_know(dtype):
    whole, rows = torch.tensor(HALVES).to(dtype), [torch.tensor(row).to(dtype) for row in HALVES]
    for given in (whole, rows):
        np.testing.assert_array_equal(np.asarray(values(given).values, np.float32), whole.float().numpy())
    (chunk,) = dataset_chunks([{"x": row, "y": [1.0, 2.0]} for row in rows])
    np.testing.assert_array_equal(chunk.columns["x"].values, whole.float().numpy())


def test_pandas_and_polars_themselves():
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    frame = pandas.DataFrame(X, columns=list("abcd"), index=list("pqrstu"))
    for given in (frame, frame.convert_dtypes(), frame.convert_dtypes(dtype_backend="pyarrow"), polars.DataFrame(X)):
        np.testing.assert_array_equal(np.asarray(values(given).values, np.float32), X)
    texts = ["a", None, "c", "d", "e", "f"]
    for given in (pandas.Series(texts), pandas.Series(texts, dtype="string"), polars.Series(texts)):
        assert values(given).values[:] == list("acdef") and values(given).rows.tolist() == [0, -1, 1, 2, 3, 4]
    assert values(pandas.Series(list("abcabc"), dtype="category")).values[:] == list("abcabc")
    with pytest.raises(DataError, match=r"'x' and 'y'.*other indexes"):
        Samples.of({"x": frame, "y": frame.iloc[::-1]})


def test_a_frame_trains_and_embeds_as_its_numbers():
    rows = np.random.default_rng(2).normal(size=(40, 40))
    data = {"genes": Frame(rows), "proteins": Frame(rows[:, :7])}
    binder = cb.fit(data, steps=2, dim=4, show_progress=False)
    assert binder.kinds == {"genes": "vector", "proteins": "vector"}
    assert torch.equal(binder.embed({"genes": Frame(rows)}).z, binder.embed({"genes": rows}).z)


def test_missing_cells_of_every_library_are_gaps():
    gaps = [None, float("nan"), np.float32("nan"), np.datetime64("NaT"), NA, np.ma.masked]
    assert all(map(is_missing, gaps)) and not any(map(is_missing, ["", "nan", 0, False, [], X, (), {}]))
    column = Samples.of({"x": ["a", *gaps, "b"]}).columns["x"]
    assert column.values[:] == ["a", "b"] and column.rows.tolist() == [0, *[-1] * 6, 1]
    column = Samples.of({"x": [X[0], *gaps, X[1]]}).columns["x"]
    np.testing.assert_array_equal(column.values, X[:2])
    assert column.rows.tolist() == [0, *[-1] * 6, 1]


def test_masked_rows_are_gaps_and_masked_numbers_are_refused():
    whole = np.ma.masked_array(X, np.arange(24).reshape(6, 4) // 4 == 3)
    np.testing.assert_array_equal(values(whole).values, np.delete(X, 3, 0))
    assert values(whole).rows.tolist() == [0, 1, 2, -1, 3, 4]
    with pytest.raises(DataError, match=r"1 samples are masked in part, first rows \[2\]"):
        values(np.ma.masked_array(X, np.arange(24).reshape(6, 4) == 9))


@pytest.mark.parametrize("wrap", [np.asarray, list, Frame, torch.tensor])
def test_rows_of_nan_are_gaps_where_that_is_said(wrap):
    given = X.copy()
    given[[1, 4]] = np.nan
    with pytest.raises(DataError, match=r'2 of 6 samples, first rows \[1, 4\].*nan="missing"'):
        values(wrap(given))
    column = values(wrap(given), nan="missing")
    np.testing.assert_array_equal(column.values, X[[0, 2, 3, 5]])
    assert column.rows.tolist() == [0, -1, 1, 2, -1, 3]
    given[0, 2] = np.nan
    with pytest.raises(DataError, match=r"1 of 4 samples, first rows \[0\]"):
        values(wrap(given), nan="missing")


def test_fit_and_embed_take_rows_of_nan_for_gaps_where_that_is_said():
    rows = np.random.default_rng(0).normal(size=(40, 5))
    rows[::4] = np.nan
    data = {"a": rows, "b": np.arange(80.0).reshape(40, 2)}
    with pytest.raises(DataError, match="NaN"):
        cb.fit(data, steps=1, show_progress=False)
    binder = cb.fit(data, steps=2, dim=4, nan="missing", show_progress=False)
    assert binder.embed(data, nan="missing").present.sum(1).tolist() == [30, 40]
    with pytest.raises(DataError, match='expects "error" or "missing"'):
        binder.embed(data, nan="drop")


REFUSED = {
    "one text": (lambda: "abcdef", "single text 'abcdef'"),
    "bytes": (lambda: b"abcdef", "single bytes"),
    "bytes in a list": (lambda: [b"a"] * 6, "got a bytes"),
    "set": (lambda: {"a", "b", "c", "d", "e", "f"}, "got a set"),
    "dict": (lambda: dict.fromkeys("abcdef", 1), "got a dict"),
    "generator": (lambda: (letter for letter in "abcdef"), "got a generator"),
    "numbers alone": (lambda: [1, 2, 3, 4, 5, 6], r"\[\[1.5\], \[2.0\]\]"),
    "complex": (lambda: X + 1j, "complex64"),
    "times": (lambda: np.zeros((6, 2), "M8[s]"), "datetime64"),
    "structured": (lambda: np.zeros(6, [("a", "f4"), ("b", "f4")]), "shape"),
    "frame of texts": (lambda: Frame(np.array([["a"] * 4] * 6, object)), r"columns that are none: \['g0', 'g1'"),
    "no features": (lambda: np.zeros((6, 0)), r"shape \(6, 0\)"),
    "ragged": (lambda: [np.zeros(3 + i % 2) for i in range(6)], r"\(3,\), \(4,\)"),
    "ragged lists": (lambda: [[[1, 2], [3]]] * 6, "cannot be read as an array"),
    "one of them complex": (lambda: [*X[:5], X[5] + 1j], "complex64"),
    "one of them objects": (lambda: [*X[:5], np.array([{}] * 4)], "object"),
    "meta tensor": (lambda: torch.empty(6, 2, device="meta"), "cannot be read as numbers"),
    "rows": (lambda: [{"a": 1}] * 6, "dataset_chunks"),
    "paths": (lambda: [pathlib.Path(f"photo/{i}.png") for i in range(6)], "not opened"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_list_of_values_is_refused_by_name(name):
    make, says = REFUSED[name]
    with pytest.raises(DataError, match=f"modality 'x': .*{says}"):
        values(make())


def test_a_sparse_matrix_that_does_not_fit_is_refused_before_it_takes_memory():
    wide = sparse.csr_matrix((6, MOST_DENSE // 40))
    with pytest.raises(DataError, match=r"with its zeros written out.*TruncatedSVD"):
        values(wide)


def test_paths_are_not_texts_unless_that_is_said(tmp_path, monkeypatch):
    for name in "abcdef":
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for paths in ([f"img/{i}.PNG" for i in range(6)], list("abcdef")):
        with pytest.raises(DataError, match="names of files"):
            values(paths)
        assert values(paths, kinds={"x": "text"}).values[:] == paths
    assert values(["see a.png", "two", "three", "four", "five", "six"]).kind == "text"


@pytest.mark.parametrize("data", [X, [X], "text", Frame(X), torch.tensor(X), None, 5, [], iter([])])
def test_what_is_no_dict_is_refused_with_the_right_call(data, mixed):
    binder = cb.fit({"a": Y, "b": Y}, steps=1, dim=4, show_progress=False)
    for call in (cb.Samples.of, binder.embed, lambda data: cb.fit(data, steps=1)):
        with pytest.raises(DataError, match=f"expected a dict .*got {type(data).__name__}; "):
            call(data)


def test_frames_whose_rows_are_named_differently_are_refused():
    names = list("pqrstu")
    same = {"a": Frame(X, Index(names)), "b": Frame(Y, Index(names)), "c": Frame(Y)}
    assert len(Samples.of(same)) == 6
    with pytest.raises(DataError, match=r"'a' and 'b'.*same order"):
        Samples.of({**same, "b": Frame(Y, Index(names[::-1]))})


def test_a_text_is_no_list_of_ids_or_labels():
    assert listed("ids", ("a", "b")) == ["a", "b"]
    for what in ("ids", "label", "split", "group"):
        with pytest.raises(DataError, match=f"{what}: expected a list, got the single text"):
            Samples.of({"x": X}, **{what: "abcdef"})


def test_what_stands_beside_samples_is_refused_not_ignored():
    samples = Samples.of({"a": X, "b": Y})
    here = np.zeros(6, bool)
    beside = {
        "present": {"a": here},
        "kinds": {"a": "sequence"},
        "label": here,
        "ids": list("abcdef"),
        "split": here,
        "group": here,
    }
    for name, value in beside.items():
        with pytest.raises(DataError, match=f"{name}= beside Samples"):
            Samples.of(samples, **{name: value})
    with pytest.raises(DataError, match="present= beside Samples"):
        cb.fit(samples, present={"a": here}, steps=1)
    binder = cb.fit(samples, steps=1, dim=4, show_progress=False)
    with pytest.raises(DataError, match="present= beside Samples"):
        binder.embed(samples, present={"a": here})
    embeddings = binder.embed(samples)
    with pytest.raises(DataError, match="beside Embeddings"):
        cb.LeaveOneOut()(embeddings, present={"a": torch.zeros(6, dtype=torch.bool)})


@pytest.mark.parametrize("what", ["present", "kinds"])
def test_what_is_said_by_modality_is_a_dict(what):
    with pytest.raises(DataError, match=f"{what}= expects a dict"):
        Samples.of({"a": X}, **{what: [True] * 6})


def test_a_modality_that_nobody_has_is_embedded_as_missing():
    binder = cb.fit({"a": X, "b": Y}, steps=1, dim=4, show_progress=False)
    embeddings = binder.embed({"a": [None] * 3, "b": Y[:3]})
    assert embeddings.present.tolist() == [[False] * 3, [True] * 3] and embeddings["a"].abs().sum() == 0


@pytest.mark.parametrize("size", [0, -1, 2.5, "64"])
def test_a_batch_size_that_is_none_is_refused(size):
    binder = cb.fit({"a": X, "b": Y}, steps=1, dim=4, show_progress=False)
    with pytest.raises(DataError, match="batch_size: expected a whole number"):
        binder.embed({"a": X}, batch_size=size)
