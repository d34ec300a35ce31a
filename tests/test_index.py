"""The index against a literal loop; what is written, refused, read meanwhile, merged and found again."""

import itertools
import json
import sys
import threading

import numpy as np
import pytest
import torch

import centrobind as cb
from centrobind.binder.binder import build_binder
from centrobind.errors import DataError, ExtraError, StoreError
from centrobind.index import segments, topk
from centrobind.index.asking import combined
from centrobind.index.engine import About
from centrobind.index.opening import ENGINES, as_samples
from centrobind.index.segments import read_manifest, to_merge
from centrobind.types import Embeddings

NAMES = ("image", "sound", "name", "touch", "smell")


def engines():
    return [
        "exact",
        pytest.param("lancedb", marks=pytest.mark.skipif(not has("lancedb"), reason="needs centrobind[lancedb]")),
    ]


def has(name):
    return __import__("importlib.util").util.find_spec(name) is not None


def some_embeddings(count, modalities=3, dim=6, *, seed=0, prefix="s"):
    """With gaps, exact copies and copies that differ by less than float32 products can tell."""
    draw = np.random.default_rng(seed)
    z = draw.normal(size=(modalities, count, dim)).astype(np.float32)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    z[:, 3::4] = z[:, 2:3]
    z[:, 2::5] = z[:, 1:2] * np.float32(1 + 1e-6)
    present = torch.from_numpy(draw.random((modalities, count)) < 0.8)
    present[0, ~present.any(0)] = True
    z = torch.where(present[..., None], torch.from_numpy(z), 0)
    return Embeddings(z, present, NAMES[:modalities], np.array([f"{prefix}{i}" for i in range(count)]))


def label_of(ids):
    return ["abc"[sum(map(ord, str(one))) % 3] for one in ids]


def made(path, embeddings, engine="exact", *, fingerprint="f00d"):
    about = About(fingerprint, embeddings.z.shape[-1], embeddings.modalities)
    ENGINES[engine].create(path, about, [as_samples(embeddings, label=label_of(embeddings.ids), split=None)])
    return cb.open_index(path)


class Twin:
    """The same as an index, as a list."""

    def __init__(self, embeddings):
        self.samples = []
        self.add(embeddings)

    def add(self, embeddings):
        for i, one in enumerate(embeddings.ids):
            vectors = {
                name: embeddings.z[m, i].double().numpy()
                for m, name in enumerate(embeddings.modalities)
                if embeddings.present[m, i]
            }
            self.samples.append((str(one), vectors, label_of([one])[0]))

    def delete(self, ids):
        self.samples = [sample for sample in self.samples if sample[0] not in ids]

    def search(self, query, want, k, labels=None):
        query = query.double().numpy() / np.linalg.norm(query.double().numpy())
        found = []
        for row, (one, vectors, label) in enumerate(self.samples):
            if want in vectors and (labels is None or label in labels):
                score = sum(float(a) * float(b) for a, b in zip(np.float32(query), vectors[want]))
                found.append((-float(np.float32(score)), row, one))
        found.sort()
        return [one[2] for one in found[:k]], [-one[0] for one in found[:k]], [one[1] for one in found[:k]]


def agree(index, twin, *, k=4, labels=None, queries=7, exactly=True):
    asked = some_embeddings(queries, 1, index.dim, seed=5).z[0] + 1e-3
    where = None if labels is None else {"label": labels}
    for want in index.modalities:
        hits = index.search(asked, want, k, where)
        assert len(hits) == queries
        for number, query in enumerate(asked):
            ids, scores, rows = twin.search(query, want, k, labels)
            assert hits.scores[number] == pytest.approx(scores, abs=3e-7)
            if exactly:
                assert (hits.ids[number], hits.rows[number]) == (ids, rows)
            assert [index.ids[row] for row in hits.rows[number]] == hits.ids[number]


