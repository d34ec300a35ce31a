import numpy as np

from centrobind.data import Samples, inspect_samples


def finding(samples, *words):
    found = inspect_samples(samples).findings
    assert any(all(word in line for word in words) for line in found), found


def noise(count=100, width=4, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width))


def test_clean_data_has_counts_and_no_findings():
    split = ["train"] * 60 + ["test"] * 40
    samples = Samples.of({"a": noise(), "b": noise(seed=1)}, label=np.arange(100) % 2, split=split)
    found = inspect_samples(samples)
    assert found.findings == []
    assert found.samples == 100 and found.labels == {"0": 50, "1": 50} and found.splits == {"train": 60, "test": 40}
    assert found.together == {"a + b": 100}
    assert found.modalities["a"] == {
        "kind": "vector",
        "shape": [4],
        "dtype": "float32",
        "present": 100,
        "missing": 0.0,
    }


def test_gaps():
    present = {"a": np.arange(100) < 50, "b": np.arange(100) >= 50, "c": np.arange(100) < 90}
    samples = Samples.of({name: noise(seed=i) for i, name in enumerate("abc")}, present=present)
    finding(samples, "no sample has a + b", "third")
    finding(samples, "10 samples have fewer than two")
    finding(Samples.of({"a": noise()}), "only one modality")
    finding(Samples.of({"a": noise(), "b": noise()}, present={"b": np.zeros(100, bool)}), "b is missing everywhere")
    assert inspect_samples(samples).modalities["c"]["missing"] == 0.1


def test_values():
    constant, far, twice = noise(), noise(seed=1), noise(seed=2)
    constant[:, 1] = 7
    far[3, 2] = 1e6
    twice[50:] = twice[:50]
    finding(Samples.of({"a": constant}), "1 of 4 features are constant")
    finding(Samples.of({"a": np.concatenate([noise(5000), far])}), "1 samples hold a number more than 30")
    tesla = Samples.of({"a": 1e-13 * noise(), "b": 4.5e6 + noise(), "c": (1.7e9 + 1e3 * noise()).astype(np.float32)})
    said = inspect_samples(tesla).findings
    assert len(said) == 2 and said[0].startswith("c: 4 features move by less than 100 steps of float32"), said
    finding(Samples.of({"a": twice}), "50 of 100 values repeat")
    finding(Samples.of({"a": ["x", "  ", "y"]}), "1 texts are blank")
    finding(Samples.of({"a": ["x " * 64, "x " * 65, "y"]}), "1 of 3 texts have more than 64 words")


def test_splits():
    a = noise()
    a[90:] = a[:10]
    split = ["train"] * 80 + ["test"] * 20
    finding(Samples.of({"a": a}, split=split), "a: 10 test values are in train as well")
    other = ["Training"] * 80 + ["dev"] * 5 + ["Test"] * 10 + ["holdout"] * 5
    finding(Samples.of({"a": a}, split=other), "a: 5 test values are in train as well")
    finding(Samples.of({"a": a}, split=other), "splits ['holdout'] are used by no command")
    finding(Samples.of({"a": noise()}), "no splits are given")
    finding(Samples.of({"a": noise()}, split=["train"] * 100), "split test is empty")
    finding(Samples.of({"a": noise()}, split=split, group=np.arange(100) // 30), "1 groups have samples in more than")


def test_labels():
    finding(Samples.of({"a": noise()}, label=[0] * 95 + [1] * 5), "one label makes up 95%")
    finding(Samples.of({"a": noise()}, label=[0] * 70 + [1] * 20 + [2] * 10), "2 of 3 labels have fewer than 30", "10")
    finding(Samples.of({"a": noise()}, label=[None] * 4 + [0, 1] * 48), "4 samples have no label")
