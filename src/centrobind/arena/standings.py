"""From rows to claims: means over seeds, paired bootstrap over test samples and seeds, ranks, Holm's correction.

Nothing here trains: any table can be made again from rows.jsonl and outcomes/.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from centrobind.arena.contenders import Contender
from centrobind.arena.schedule import Row

Table = Mapping[str, Mapping[Contender, np.ndarray]]  # measure -> contender -> (1 + B,) values

MEASURES = ("mean/recall@1", "worst/recall@1", "mean/recall@10", "worst/recall@10", "probe/all", "transfer/mean")
RESAMPLES = 2000


@dataclass(frozen=True)
class Outcomes:
    """What every test sample came to, for one contender on one data set: (seeds, pairs, samples), NaN = not asked."""

    ranks: np.ndarray  # (S, P, N) rank of the right match
    transfer: np.ndarray  # (S, P, N) 1 = right
    probe: np.ndarray  # (S, N) 1 = right
    units: np.ndarray | None = None  # (N,) samples of one unit are drawn together; None: each alone

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Outcomes:
        seeds = [dict(np.load(path, allow_pickle=False)) for path in paths]
        pairs = [name.removesuffix("/rank") for name in seeds[0] if name.endswith("/rank")]
        ranks = np.stack([[one[f"{pair}/rank"] for pair in pairs] for one in seeds])
        ranks = np.where(np.isfinite(ranks), ranks, np.nan)
        empty = np.full(ranks.shape[-1], np.nan)
        transfer = np.stack([[one.get(f"transfer/{pair}", empty) for pair in pairs] for one in seeds])
        probe = np.stack([one.get("probe/all", empty) for one in seeds])
        return cls(ranks, transfer, probe, seeds[0].get("units"))

    def measure(self, name: str, samples: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """(B,) values of a measure under (B, N) sample weights and (B, S) seed weights."""
        if name == "probe/all":
            by_seed = _weighted(self.probe, samples)  # (B, S)
        elif name == "transfer/mean":
            by_seed = np.nanmean(_weighted(self.transfer, samples), axis=2)
        else:
            over, k = name.split("/recall@")
            hits = np.where(np.isnan(self.ranks), np.nan, self.ranks <= int(k))
            by_pair = _weighted(hits, samples)  # (B, S, P)
            by_seed = np.nanmean(by_pair, axis=2) if over == "mean" else np.nanmin(by_pair, axis=2)
        values: np.ndarray = (by_seed * seeds).sum(1) / seeds.sum(1)
        return values


def _weighted(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means over the last axis of (..., N) values under (B, N) weights, NaNs left out: (B, ...)."""
    asked = np.isfinite(values)
    flat = np.where(asked, values, 0).reshape(-1, values.shape[-1])
    share = weights @ asked.reshape(flat.shape).T.astype(float)
    total = weights @ flat.T
    means = np.divide(total, share, out=np.full_like(total, np.nan), where=share > 0)
    shaped: np.ndarray = means.reshape(len(weights), *values.shape[:-1])
    return shaped


@dataclass(frozen=True)
class Draws:
    """The same resamples for everybody: paired comparisons on one data set."""

    samples: np.ndarray  # (1 + B, N); the first row is the data as it is
    seeds: np.ndarray  # (1 + B, S)

    @classmethod
    def of(
        cls, samples: int, seeds: int, resamples: int = RESAMPLES, seed: int = 0, units: np.ndarray | None = None
    ) -> Draws:
        """`units` (N,), from 0: samples of one unit, such as captions of one picture, are drawn together."""
        draw = np.random.default_rng(seed)
        units = np.arange(samples) if units is None else units
        rows = [
            np.concatenate([np.ones((1, n)), draw.multinomial(n, np.full(n, 1 / n), size=resamples)])
            for n in (int(units.max()) + 1, seeds)
        ]
        return cls(rows[0][:, units], rows[1])


def final_rows(rows: Iterable[Row], dataset: str) -> dict[Contender, list[Row]]:
    """By contender, the final rows that did not fail, by seed."""
    found: dict[Contender, list[Row]] = {}
    for row in rows:
        trial = row["trial"]
        if trial["stage"] == "final" and trial["dataset"] == dataset and "test" in row:
            found.setdefault(Contender.of(trial["objective"]), []).append(row)
    return {one: sorted(some, key=lambda row: row["trial"]["seed"]) for one, some in found.items()}