@pytest.mark.parametrize("engine", engines())
@pytest.mark.parametrize("count", [2, 3, 5])
def test_search_is_the_literal_loop(tmp_path, monkeypatch, engine, count):
    monkeypatch.setattr("centrobind.index.exact.BLOCK", 11)
    monkeypatch.setattr(topk, "QUERIES", 3)
    monkeypatch.setattr(topk, "PAIRS", 5)
    first, more = some_embeddings(60, count), some_embeddings(25, count, seed=1, prefix="t")
    index, twin = made(tmp_path / "i", first, engine), Twin(first)
    exactly = engine == "exact"
    agree(index, twin, exactly=exactly)
    index.add(more, label=label_of(more.ids))
    twin.add(more)
    agree(index, twin, exactly=exactly)
    gone = ["s3", "s4", "t0", "t24"]
    index.delete(gone)
    twin.delete(gone)
    agree(index, twin, exactly=exactly)
    agree(index, twin, labels=["a"], exactly=exactly)
    agree(index, twin, labels=["b", "c"], k=200, exactly=exactly)
    assert index.ids == [sample[0] for sample in twin.samples] and len(index) == 81


def test_ties_go_to_the_lower_row_wherever_the_blocks_end(tmp_path, monkeypatch):
    same = torch.zeros(1, 50, 4)
    same[..., 0] = 1
    index = made(tmp_path / "i", Embeddings(same, torch.ones(1, 50, dtype=torch.bool), ("image",), np.arange(50)))
    for block in (1, 7, 50, 1000):
        monkeypatch.setattr("centrobind.index.exact.BLOCK", block)
        hits = index.search(same[0, :2], "image", 6)
        assert hits.rows == [[0, 1, 2, 3, 4, 5]] * 2 and hits.scores == [[1.0] * 6] * 2
    assert len(index.search(same[0, 0], "image", 99).ids[0]) == 50


@pytest.mark.parametrize("rising", [True, False])
def test_a_stream_that_gets_better_and_better_loses_nothing(rising):
    angles = torch.linspace(1.5, 0.0, 500, dtype=torch.float64)
    vectors = torch.stack([angles.cos(), angles.sin()], 1).float()
    vectors = vectors if rising else vectors.flip(0)
    best = topk.Nearest(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 9)
    for start in range(0, 500, 50):
        best.see(torch.arange(start, start + 50), vectors[start : start + 50])
    near, far = list(range(499, 490, -1)), list(range(9))
    assert best.result()[1] == ([near, far] if rising else [far, near])


def test_coarse_products_change_nothing():
    """As a GPU's TF32 would: the bar is lowered by what such products can be off."""
    draw = torch.Generator().manual_seed(0)
    queries, vectors = (torch.nn.functional.normalize(torch.randn(n, 16, generator=draw)) for n in (5, 400))
    rows = torch.arange(400)
    fine = topk.Nearest(queries, 10)
    fine.see(rows, vectors)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        coarse = topk.Nearest(queries, 10)
        assert coarse.slack > fine.slack * 1000
        coarse.see(rows, vectors)
    finally:
        torch.set_float32_matmul_precision(before)
    assert coarse.result() == fine.result()


@pytest.mark.parametrize("engine", engines())
def test_replace_is_one_moment_for_all_modalities_and_readers_keep_theirs(tmp_path, engine):
    index = made(tmp_path / "i", some_embeddings(20), engine)
    reader = cb.open_index(tmp_path / "i")
    before = reader.embeddings()
    new = some_embeddings(6, seed=9)
    new = Embeddings(new.z, new.present, new.modalities, np.array(["s2", "s5", "s19", "n1", "n2", "n3"]))
    with pytest.raises(DataError, match=r"3 of these ids are in the index already, first \['s2', 's5', 's19'\]"):
        index.add(new)
    assert not reader.refresh()
    index.replace(new, label=["z"] * 6)
    assert torch.equal(reader.embeddings().z, before.z) and reader.ids == list(before.ids)
    assert reader.refresh() and not reader.refresh()
    assert len(reader) == 23 and set(reader.ids) == {*before.ids, "n1", "n2", "n3"}
    found = reader.embeddings(list(new.ids))
    assert torch.equal(found.z, new.z) and torch.equal(found.present, new.present)
    kept = [one for one in before.ids if one not in ("s2", "s5", "s19")]
    assert torch.equal(reader.embeddings(kept).z, before.z[:, [list(before.ids).index(one) for one in kept]])
    labels = reader.category("label")
    assert [labels.names[labels.codes[reader.ids.index(one)]] for one in new.ids] == ["z"] * 6
    assert reader.category("group") is None
    assert {*reader.search(new.z[0], "image", 30, {"label": "z"}).ids[0]} <= set(new.ids)
    with pytest.raises(DataError, match=r"1 of these ids are not in the index, first \['s99'\]"):
        index.delete(["s1", "s99"])
    for call in (index.delete, index.embeddings, lambda ids: index.vectors("image", ids)):
        for wrong in ("123", {"s1", "s2"}, {"s1": 1}):
            with pytest.raises(DataError, match="ids: expected a list"):
                call(wrong)
    index.delete(index.ids)
    assert len(index) == 0 and index.search(new.z[0, 0], "image").ids == [[]]
    index.add(new)
    index.compact()
    assert sorted(index.ids) == sorted(new.ids)


