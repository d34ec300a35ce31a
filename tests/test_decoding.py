"""One table of files: import, search --file and the page take the same, and a query is decoded as training was."""

import re
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import centrobind as cb
from centrobind.binder.binder import build_binder
from centrobind.data import decoding, read_chunks
from centrobind.data.decoding import DECODERS, ENDINGS, decode_as, endings, ways
from centrobind.data.samples import KINDS
from centrobind.errors import DataError
from centrobind.index.asking import Question
from centrobind.serve.values import from_upload

READINGS = {"photo": "image:8x8x3", "clip": "sound:20x16", "call": "wave:2000", "walk": "series:6"}


def tone(path, hertz, rate=16_000):
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((9000 * np.sin(np.arange(4000) * hertz * 2 * np.pi / rate)).astype("<i2").tobytes())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A binder of five modalities that came from files, a wave among them, its index, and the files."""
    pytest.importorskip("soundfile", reason="sound files are read where soundfile is installed")
    folder = tmp_path_factory.mktemp("decoding")
    draw = np.random.default_rng(0)
    rows = ["photo,clip,call,walk,note,extra"]
    for i in range(8):
        Image.fromarray(draw.integers(0, 256, (9, 12, 3), np.uint8)).save(folder / f"{i}.png")
        tone(folder / f"{i}.wav", 200 + 100 * i)
        np.savetxt(folder / f"{i}.tsv", draw.normal(size=(7, 2)), delimiter="\t")
        (folder / f"{i}.txt").write_text(f"thing {i}")
        np.save(folder / f"{i}.npy", draw.normal(size=5))
        rows.append(f"{i}.png,{i}.wav,{i}.wav,{i}.tsv,{i}.txt,{i}.npy")
    (folder / "set.csv").write_text("\n".join(rows))
    samples = cb.open_store(cb.write_store(folder / "store", read_chunks(folder / "set.csv", readings=READINGS)))
    cb.save(build_binder(samples, dim=8), folder / "binder")
    binder = cb.load(folder / "binder")
    return folder, samples, binder, cb.build_index(binder, samples, folder / "index")


@pytest.mark.parametrize("name", ["photo", "clip", "call", "walk", "note", "extra"])
def test_a_file_of_the_training_set_is_the_same_query_everywhere(world, name):
    """The literal twin is the sample's own embedding: import, command line and page decode its file alike."""
    folder, samples, binder, index = world
    file = folder / f"3.{dict(photo='png', clip='wav', call='wav', walk='tsv', note='txt', extra='npy')[name]}"
    question = Question(binder, index)
    question.add("file", f"{name}={file}")
    (_, vector), *_ = question.rows[True]
    np.testing.assert_allclose(vector[0], index.vectors(name, ["3"])[0], atol=1e-5)
    stored = samples.columns[name].take(np.array([3]))[0]
    uploaded = from_upload(file.read_bytes(), samples.columns[name])
    assert np.allclose(uploaded, stored, rtol=1e-6) if name != "note" else uploaded == stored


def test_the_modality_follows_from_the_ending_or_has_to_be_said(world):
    folder, _, binder, index = world
    for ending, name in (("png", "photo"), ("tsv", "walk"), ("txt", "note"), ("npy", "extra")):
        question = Question(binder, index)
        question.add("file", str(folder / f"0.{ending}"))
        assert [name for name, _ in question.rows[True]] == [name]
    with pytest.raises(DataError, match=r"could be any of \['call', 'clip'\]; say which: call="):
        Question(binder, index).add("file", str(folder / "0.wav"))
    with pytest.raises(DataError, match=r"expected a file ending with one of \.csv \.tsv \.npy"):
        Question(binder, index).add("file", f"walk={folder / '0.png'}")


def test_a_modality_of_arrays_takes_no_sound_for_its_numbers():
    """Its numbers may be anything: a log-mel of the same shape would be an answer to another question."""
    assert ways("sequence") == ("series", "array") and ways("vector") == ("array",)
    with pytest.raises(DataError, match=r"\.csv \.tsv \.npy"):
        decode_as("sequence", (20, 16), "", b"RIFF", ending=".wav")
    assert ways("vector", "image:8x8x3 | hf:./vit") == ("array",)
    with pytest.raises(DataError, match=r"expected numbers of shape \[3\], got float64 of \[4\]"):
        decode_as("vector", (3,), "", _npy(np.ones(4)))


def _npy(array) -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_every_ending_is_read_by_import_search_and_page():
    """Nothing that import reads is refused by a search in the modality that it becomes, and the reverse."""
    becomes = {"image": "image", "sound": "sequence", "wave": "vector", "series": "sequence", "text": "text"}
    for ending, how in ENDINGS.items():
        if how != "array":
            assert ending in endings(becomes[how], f"{how}:5"), ending
    for kind in KINDS:
        assert set(endings(kind)) <= set(ENDINGS)
    assert {ending for decoder in DECODERS.values() for ending in decoder.endings} == set(ENDINGS)


def test_no_other_table_of_endings_is_kept():
    """A file ending in quotes stands in decoding.py only, and where what a user hands in is refused by its looks."""
    source = Path(decoding.__file__).parents[1]
    for path in [*source.rglob("*.py"), *source.rglob("*.js")]:
        if path.parent.name != "report" and path.name not in ("decoding.py", "arrays.py"):
            found = re.findall(r"""["'|(]\.?(?:png|jpe?g|webp|wav|flac|ogg|mp3|tsv|tiff?)["'|)]""", path.read_text())
            assert set(found) <= {'".png"', '"png"'} and len(found) <= 2, (path, found)


def test_a_binder_keeps_how_its_files_were_read(world):
    _, _, binder, _ = world
    assert binder.readings == {**READINGS, "note": "text", "extra": "array"}
    plain = build_binder(cb.Samples.of({"a": np.eye(4), "b": np.eye(4)}), dim=2)
    assert plain.readings == {} and "readings" not in plain.describe()  # fingerprints of older binders stay
