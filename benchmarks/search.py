"""Is a query of two modalities better than of either? And what does --not do? On the demo's binder, with its index.

    centrobind demo && python benchmarks/search.py          writes benchmarks/results/search.json

Two for one: every test character is looked for by two of its modalities in the third, among the test characters, and by
each of the two alone: recall@1, recall@10 and the mean reciprocal rank, with 95 % intervals of the differences, paired
over characters. Two are put together with the weights that the index takes from the validation split, and, for
comparison, with equal ones. Not: a character's picture is looked for by its name, without one of the words in
it, for every word that at least 50 names have: how many of the ten hits are named with that word, before and after.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import centrobind as cb
from centrobind.binder.inputs import split_words
from centrobind.data import open_store
from centrobind.evaluation.metrics import ranks
from centrobind.index.asking import combined

RESULTS = Path(__file__).parent / "results" / "search.json"
LEAST_NAMES, MOST_QUERIES, RESAMPLES = 50, 20, 2000


def scores(ranks: np.ndarray) -> dict[str, float]:
    """What is quoted, of ranks."""
    return {
        "recall@1": round(float((ranks == 1).mean()), 4),
        "recall@10": round(float((ranks <= 10).mean()), 4),
        "mrr": round(float((1 / ranks).mean()), 4),
    }


def difference(both: np.ndarray, one: np.ndarray, draw: np.random.Generator) -> dict[str, Any]:
    """By how much two modalities are better than one: paired bootstrap over characters."""
    found = {}
    for name, value in (("recall@1", lambda r: r == 1), ("mrr", lambda r: 1 / r)):
        gain = value(both).astype(float) - value(one).astype(float)
        means = [gain[draw.integers(0, len(gain), len(gain))].mean() for _ in range(RESAMPLES)]
        low, high = np.quantile(means, [0.025, 0.975])
        found[name] = {"difference": round(gain.mean(), 4), "low": round(low, 4), "high": round(high, 4)}
    return found


def two_for_one(index: cb.index.Index, test: list[str]) -> list[dict[str, Any]]:
    draw, emb, match = np.random.default_rng(0), index.embeddings(test), torch.arange(len(test))
    rows = []
    for want in index.modalities:
        a, b = (name for name in index.modalities if name != want)
        weights = index.weights(want)
        asked = {
            a: emb[a],
            b: emb[b],
            "centroid": torch.stack([combined([(a, x[None]), (b, y[None])]) for x, y in zip(emb[a], emb[b])]),
            "both": torch.stack([combined([(a, x[None]), (b, y[None])], (), weights) for x, y in zip(emb[a], emb[b])]),
        }
        found = {name: ranks(queries, emb[want], match).numpy() for name, queries in asked.items()}
        rows.append(
            {
                "want": want,
                "given": [a, b],
                "weights": {name: round(weights[name], 3) for name in (a, b)},
                "alone": {name: scores(found[name]) for name in (a, b)},
                "centroid": scores(found["centroid"]),
                "both": scores(found["both"]),
                "gain": {name: difference(found["both"], found[name], draw) for name in (a, b)},
            }
        )
    return rows


def negation(binder: cb.Binder, index: cb.index.Index, names: dict[str, str]) -> list[dict[str, Any]]:
    words = {one: split_words(name) for one, name in names.items()}
    common = sorted(word for word in {*itertools.chain(*words.values())} if word.isalpha())
    rows = []
    for word in common:
        having = [one for one in names if word in words[one] and len(words[one]) > 1]
        if len(having) < LEAST_NAMES:
            continue
        shares = []
        for one in having[:: -(-len(having) // MOST_QUERIES)]:
            asked = {"name": names[one]}
            each = []
            for minus in ({}, {"name": word}):
                hits = index.search(cb.query(binder, asked, minus=minus), "image", 10).ids[0]
                each.append(np.mean([word in words[hit] for hit in hits]))
            shares.append(each)
        before, after = np.mean(shares, axis=0)
        rows.append({"word": word, "queries": len(shares), "before": round(before, 3), "after": round(after, 3)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--store", help="default: glyphs")
    parser.add_argument("--only", choices=("two_for_one", "not"), help="keep the other as the results have it")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    binder = cb.load(options.run)
    samples = cb.glyphs() if options.store is None else open_store(options.store)
    with tempfile.TemporaryDirectory() as name:
        index = cb.build_index(binder, samples, Path(name) / "index")
        test = samples.part("test").ids[:]
        names = dict(zip(samples.ids[:], samples.columns["name"].take(np.arange(len(samples)))))
        found = json.loads(options.out.read_text()) if options.only else {}
        assert found.get("binder", binder.fingerprint) == binder.fingerprint, "the rest is of another binder"
        found |= {"binder": binder.fingerprint, "test": len(test)}
        if options.only != "not":
            found["two_for_one"] = two_for_one(index, test)
        if options.only != "two_for_one":
            found["not"] = negation(binder, index, names)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