def test_a_new_segment_never_takes_the_name_of_an_old_one(tmp_path):
    """Else a reader that has the old one on its GPU would go on with its vectors."""
    index = made(tmp_path / "i", some_embeddings(5))
    seen = {one.number for one in read_manifest(tmp_path / "i").segments}
    for number in range(3):
        index.delete(index.ids)
        index.add(some_embeddings(5, seed=number))
        now = {one.number for one in read_manifest(tmp_path / "i").segments}
        assert not now & seen
        seen |= now
    ENGINES["exact"].create(tmp_path / "i", index._engine.about, [as_samples(some_embeddings(5))])
    assert index.refresh() and not {one.number for one in index._engine.now.segments} & seen


def test_small_writes_merge_into_few_segments(tmp_path):
    index = made(tmp_path / "i", some_embeddings(40))
    twin = Twin(some_embeddings(40))
    for number in range(14):
        one = some_embeddings(1 + number % 3, seed=number, prefix=f"n{number}-")
        index.add(one, label=label_of(one.ids))
        twin.add(one)
        sizes = [each.living for each in index._engine.now.segments]
        assert all(a >= 2 * b for a, b in itertools.pairwise(sizes)), sizes
    agree(index, twin)
    left = {path.name for path in (tmp_path / "i").iterdir()}
    assert left == {"index.json", "lock"} | {f"segment-{one.number}" for one in index._engine.now.segments}
    index.delete(index.ids[:20])
    assert len(index._engine.now.segments[0].dead) == 20
    index.delete(index.ids[:20])
    assert sum(len(each) for each in index._engine.now.segments) == len(index) == 27


def test_what_to_merge():
    def of(*sizes):
        return tuple(segments.Segment(i, range(size), {}) for i, size in enumerate(sizes))

    assert [
        to_merge(of(*sizes)) for sizes in ((), (5,), (5, 5), (100, 9), (100, 20, 10), (100, 20, 11), (9, 4, 3))
    ] == [*(0, 1, 0, 2, 3, 1, 0)]
    half_dead = segments.Segment(0, range(10), {}, None, np.arange(6, dtype=np.int32))
    assert to_merge((half_dead,)) == 0


@pytest.mark.parametrize("engine", engines())
def test_a_search_says_what_is_wrong_with_it(tmp_path, engine):
    index = made(tmp_path / "i", some_embeddings(9), engine)
    query = torch.ones(6) / 6**0.5
    for arguments, says in (
        ((query, "smell"), "no modality 'smell'"),
        ((query[:5], "image"), r"expected shape \(6,\) or \(Q, 6\), got \(5,\)"),
        ((query * torch.nan, "image"), "zero, NaN or inf"),
        ((query * 0, "image"), "zero, NaN or inf"),
        ((query, "image", 0), "k: expected at least 1"),
        ((query, "image", 5, {"colour": "red"}), "expected some of"),
        ((query, "image", 5, {"label": "it's"}), 'got \\["it\'s"\\]'),
    ):
        with pytest.raises(DataError, match=says):
            index.search(*arguments)
    lacking = [one for i, one in enumerate(index.ids) if not index.embeddings().present[0, i]]
    with pytest.raises(DataError, match="have no 'image'"):
        index.vectors("image", lacking)
    with pytest.raises(DataError, match="not in the index"):
        index.vectors("image", ["nobody"])
    with pytest.raises(DataError, match="expected embeddings of 6 dimensions, got 5"):
        index.add(some_embeddings(3, dim=5, prefix="x"))
    with pytest.raises(DataError, match="open the index with its binder"):
        index.add(as_samples(some_embeddings(3, prefix="x")))


