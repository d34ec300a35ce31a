"""`centrobind index` and `centrobind search` as a person meets them."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import centrobind as cb
from centrobind.binder.binder import build_binder
from centrobind.cli.main import app
from centrobind.errors import CentrobindError, DataError
from conftest import mixed_samples


def run(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=True)


def found(*arguments):
    done = run("search", *arguments, "--json")
    assert done.exit_code == 0, done.exception
    return json.loads(done.output)["hits"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store, a run's folder with a binder, and its index."""
    folder = tmp_path_factory.mktemp("search")
    mixed = mixed_samples()
    binder = build_binder(mixed, dim=8)
    cb.write_store(folder / "store", mixed)
    cb.save(binder, folder / "run" / "binder")
    made = run("index", folder / "run", folder / "store")
    assert made.exit_code == 0 and "60 samples, picture, series, text, vector" in made.output, made.exception
    picture = mixed.columns["picture"].take(np.array([int(np.flatnonzero(mixed.columns["picture"].present)[0])]))[0]
    Image.fromarray(picture).save(folder / "a.png")
    np.save(folder / "vector.npy", np.arange(5.0))
    (folder / "a.txt").write_text("red thing number 1\n")
    return folder, binder, mixed


def test_words_files_and_samples_find_what_their_vectors_find(world):
    folder, binder, mixed = world
    index = cb.open_index(folder / "run" / "index", binder)
    words = "blue thing number 3"
    asked = {"text": words}

    def expect(query, want, **options):
        return index.search(query, want, 4, **options).ids[0]

    hits = found(folder / "run", "--text", words, "--want", "picture", "-k", 4)
    assert [hit["id"] for hit in hits] == expect(cb.query(binder, asked), "picture")
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4] and {hit["label"] for hit in hits} <= {"0", "1", "2"}
    assert found(folder / "run", "--text", f"text={words}", "--want", "picture", "-k", 4) == hits
    both = {**asked, "vector": np.arange(5.0)}
    query = cb.query(binder, both, weights=index.weights("series"), minus={"text": "red thing number 1"})
    for unwanted in ("red thing number 1", f"file:{folder / 'a.txt'}"):
        hits = found(
            *(folder / "run", "--text", words, "--file", folder / "vector.npy", "--not", unwanted),
            *("--want", "series", "-k", 4, "--where", "label=0", "--where", "label=2"),
        )
        assert [hit["id"] for hit in hits] == expect(query, "series", where={"label": ["0", "2"]})
    one = index.ids[int(np.flatnonzero(mixed.columns["picture"].present)[0])]
    for way in (("--file", folder / "a.png"), ("--id", f"picture={one}")):
        hits = found(folder / "run", *way, "--want", "picture", "-k", 1)
        assert hits[0]["id"] == one and hits[0]["score"] == pytest.approx(1, abs=1e-4)
    everything = found(folder / "run", "--id", one, "-k", 2)
    assert [hit["modality"] for hit in everything] == [name for name in index.modalities for _ in range(2)]
    said = run("search", folder / "run", "--id", one).output
    assert all(f"\n{name}\n" in f"\n{said}" for name in index.modalities) and one in said


def test_words_that_training_never_saw_are_named(world):
    folder, binder, _ = world
    hits = found(folder / "run", "--text", "red thing", "--want", "text")
    done = run("search", folder / "run", "--text", "red xyzzy thing", "--not", "blue plugh", "--want", "text")
    assert done.exit_code == 0 and "'xyzzy', 'plugh'" in done.stderr and "xyzzy" not in done.stdout
    done = run("search", folder / "run", "--text", "red xyzzy", "--want", "text", "--json")
    assert json.loads(done.output)["unknown"] == ["xyzzy"] and not done.stderr
    assert not run("search", folder / "run", "--text", "red thing", "--want", "text").stderr and hits
    (folder / "b.txt").write_text("xyzzy plugh\n")
    for nothing in ("xyzzy", "Xyzzy PLUGH", "?!"):
        for asked in (("--text", nothing), ("--text", f"text={nothing}"), ("--text", "red", "--not", nothing)):
            done = run("search", folder / "run", *asked)
            assert isinstance(done.exception, DataError) and "none of its words" in str(done.exception), asked
        with pytest.raises(DataError, match="none of its words"):
            cb.query(binder, {"text": nothing})
        with pytest.raises(DataError, match="none of its words"):
            cb.query(binder, {"vector": np.arange(5.0), "text": ["red", nothing]})
    for asked in (("--file", folder / "b.txt"), ("--text", "red", "--not", f"file:{folder / 'b.txt'}")):
        assert "none of its words" in str(run("search", folder / "run", *asked).exception)


