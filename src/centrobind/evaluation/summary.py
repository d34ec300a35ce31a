"""All scores of an evaluation in one object: typed keys, a table of at most 100 columns, JSON, HTML for notebooks."""

from __future__ import annotations

from collections.abc import ItemsView, KeysView, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from textwrap import fill
from typing import overload

from centrobind.columns import aligned, shortened
from centrobind.evaluation.scores import (
    Accuracy,
    Direction,
    Directions,
    Geometry,
    Retrieval,
    joined,
    parted,
    unquoted,
)

COLUMNS = 100
SHORTEST = 15  # characters left for a direction


@dataclass(frozen=True, repr=False)
class Scores(Directions[Retrieval]):
    """The scores of an evaluation.

    scores["image", "text"].recall[1] (image asks, text is looked for), scores.mean.mrr, scores.worst.recall[10],
    scores.probe["image"], scores.probe["all"], scores.transfer["image", "text"], scores.geometry.gap["image", "text"];
    the last three are None where they were not measured.
    """

    samples: int = 0
    geometry: Geometry | None = None
    probe: Accuracy | None = None  # logistic regression
    knn: Accuracy | None = None  # 10 nearest neighbours
    transfer: Mapping[Direction, float] | None = None  # the regression trained on the first, tested on the second

    @overload
    def __getitem__(self, direction: Direction) -> Retrieval: ...

    @overload
    def __getitem__(self, direction: str) -> float: ...

    def __getitem__(self, direction: Direction | str) -> Retrieval | float:
        """Of a direction, or a number by its string in `to_dict`: scores["mean/recall@1"]. DataError for neither."""
        if isinstance(direction, str) and direction in self._flat:
            return self._flat[direction]
        return super().__getitem__(direction)  # type: ignore[index]  # a string that is no key: says which there are

    def __contains__(self, key: object) -> bool:
        return key in self.pairs or key in self._flat

    def keys(self) -> KeysView[str]:
        """The strings of `to_dict`."""
        return self._flat.keys()

    def items(self) -> ItemsView[str, float]:
        """Every number with its string, as in `to_dict`."""
        return self._flat.items()

    @cached_property
    def _flat(self) -> dict[str, float]:
        return self.to_dict()

    def to_dict(self) -> dict[str, float]:
        """Flat and plain, for JSON: {"image_to_text/recall@1": .41, "mean/mrr": .5, "probe/all": .8, ...}.

        A name is in quotes where it could be taken for something else: '"all"_to_text/mrr'. `of_dict` reads it.
        """
        named = {
            f"{joined(*pair)}/{name}": value for pair, row in self.pairs.items() for name, value in row.flat().items()
        }
        named |= {f"mean/{name}": value for name, value in self.mean.flat().items()}
        named |= {f"worst/{name}": value for name, value in self.worst.flat().items()}
        named |= {} if self.geometry is None else self.geometry.flat()
        named |= {} if self.probe is None else self.probe.flat("probe")
        named |= {} if self.knn is None else self.knn.flat("knn")
        return named | {f"transfer/{joined(*pair)}": value for pair, value in (self.transfer or {}).items()}

    @classmethod
    def of_dict(cls, named: Mapping[str, float], samples: int = 0) -> Scores:
        """The scores in a dict that `to_dict` made, geometry left out; those of older versions too."""
        rows: dict[Direction | str, dict[str, float]] = {}
        accuracy: dict[str, dict[str, float]] = {"probe": {}, "knn": {}}
        transfer: dict[Direction, float] = {}
        for key, value in named.items():
            kind, _, rest = key.partition("/")
            if kind in accuracy:
                accuracy[kind][rest] = value
            elif kind == "transfer":
                if pair := parted(rest):
                    transfer[pair[:2]] = value
            elif kind in ("mean", "worst"):
                rows.setdefault(kind, {})[rest] = value
            elif pair := parted(key):
                rows.setdefault(pair[:2], {})[pair[2]] = value
        found = {key: Retrieval.of_flat(row) for key, row in rows.items() if "mrr" in row}
        probe, knn = (_accuracy(values) for values in accuracy.values())
        pairs = {key: row for key, row in found.items() if isinstance(key, tuple)}
        return cls(pairs, found["mean"], found["worst"], samples, None, probe, knn, transfer or None)

    def table(self) -> str:
        """Everything on at most 100 columns, with units and chance levels, for a terminal."""
        head, body = self._cells()
        width = COLUMNS - sum(2 + max(map(len, column)) for column in list(zip(head, *body))[1:])
        body = [[_shortened(row[0], max(width, SHORTEST)), *row[1:]] for row in body]
        lines = [line.rstrip() for line in aligned([head, *body]).split("\n")]
        notes = [fill(note, COLUMNS, subsequent_indent="  ") for note in self._notes()]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], "", *notes])

    def __repr__(self) -> str:
        chance = f" (chance {100 * self.mean.chance[1]:.1f})" if 1 in self.mean.chance else ""
        worst = min(self.pairs, key=lambda pair: self.pairs[pair].recall[1])
        ends = f"worst {100 * self.worst.recall[1]:.1f} % ({' → '.join(worst)})"
        mean = f"mean R@1 {100 * self.mean.recall[1]:.1f} %{chance}"
        return f"Scores({self.samples} samples, {len(self)} directions: {mean}, {ends})"

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        """For a notebook."""
        head, body = self._cells()

        def line(kind: str, first: str, rest: Sequence[str]) -> str:
            cells = "".join(f"<{kind}>{escape(text)}</{kind}>" for text in rest)
            return f"<tr><th style='text-align:left'>{escape(first)}</th>{cells}</tr>"

        rows = "".join(line("td", row[0], row[1:]) for row in body)
        notes = "".join(f"<p>{escape(note)}</p>" for note in self._notes())
        return f"<table><thead>{line('th', head[0], head[1:])}</thead><tbody>{rows}</tbody></table>{notes}"

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        rows = {f"mean of {len(self)}": self.mean, "worst of each": self.worst}
        rows |= {f"{a} → {b}": row for (a, b), row in self.pairs.items()}
        intervals, precise = bool(self.mean.interval), self.mean.map is not None
        head = ["", "R@1 %", *(["95 %"] if intervals else []), "chance", "R@10 %", "chance", "MRR"]
        head += [*(["mAP"] if precise else []), "median", "among"]
        return head, [[title, *_numbers(row, intervals, precise)] for title, row in rows.items()]

    def _notes(self) -> list[str]:
        """What the columns mean, and what does not fit into them."""
        several = [row.right for row in self.pairs.values() if row.right is not None and row.right > 1]
        right = f", of {max(several):.1f} right ones on average where there are most" if several else ""
        notes = [
            f"{self.samples} samples. R@k: right answer among the first k; chance: in a random order; MRR, mAP: 0 to "
            f"1; median: rank of the first right answer{right}; among: candidates."
        ]
        for title, kind in (("probe (linear)", self.probe), ("nearest neighbours", self.knn)):
            if kind is not None:
                values = {**kind.by_modality} | ({} if kind.all is None else {"all together": kind.all})
                values |= {} if kind.majority is None else {"(commonest class)": kind.majority}
                notes.append(f"Accuracy in %, {title}: {_list(values)}.")
        if self.transfer:
            crossed = {f"{a} → {b}": value for (a, b), value in self.transfer.items()}
            notes.append(f"Accuracy in %, trained on one and tested on another: {_list(crossed)}.")
        if self.geometry is not None:
            meant = {
                "alignment": "0 = perfect, at most 4",
                "uniformity": "lower = better spread",
                "gap": "0 = none, at most 2",
            }
            found = [f"{name} {value:.3f} ({meant[name]})" for name, value in self.geometry.mean.items()]
            notes.append(f"Geometry, mean over pairs or modalities: {', '.join(found)}.")
        return notes