@pytest.mark.parametrize("engine", engines())
def test_quotes_in_ids_and_labels(tmp_path, engine):
    odd = ["it's", 'a "b"', "x'); DROP TABLE samples; --", "ü 字", "\\", "%_"]
    embeddings = some_embeddings(6, 2)
    embeddings = Embeddings(embeddings.z, embeddings.present, embeddings.modalities, np.array(odd))
    ENGINES[engine].create(tmp_path / "i", About("f", 6, ("image", "sound")), [as_samples(embeddings, label=odd)])
    index = cb.open_index(tmp_path / "i")
    for number, one in enumerate(odd):
        want = index.modalities[int(not embeddings.present[0, number])]
        hits = index.search(embeddings[want][number], want, 5, {"label": one})
        assert hits.ids == [[one]]
        index.delete([one])
        assert len(index) == 5 - number


@pytest.mark.parametrize("engine", engines())
def test_build_open_and_the_binders_fingerprint(tmp_path, mixed, engine):
    binder, other = (build_binder(mixed, dim=8, seed=seed) for seed in (0, 1))
    index = cb.build_index(binder, mixed, tmp_path / "i", engine=engine)
    emb = binder.embed(mixed)
    assert index.engine == engine and index.fingerprint == binder.fingerprint and len(index) == 60
    assert index.modalities == binder.modalities and index.ids == list(emb.ids)
    assert torch.equal(index.embeddings().present, emb.present) and torch.allclose(index.embeddings().z, emb.z)
    assert torch.allclose(index.vectors("vector", ["1", "0"]), emb["vector"][[1, 0]])
    for what in ("label", "split"):
        codes, expected = index.category(what), getattr(mixed, what)
        assert [codes.names[i] for i in codes.codes] == [expected.names[i] for i in expected.codes]
    hits = index.search(emb["text"][emb.present[2]][:4], "text", k=1, where={"split": ["train", "test", "valid"]})
    assert [scores[0] for scores in hits.scores] == pytest.approx([1] * 4, abs=1e-6)
    with pytest.raises(StoreError, match=rf"{binder.fingerprint}.*{other.fingerprint}"):
        cb.open_index(tmp_path / "i", other)
    with pytest.raises(StoreError, match="an index already"):
        cb.build_index(other, mixed, tmp_path / "i", engine=engine)
    cb.build_index(other, mixed.part("train"), tmp_path / "i", engine=engine, replace=True)
    assert index.refresh() and index.fingerprint == other.fingerprint and len(index) == len(mixed.part("train"))
    again = cb.open_index(tmp_path / "i", other)
    again.add(mixed.part("test"))
    assert len(again) == len(mixed.part("train")) + len(mixed.part("test"))
    with pytest.raises(DataError, match="expected one of"):
        cb.build_index(other, mixed, tmp_path / "j", engine="faiss")


def test_a_folder_that_is_no_index(tmp_path, mixed):
    with pytest.raises(StoreError, match="no such folder"):
        cb.open_index(tmp_path / "nowhere")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("")
    with pytest.raises(StoreError, match="no index.json in it"):
        cb.open_index(tmp_path / "thesis")
    with pytest.raises(StoreError, match=r"holds \['chapter.tex'\], which is not of an index"):
        cb.build_index(build_binder(mixed, dim=8), mixed, tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said.update(format="other"),
        lambda said: said.update(version=2),
        lambda said: said.update(modalities=["image", "../x"]),
        lambda said: said.update(modalities=["image"]),
        lambda said: said.update(dim=5),
        lambda said: said.pop("writes"),
        lambda said: said["segments"][0].update(number=7),
        lambda said: said["segments"][0].update(number="../../etc"),
        lambda said: said["segments"][0].update(samples=8),
        lambda said: said["segments"][0].update(dead="../dead-0-1.npy"),
        lambda said: said["segments"][0].update(dead="dead-0-9.npy"),
        lambda said: said["segments"].append(said["segments"][0]),
        lambda said: said.update(segments={"a": 1}),
    ],
)
def test_a_manifest_that_was_edited_is_refused(tmp_path, change):
    made(tmp_path / "i", some_embeddings(9))
    said = json.loads((tmp_path / "i" / "index.json").read_text())
    change(said)
    (tmp_path / "i" / "index.json").write_text(json.dumps(said))
    with pytest.raises(StoreError):
        cb.open_index(tmp_path / "i")