def test_hits_are_printed_with_what_they_are(world):
    folder, _, mixed = world
    words = dict(zip(np.flatnonzero(mixed.columns["text"].present).tolist(), mixed.columns["text"].take(np.arange(60))))
    hits = found(folder / "run", "--text", "red thing", "--want", "vector", "-k", 60)
    assert {hit["id"]: hit["caption"] for hit in hits} == {hit["id"]: words.get(int(hit["id"])) for hit in hits}
    assert None in (captions := [hit["caption"] for hit in hits]) and len(set(captions)) > 10
    lines = run("search", folder / "run", "--text", "red thing", "--want", "vector", "-k", 60).output.splitlines()[1:]
    for hit, line in zip(hits, lines, strict=True):
        assert line.endswith(hit["caption"] or hit["label"] or hit["id"]) and hit["id"] in line


def test_splits_places_and_engines(world):
    folder, binder, mixed = world
    assert run("index", folder / "run", folder / "store", "--out", folder / "i", "--split", "test").exit_code == 0
    assert len(cb.open_index(folder / "i")) == len(mixed.part("test"))
    hits = found(folder / "run", "--index", folder / "i", "--text", "red", "--want", "text", "-k", 60)
    assert {hit["id"] for hit in hits} <= set(mixed.part("test").ids[:])
    assert run("index", folder / "run", folder / "store", "--out", folder / "i", "--force").exit_code == 0
    assert len(cb.open_index(folder / "i")) == 60
    lone = cb.save(binder, folder / "lone")
    assert run("index", lone, folder / "store").exit_code == 0 and (folder / "lone.index").is_dir()


def test_a_mistake_says_what_is_wrong(world, tmp_path):
    folder, _, mixed = world
    cb.save(build_binder(mixed, dim=8, seed=1), tmp_path / "other" / "binder")
    (folder / "a.pdf").write_text("")
    np.save(folder / "odd.npy", np.zeros(3))
    for arguments, says in {
        ("index", folder / "run", folder / "store"): "an index already",
        ("index", folder / "run", folder / "store", "--out", folder): "not of an index",
        ("index", folder / "run", folder / "store", "--out", folder / "j", "--engine", "faiss"): "expected one of",
        ("search", folder / "run"): "expected something to look for",
        ("search", folder / "run", "--text", "red", "--want", "smell"): "no modality 'smell'",
        ("search", folder / "run", "--text", "red", "--where", "label"): "expected label=name",
        (
            "search",
            folder / "run",
            "--text",
            "red",
            "--where",
            "label=9",
        ): "expected some of ['0', '1', '2'], got ['9']",
        ("search", folder / "run", "--text", "vector=x"): "'vector' is vector, not text",
        ("search", folder / "run", "--file", folder / "a.pdf"): "expected a file ending with one of .png",
        ("search", folder / "run", "--file", folder / "odd.npy"): "the binder has no modality for array of shape (3,)",
        ("search", folder / "run", "--file", "nowhere.png"): "nowhere.png: no such file",
        ("search", folder / "run", "--id", "nobody"): "not in the index",
        ("search", folder / "run", "--id", "0", "--index", folder / "nowhere"): "is not an index (no such folder)",
        ("search", tmp_path / "other", "--id", "0", "--index", folder / "run" / "index"): "do not share a space",
    }.items():
        done = run(*arguments)
        assert isinstance(done.exception, CentrobindError) and says in str(done.exception), (arguments, done.exception)


def test_two_text_modalities_have_to_be_told_apart(tmp_path):
    texts = {"title": [f"title {i}" for i in range(9)], "body": [f"body {i}" for i in range(9)]}
    binder = build_binder(cb.Samples.of(texts), dim=4)
    cb.save(binder, tmp_path / "run" / "binder")
    cb.build_index(binder, cb.Samples.of(texts), tmp_path / "run" / "index")
    done = run("search", tmp_path / "run", "--text", "title 3")
    assert "could be any of ['body', 'title']; say which: body=..." in str(done.exception)
    assert found(tmp_path / "run", "--text", "title=title 3", "--want", "title", "-k", 1)[0]["id"] == "3"