def _numbers(row: Retrieval, intervals: bool, precise: bool) -> list[str]:
    def percent(values: Mapping[int, float], k: int) -> str:
        return f"{100 * values[k]:.1f}" if k in values else "-"

    cells = [percent(row.recall, 1)]
    if intervals:
        ends = row.interval.get(1)
        cells.append("-" if ends is None else f"{100 * ends.low:.1f} to {100 * ends.high:.1f}")
    cells += [percent(row.chance, 1), percent(row.recall, 10), percent(row.chance, 10), f"{row.mrr:.3f}"]
    if precise:
        cells.append("-" if row.map is None else f"{row.map:.3f}")
    return [*cells, f"{row.median_rank:g}", "" if row.candidates is None else f"{row.candidates:,.0f}"]


def _accuracy(named: Mapping[str, float]) -> Accuracy | None:
    by_modality = {unquoted(key): value for key, value in named.items() if key not in ("all", "majority")}
    return Accuracy(by_modality, named.get("all"), named.get("majority")) if named else None


def _list(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in values.items())


def _shortened(title: str, width: int) -> str:
    a, arrow, b = title.partition(" → ")
    if not arrow or len(title) <= width:
        return shortened(title, width)
    return f"{shortened(a, (width - 3) // 2)} → {shortened(b, (width - 3) // 2)}"