@pytest.mark.parametrize(
    "broken", [b"", b"\x93NUMPY garbage", None, np.array([3, 2], np.int32), np.array([99], np.int32)]
)
def test_a_damaged_list_of_the_dead_is_refused(tmp_path, broken):
    index = made(tmp_path / "i", some_embeddings(9))
    index.delete(["s1"])
    (file,) = (tmp_path / "i").glob("dead-*")
    if isinstance(broken, np.ndarray):
        np.save(file, broken)
    elif broken is None:
        file.unlink()
    else:
        file.write_bytes(broken)
    with pytest.raises(StoreError):
        cb.open_index(tmp_path / "i")


def test_readers_see_whole_writes_while_one_writes(tmp_path):
    """Every write gives all samples the same vector; a reader that ever sees two of them saw half a write."""
    names = ("image", "sound")

    def version(number):
        z = torch.zeros(2, 12, 8)
        z[..., number % 8] = 1
        return Embeddings(z, torch.ones(2, 12, dtype=torch.bool), names, np.arange(12))

    made(tmp_path / "i", version(0))
    stop, wrong, seen = threading.Event(), [], set()

    def read():
        index = cb.open_index(tmp_path / "i")
        while not stop.is_set():
            index.refresh()
            found = index.embeddings()
            near = [index.search(found.z[0, 0], name, 12) for name in names]
            if len(found) != 12 or len(found.z.reshape(24, 8).unique(dim=0)) != 1 or near[0].rows != [list(range(12))]:
                wrong.append(found)
            seen.add(int(found.z[0, 0].argmax()))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for one in readers:
        one.start()
    writer = cb.open_index(tmp_path / "i")
    for number in range(1, 13):
        writer.replace(version(number))
    stop.set()
    for one in readers:
        one.join()
    assert not wrong and len(seen) > 1


def test_two_writers_take_turns(tmp_path):
    made(tmp_path / "i", some_embeddings(4))

    def write(who):
        index = cb.open_index(tmp_path / "i")
        for number in range(3):
            index.add(some_embeddings(2, seed=number, prefix=f"{who}{number}-"))

    both = [threading.Thread(target=write, args=(who,)) for who in "ab"]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(cb.open_index(tmp_path / "i")) == 4 + 2 * 3 * 2


def test_a_writer_that_never_ends_is_named(tmp_path, monkeypatch):
    index = made(tmp_path / "i", some_embeddings(4))
    monkeypatch.setattr(segments, "PATIENCE", 0.05)
    with segments.writing(tmp_path / "i"), pytest.raises(StoreError, match="another process has been writing"):
        index.delete(["s0"])
    index.delete(["s0"])


def test_a_query_is_the_centroid_of_what_is_given(mixed):
    binder = build_binder(mixed, dim=8)
    texts, vectors = ["red thing number 1", "blue thing"], np.arange(5.0)
    a, b = binder.embed({"text": texts})["text"]
    c = binder.embed({"vector": vectors[None]})["vector"][0]

    def close(query, expected):
        assert query.shape == (8,) and query.norm() == pytest.approx(1, abs=1e-6)
        assert torch.allclose(query, expected / expected.norm(), atol=1e-5)

    close(cb.query(binder, {"text": texts[0]}), a)
    close(cb.query(binder, {"text": texts[0], "vector": vectors}), a + c)
    close(cb.query(binder, {"vector": vectors, "text": texts}), a + b + c)
    left = cb.query(binder, {"text": texts[0]}, minus={"vector": vectors})
    close(left, a - (a @ c) * c)
    both = cb.query(binder, {"text": texts[0]}, minus={"vector": vectors, "text": [texts[1], texts[1]]})
    assert abs(both @ b) < 1e-5 and abs(both @ c) < 1e-5 and both @ a > 0
    with pytest.raises(DataError, match="expected something to look for"):
        cb.query(binder, {})
    with pytest.raises(DataError, match="no modality"):
        cb.query(binder, {"smell": "x"})
    with pytest.raises(DataError, match="are the same"):
        cb.query(binder, {"text": "red"}, minus={"text": "red"})
    with pytest.raises(DataError, match="opposite directions"):
        combined([("text", torch.stack([a, -a]))])
    close(
        cb.query(binder, {"text": texts, "vector": vectors}, weights={"text": 2, "vector": 0.5}), 2 * a + 2 * b + c / 2
    )
    with pytest.raises(DataError, match=r"weights: expected one for \['vector'\]"):
        cb.query(binder, {"text": texts, "vector": vectors}, weights={"text": 2})


