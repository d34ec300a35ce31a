"""Rows of a data set and the tables of MuData, by stand-ins that can do what those libraries' objects can."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse

import centrobind as cb
from centrobind.data import from_mudata
from centrobind.errors import DataError

DRAW = np.random.default_rng(0)
A, B = DRAW.normal(size=(40, 5)).astype(np.float32), DRAW.normal(size=(40, 3)).astype(np.float32)
TEXTS = [f"word{i % 7} w{i % 5}" for i in range(40)]


class Dataset:
    """As Hugging Face's and torch's: a length, and a dict for every number."""

    def __init__(self, rows):
        self.rows = rows
        self.column_names, self.shape = list(rows[0]), (len(rows), len(rows[0]))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]


def rows(count=40):
    return [
        {"a": A[i % 40].tolist(), "t": TEXTS[i % 40] if i % 3 else None, "split": "train" if i < 30 else "validation"}
        for i in range(count)
    ]


@pytest.mark.parametrize("wrap", [list, Dataset])
def test_rows_train_and_embed_as_their_columns(wrap):
    given = {"a": A, "t": [text if i % 3 else None for i, text in enumerate(TEXTS)]}
    split = ["train"] * 30 + ["valid"] * 10
    options = {"steps": 2, "dim": 4, "show_progress": False, "batch_size": 20}
    binder, twin = cb.fit(wrap(rows()), **options), cb.fit(cb.Samples.of(given, split=split), **options)
    assert all(np.array_equal(mine, its) for mine, its in zip(binder.state_dict().values(), twin.state_dict().values()))
    embeddings = binder.embed(wrap(rows()))
    assert np.array_equal(embeddings.z, binder.embed(given).z) and embeddings.present.sum(1).tolist() == [40, 26]


def test_chunks_join_to_what_they_were_cut_from():
    samples = cb.data.as_samples(Dataset(rows(2500)))
    assert len(samples) == 2500 and samples.ids[[0, 2499]] == ["0", "2499"]
    assert samples.columns["t"].present.tolist() == [i % 3 > 0 for i in range(2500)]
    for i in (0, 1, 1023, 1024, 2499):
        batch = samples.batch(np.array([i]))
        np.testing.assert_array_equal(batch.inputs["a"], A[[i % 40]])
        assert batch.inputs["t"] == ([TEXTS[i % 40]] if i % 3 else [])
    assert samples.split.names == ("train", "validation") and len(samples.part("train")) == 30


def test_a_modality_of_one_chunk_only():
    late = [{"a": [1.0, 2.0]}] * 1100 + [{"a": [1.0, 2.0], "t": "x", "label": "y"}] * 3
    samples = cb.data.as_samples(late)
    assert samples.columns["t"].present.sum() == 3 and samples.columns["t"].present[-3:].all()
    assert (samples.label.codes >= 0).sum() == 3


@pytest.mark.parametrize("wrong", [[], [1, 2], [{}], Dataset([{"a": 1}])])
def test_rows_that_are_none_are_refused(wrong):
    with pytest.raises(DataError):
        cb.fit(wrong, steps=1)
    with pytest.raises(DataError, match="rows have None"):
        cb.fit(rows(), present={"a": np.ones(40, bool)}, steps=1)


def mudata():
    names = [f"cell{i}" for i in range(6)]
    obs = {"type": ["x", None, "y", "x", float("nan"), "y"], "donor": [1, 1, 2, 2, 3, 3]}
    tables = {
        "rna": SimpleNamespace(X=sparse.csr_matrix(A[:4]), obs_names=[names[i] for i in (5, 0, 2, 3)]),
        "prot": SimpleNamespace(X=B[:6], obs_names=names[::-1]),
        "atac": SimpleNamespace(X=np.asfortranarray(A[:3].astype(np.float64)), obs_names=names[1:4]),
    }
    return SimpleNamespace(mod=tables, obs_names=names, obs=obs)


def test_observations_of_mudata_are_matched_by_name():
    samples = from_mudata(mudata(), label="type", group="donor")
    assert samples.modalities == ("rna", "prot", "atac") and samples.ids[:] == [f"cell{i}" for i in range(6)]
    assert samples.present.tolist() == [[1, 0, 1, 1, 0, 1], [1] * 6, [0, 1, 1, 1, 0, 0]]
    for name, table in mudata().mod.items():
        x = table.X.toarray() if sparse.issparse(table.X) else table.X
        for value, owner in zip(x, table.obs_names):
            batch = samples.batch(np.array([int(owner.removeprefix("cell"))]))
            np.testing.assert_array_equal(batch.inputs[name][0], value)
    assert samples.label.texts() == ["x", "", "y", "x", "", "y"] and samples.group.texts() == list("112233")


def test_mudata_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match="expected a MuData object.*got dict"):
        from_mudata({})
    with pytest.raises(DataError, match=r"label='kind': no such column in obs, expected one of \['type', 'donor'\]"):
        from_mudata(mudata(), label="kind")
    wrong = mudata()
    wrong.mod["rna"].obs_names = ["p", "q", "r", "s"]
    with pytest.raises(DataError, match="'rna': its observations are not those of the whole"):
        from_mudata(wrong)
    with pytest.raises(DataError, match=r"got SimpleNamespace; .*cb.from_mudata\(mudata\)"):
        cb.fit(mudata(), steps=1)
