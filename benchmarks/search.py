"""Is a query of two modalities better than of either? And what does --not do? On the demo's binder, with its index.

    centrobind demo && python benchmarks/search.py          writes benchmarks/results/search.json

Two for one: every test character is looked for by the centroid of two of its modalities in the third, among the test
characters, and by each of the two alone: recall@1, recall@10 and the mean reciprocal rank, with 95 % intervals of the
differences, paired over characters. Not: a character's picture is looked for by its name, without one of the words in
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
from centrobind.data import open_store
from centrobind.index.asking import combined
from centrobind.inputs import split_words

RESULTS = Path(__file__).parent / "results" / "search.json"
LEAST_NAMES, MOST_QUERIES, RESAMPLES = 50, 20, 2000


def places(index: cb.Index, queries: torch.Tensor, want: str, ids: list[str], where: dict[str, str]) -> np.ndarray:
    """The rank, from 1, at which each query finds the sample it was made of."""
    found = index.search(queries, want, len(ids), where).ids
    return np.array([hits.index(one) + 1 for hits, one in zip(found, ids)])


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


def two_for_one(index: cb.Index, test: list[str]) -> list[dict[str, Any]]:
    draw, where = np.random.default_rng(0), {"split": "test"}
    rows = []
    for want in index.modalities:
        a, b = (name for name in index.modalities if name != want)
        alone = {name: index.vectors(name, test) for name in (a, b)}
        both = torch.stack([combined(torch.stack(pair)) for pair in zip(alone[a], alone[b])])
        ranks = {name: places(index, alone[name], want, test, where) for name in (a, b)}
        ranks["both"] = places(index, both, want, test, where)
        rows.append(
            {
                "want": want,
                "given": [a, b],
                "alone": {name: scores(ranks[name]) for name in (a, b)},
                "both": scores(ranks["both"]),
                "gain": {name: difference(ranks["both"], ranks[name], draw) for name in (a, b)},
            }
        )
    return rows


def negation(binder: cb.Binder, index: cb.Index, names: dict[str, str]) -> list[dict[str, Any]]:
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
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    binder = cb.load(options.run)
    samples = cb.glyphs() if options.store is None else open_store(options.store)
    with tempfile.TemporaryDirectory() as name:
        index = cb.build_index(binder, samples, Path(name) / "index")
        test = samples.part("test").ids[:]
        names = dict(zip(samples.ids[:], samples.columns["name"].take(np.arange(len(samples)))))
        found = {
            "binder": binder.fingerprint,
            "test": len(test),
            "two_for_one": two_for_one(index, test),
            "not": negation(binder, index, names),
        }
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