@pytest.mark.parametrize("engine", engines())
def test_weights_are_the_mean_cosine_over_what_is_left_of_one(tmp_path, engine):
    """On the validation split where there is one, over samples that have both; the wanted one as the best other."""
    embeddings = some_embeddings(30)
    noisy = torch.nn.functional.normalize(embeddings.z[0] + 0.3 * embeddings.z[1], dim=-1)
    z = torch.where(embeddings.present[..., None], torch.stack([embeddings.z[0], noisy, embeddings.z[2]]), 0)
    embeddings = Embeddings(z, embeddings.present, NAMES[:3], embeddings.ids)
    for split in (None, ["valid" if i % 3 == 0 else "train" for i in range(30)]):
        path = tmp_path / f"{split is None}"
        ENGINES[engine].create(path, About("f", 6, NAMES[:3]), [as_samples(embeddings, split=split)])
        rows = [i for i in range(30) if split is None or split[i] == "valid"]
        expected = {}
        for m, name in enumerate(NAMES[1:3], start=1):
            both = [float(z[0, i] @ z[m, i]) for i in rows if embeddings.present[0, i] and embeddings.present[m, i]]
            c = min(max(sum(both) / len(both), 0.01), 0.99)
            expected[name] = c / (1 - c * c)
        expected["image"] = max(expected.values())
        assert cb.open_index(path).weights("image") == pytest.approx(expected, rel=1e-5)
        assert expected["sound"] > 2 * expected["name"]


def test_without_the_extra_it_says_how_to_get_it(tmp_path, mixed, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ExtraError, match=r"pip install 'centrobind\[lancedb\]'"):
        cb.build_index(build_binder(mixed, dim=8), mixed, tmp_path / "i", engine="lancedb")


@pytest.mark.parametrize("engine", engines())
def test_captions_stay_with_their_samples(tmp_path, engine):
    """Through deletions, replacements, merges, a modality of texts with gaps, and samples that have none."""
    draw = np.random.default_rng(0)
    words = [f"thing {i} " + "x" * (300 if i % 7 == 0 else 0) for i in range(40)]
    here = {"title": np.arange(40) % 3 != 1, "body": np.arange(40) % 4 != 0}
    samples = cb.Samples.of(
        {"a": draw.normal(size=(40, 3)), "title": words, "body": [f"body {i}" for i in range(40)]}, present=here
    )
    binder = build_binder(samples, dim=4)
    first = next(name for name in samples.modalities if name in here)
    literal = {
        str(i): (words[i] if first == "title" else f"body {i}")[:200] if here[first][i] else None for i in range(40)
    }

    def shown():
        index = cb.open_index(tmp_path / "i")
        order = draw.permutation(len(index)).tolist()
        assert index.captions([]) == []
        return dict(zip([index.ids[row] for row in order], index.captions(order)))

    index = cb.build_index(binder, samples.take(np.arange(30)), tmp_path / "i", engine=engine)
    assert shown() == {name: literal[name] for name in map(str, range(30))}
    index.add(samples.take(np.arange(30, 40)))
    index.delete(["0", "31"])
    index.add(as_samples_of_embeddings(binder, samples.take(np.arange(3)), prefix="bare "))
    index.replace(samples.take(np.arange(5, 8)))
    expected = {name: text for name, text in literal.items() if name not in ("0", "31")} | {
        f"bare {i}": None for i in range(3)
    }
    assert shown() == expected
    index.compact()
    assert shown() == expected