def interval_over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % t-interval; a single seed has no interval but itself."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, mean, mean
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def with_hindsight(table: Mapping[Contender, np.ndarray]) -> dict[Contender, np.ndarray]:
    """Add, for each kind of fixed anchor, the one that came out best on test: a choice nobody could have made.

    `table` holds (1 + B,) values per contender; the anchor is chosen by the first, on the data as it is.
    """
    more = dict(table)
    kinds: dict[Contender, list[Contender]] = {}
    for one in table:
        if one.kind == "fixed":
            kinds.setdefault(replace(one, anchor=None), []).append(one)
    for hindsight, anchors in kinds.items():
        more[hindsight] = table[max(anchors, key=lambda one: table[one][0])]
    return more


def measure_all(
    rows: Iterable[Row], out: Path, dataset: str, measures: Sequence[str] = MEASURES, resamples: int = RESAMPLES
) -> dict[str, dict[Contender, np.ndarray]]:
    """measure -> contender -> (1 + B,) values, hindsight included; paired, because all share the draws."""
    found = final_rows(rows, dataset)
    table: dict[str, dict[Contender, np.ndarray]] = {name: {} for name in measures}
    for contender, some in found.items():
        outcomes = Outcomes.read([out / "outcomes" / f"{row['key']}.npz" for row in some])
        draws = Draws.of(outcomes.ranks.shape[-1], len(some), resamples, units=outcomes.units)
        for name in measures:
            values = outcomes.measure(name, draws.samples, draws.seeds)
            if np.isfinite(values[0]):
                table[name][contender] = values
    return {name: with_hindsight(values) for name, values in table.items() if values}


def difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Ours minus theirs: estimate, 95 % interval and two-sided p, from paired (1 + B,) values."""
    point, drawn = ours[0] - theirs[0], ours[1:] - theirs[1:]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (tail + 1) / (len(drawn) + 1))
    return {"difference": float(point), "low": float(low), "high": float(high), "p": float(p)}


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values, in the order given."""
    order = np.argsort(ps)
    adjusted = np.empty(len(ps))
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - place) * ps[index]))
        adjusted[index] = highest
    return adjusted.tolist()


def duels(tables: Mapping[str, Table], ours: Contender, measures: Sequence[str] = MEASURES) -> list[dict[str, Any]]:
    """Ours against every rival, by measure: the difference on each data set, and wins, ties and losses after Holm.

    `tables` has the draws of each data set. The correction is over the data sets of one duel. A single fixed anchor
    is no rival, because other data have other modalities; the best one in hindsight is.
    """
    found = []
    rivals = dict.fromkeys(one for table in tables.values() for one in table["mean/recall@1"] if one != ours)
    for name in measures:
        for rival in rivals:
            single = {
                data: difference(table[name][ours], table[name][rival])
                for data, table in tables.items()
                if name in table and ours in table[name] and rival in table[name]
            }
            if not single or not comparable(rival):
                continue
            for one, p in zip(single.values(), holm([one["p"] for one in single.values()])):
                one["p_holm"] = p
            sure = [one["difference"] for one in single.values() if one["p_holm"] < 0.05]
            wins, losses = sum(d > 0 for d in sure), sum(d < 0 for d in sure)
            found.append(
                {
                    "measure": name,
                    "ours": ours.label,
                    "rival": rival.label,
                    "by_data": single,
                    "wins": wins,
                    "ties": len(single) - wins - losses,
                    "losses": losses,
                }
            )
    return found


def comparable(contender: Contender) -> bool:
    """Whether it is the same on data sets with other modalities."""
    return contender.kind != "fixed" or contender.hindsight


def average_ranks(tables: Mapping[str, Table], name: str, contenders: Sequence[Contender]) -> dict[Contender, float]:
    """Mean rank over the data sets in which all of these took part, 1 = best, ties share."""
    ranks = []
    for table in tables.values():
        values = table.get(name, {})
        if all(one in values for one in contenders):
            ranks.append(stats.rankdata([-values[one][0] for one in contenders]))
    return dict(zip(contenders, np.mean(ranks, axis=0).tolist())) if ranks else {}


def critical_difference(contenders: int, datasets: int) -> float:
    """Nemenyi's: average ranks further apart than this differ at 5 % (Demsar 2006)."""
    q = stats.studentized_range.ppf(0.95, contenders, math.inf) / math.sqrt(2)
    return float(q * math.sqrt(contenders * (contenders + 1) / (6 * datasets)))
