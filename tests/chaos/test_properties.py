"""Whatever text, numbers and orders there are: what goes in comes out, or one of our own errors does."""

import json
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from centrobind.data import Sampler, Samples, open_store, read_chunks, write_store
from centrobind.data.store import read_in_chunks
from centrobind.errors import CentrobindError, ConfigError, DataError
from centrobind.training.config import load_config

QUICK = dict(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True)
TEXTS = st.text(max_size=12)  # surrogates are left out by default: a CSV cannot hold one, but see below


def numbers(count):
    shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(lambda rest: (count, *rest))
    finite = {"allow_nan": False, "allow_infinity": False}
    return st.one_of(
        shapes.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=st.floats(width=32, **finite))),
        shapes.flatmap(lambda shape: arrays.arrays(np.float16, shape, elements=st.floats(width=16, **finite))),
        shapes.flatmap(lambda shape: arrays.arrays(np.uint8, shape)),
        st.lists(st.text(max_size=9), min_size=count, max_size=count),
    )


IDS = st.text(min_size=1, max_size=9).filter(lambda text: text.strip() == text)  # an empty one is no id


@st.composite
def any_samples(draw):
    count = draw(st.integers(1, 9))
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique_by=str.lower))
    values = {name: draw(numbers(count)) for name in names}
    gaps = arrays.arrays(bool, count)
    about = st.none() | st.lists(st.none() | st.text(max_size=4), min_size=count, max_size=count)
    return Samples.of(
        values,
        present={name: draw(gaps) for name in names if draw(st.booleans())},
        ids=draw(st.lists(IDS, min_size=count, max_size=count, unique=True)),
        label=draw(about),
        group=draw(about),
    )


@settings(max_examples=40, **QUICK)
@given(any_samples(), st.integers(1, 10))
def test_a_store_gives_back_what_was_put_in(samples, size):
    with tempfile.TemporaryDirectory() as folder:
        opened = open_store(write_store(Path(folder) / "s", read_in_chunks(samples, size)), verify=True)
        assert opened.modalities == samples.modalities and opened.ids[:] == samples.ids[:]
        assert np.array_equal(opened.present, samples.present)
        for name, column in samples.columns.items():
            before, after = column.take(np.arange(len(samples))), opened.columns[name].take(np.arange(len(samples)))
            assert len(before) == len(after) and opened.columns[name].kind == column.kind
            if len(before):
                same = before == after if isinstance(before, list) else before.tobytes() == after.tobytes()
                assert same and getattr(before, "dtype", None) == getattr(after, "dtype", None)
        for what in ("label", "group"):
            one, other = getattr(samples, what), getattr(opened, what)
            assert (one is None) == (other is None)
            if one is not None:
                assert [(*one.names, None)[c] for c in one.codes] == [(*other.names, None)[c] for c in other.codes]


@settings(max_examples=150, **QUICK)
@given(st.data(), st.integers(2, 60), st.integers(0, 2**31), st.integers(0, 40))
def test_a_sampler_hands_out_every_sample_once_an_epoch_wherever_it_is_stopped(data, count, seed, stop):
    size = data.draw(st.integers(2, count))
    sampler = Sampler(count, size, seed)
    total = stop + 2 * sampler.batches_per_epoch
    first = list(islice(sampler, stop))
    resumed = Sampler(count, size)
    resumed.load_state(json.loads(json.dumps(sampler.state())))
    batches = first + list(islice(resumed, total - stop))
    assert all(np.array_equal(one, other) for one, other in zip(batches, Sampler(count, size, seed)))
    for epoch in range(total // sampler.batches_per_epoch):
        of_epoch = batches[epoch * sampler.batches_per_epoch : (epoch + 1) * sampler.batches_per_epoch]
        assert sorted(np.concatenate(of_epoch)) == list(range(count))
        assert max(map(len, of_epoch)) <= size


KEYS = "data out seed dim modalities objective train init name steps lr temperature anchor batch_size encoder x".split()
JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


def outcome(text, *overrides):
    """A config or our own error; anything else fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run.yaml").write_bytes(text)
        try:
            return load_config(Path(folder) / "run.yaml", overrides)
        except ConfigError as error:
            return str(error)


@settings(max_examples=150, **QUICK)
@given(st.binary(max_size=60) | st.text(alphabet="{}[]:,-&*!?|>'\"#%@` \n\tab1.~<=", max_size=60).map(str.encode))
def test_any_bytes_are_a_config_or_our_own_error(text):
    assert outcome(text)


@settings(max_examples=150, **QUICK)
@given(st.dictionaries(st.sampled_from(KEYS), JSONISH, max_size=7), st.text(max_size=12))
def test_any_tree_is_a_config_or_our_own_error(tree, override):
    good = {"data": "d", "out": "o", "objective": {"name": "centrobind"}}
    assert outcome(yaml.safe_dump(good | tree).encode(), override)
    assert outcome(yaml.safe_dump(tree).encode(), f"train.{override}", f"a.b={override}")


def imported(name, content):
    """Samples or our own error; anything else fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        try:
            return open_store(write_store(Path(folder) / "s", read_chunks(Path(folder) / name)), verify=True)
        except CentrobindError as error:
            assert str(error)
            return error


@settings(max_examples=150, **QUICK)
@given(st.binary(max_size=80) | st.text(alphabet='",\n\r[]1.e-a;{}:\0 N', max_size=80).map(str.encode))
def test_any_bytes_are_a_manifest_or_our_own_error(content):
    for name in ("m.csv", "m.jsonl"):
        imported(name, content)
    assert isinstance(imported("m.npz", content), DataError)


COLUMNS = st.sampled_from(["id", "label", "split", "group", "a", "b", "../c", ""]) | st.text(max_size=3)


@settings(max_examples=150, **QUICK)
@given(
    st.lists(
        st.dictionaries(COLUMNS, JSONISH.filter(lambda value: not isinstance(value, bytes)), max_size=5), max_size=6
    )
)
def test_any_rows_are_a_manifest_or_our_own_error(rows):
    imported("m.jsonl", "\n".join(json.dumps(row, default=str) for row in rows).encode())


@settings(max_examples=40, **QUICK)
@given(
    st.lists(
        st.fixed_dictionaries({"v": st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=2), "t": TEXTS}),
        min_size=1,
        max_size=5,
    )
)
def test_a_sound_manifest_is_read_in_full(rows):
    opened = imported("m.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert opened.columns["v"].take(np.arange(len(rows))).tolist() == [row["v"] for row in rows]
    texts = [row["t"] for row in rows if row["t"]]
    if not texts:
        assert "t" not in opened.columns
    elif texts[0].lstrip()[:1] != "[" and not texts[0].endswith(".npy"):
        assert opened.columns["t"].present.tolist() == [row["t"] != "" for row in rows]