def as_samples_of_embeddings(binder, samples, *, prefix):
    z = binder.embed(samples)
    return Embeddings(z.z, z.present, z.modalities, np.array([f"{prefix}{i}" for i in range(len(z))]))


def test_an_index_without_captions_opens_and_has_none(tmp_path):
    index = made(tmp_path / "i", some_embeddings(5))
    assert index.captions(range(5)) == [None] * 5


@pytest.mark.parametrize("engine", engines())
@pytest.mark.parametrize("ids", ["012", b"012", {"0", "1"}, {"0": 1}, frozenset("01")])
def test_one_text_is_no_list_of_ids(tmp_path, engine, ids):
    index = made(tmp_path / "i", some_embeddings(9, prefix=""), engine)
    for use in (index.delete, index.embeddings, lambda ids: index.vectors("image", ids)):
        with pytest.raises(DataError, match="expected a list of ids"):
            use(ids)
    assert len(cb.open_index(tmp_path / "i")) == 9
    index.delete(np.array([0, 1]))
    index.delete(("2",))
    assert index.ids == [str(i) for i in range(3, 9)]


@pytest.mark.parametrize("engine", engines())
def test_vectors_that_are_not_of_unit_length_are_refused(tmp_path, engine):
    """Their products with a query are no cosines; what rounding to 16 bits does to a length is no harm."""
    index = made(tmp_path / "i", some_embeddings(9), engine)
    more = some_embeddings(9, prefix="n")
    for scale in (0.0, 0.5, 0.98, 1.02, 100.0, 1e30):
        z = more.z.clone()
        row = int(more.present[1].nonzero()[0])
        z[1, row] *= scale
        for write in (index.add, index.replace):
            with pytest.raises(DataError, match=f"'sound': expected vectors of unit length.*1 others.*'n{row}'"):
                write(Embeddings(z, more.present, more.modalities, more.ids))
    assert len(cb.open_index(tmp_path / "i")) == 9
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        rounded = [f"{dtype}{i}" for i in range(9)]
        index.add(Embeddings(more.z.to(dtype), more.present, more.modalities, np.array(rounded)))


@pytest.mark.parametrize("queries", [1, 2, 3, 4, 9])
def test_few_queries_find_what_many_find(tmp_path, queries):
    """Few are multiplied another way and in larger blocks: over segments, gaps, deletions and filters, hits are equal."""
    index = made(tmp_path / "i", some_embeddings(300, dim=24))
    index.add(some_embeddings(90, dim=24, seed=1, prefix="n"), label=label_of([f"n{i}" for i in range(90)]))
    asked = torch.nn.functional.normalize(torch.randn(40, 24, generator=torch.Generator().manual_seed(0)), dim=1)
    for change in (lambda: None, lambda: index.delete(["s3", "s200", "n5"]), index.compact):
        change()
        for where in ({}, {"label": "a"}):
            for want, k in (("image", 5), ("sound", 1), ("name", 1000)):
                together = index.search(asked, want, k, where)
                for start in range(0, len(asked), queries):
                    some = index.search(asked[start : start + queries], want, k, where)
                    part = slice(start, start + queries)
                    assert some.ids == together.ids[part] and some.scores == together.scores[part]
                    assert some.rows == together.rows[part]


def test_products_are_products():
    z, q = torch.randn(700, 33), torch.randn(9, 33)
    for count in (1, 3, 4, 9):
        for vectors in (z, z[::2], z.T.contiguous().T):
            found = topk.products(q[:count], vectors)
            assert torch.allclose(found.double(), q[:count].double() @ vectors.double().T, atol=1e-5)


def test_a_snapshot_remembers_what_is_searched_and_a_write_begins_anew(tmp_path):
    index = made(tmp_path / "i", some_embeddings(50))
    index.search(torch.ones(6), "image")
    before = index._engine.now
    kept = before._searched[(0, "image")]
    index.search(torch.ones(6), "image", where={"label": "a"})
    assert before._searched[(0, "image")] is kept
    index.delete([index.search(torch.ones(6), "image").ids[0][0]])
    assert index._engine.now is not before and not index._engine.now._searched
