"""Contenders: who takes part in a comparison, known by what they are; labels and colours are for reading only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from centrobind.errors import ConfigError
from centrobind.objectives.table import OBJECTIVES

Kind = Literal["default", "linear", "dynamic", "fixed", "pairs", "joint", "single", "own"]

# "all" leaves out `weighted`: without weights of one's own it is centrobind again.
ALL = ("default", "closed_form", "ridge", *(name for name in OBJECTIVES if name != "weighted"))


class Family(NamedTuple):
    """What all contenders with one objective share."""

    title: str
    kind: Kind
    colour: str


GREY = "#7f8c8d"
FAMILIES: dict[str, Family] = {
    "default": Family("cb.fit, no settings", "default", "#2e86de"),
    "closed_form": Family("closed form", "linear", "#66a182"),
    "ridge": Family("ridge", "fixed", "#b5651d"),
    "centrobind": Family("CentroBind", "dynamic", "#d1495b"),
    "leave_one_out": Family("leave-one-out", "dynamic", "#8d6cab"),
    "weighted": Family("weighted centroid", "dynamic", GREY),
    "learned": Family("learned centroid", "dynamic", GREY),
    "random": Family("random anchor", "dynamic", GREY),
    "fabind": Family("FABind", "fixed", "#00798c"),
    "all_pairs": Family("all pairs", "pairs", "#edae49"),
    "unimodal": Family("unimodal", "single", "#9aa1ab"),
    "symile": Family("Symile", "joint", GREY),
    "gram": Family("GRAM", "joint", GREY),
    "triangle": Family("TRIANGLE", "joint", GREY),
    "pmrl": Family("PMRL", "joint", GREY),
    "ova_ib": Family("OVA-IB", "joint", GREY),
}
FROZEN = "#5b8bb5"  # the colour of fixed anchors that do not learn


@dataclass(frozen=True)
class Contender:
    """A row of the table: an objective, before its temperature and learning rate are known.

    A fixed anchor without a modality stands for the one that came out best on test: a choice in hindsight, which
    nobody could have made beforehand and which therefore is a strong rival.
    """

    name: str  # a row of FAMILIES, or path/to/file.py:function
    anchor: str | None = None
    frozen: bool = False

    @classmethod
    def of(cls, objective: Mapping[str, Any]) -> Contender:
        """The contender with this objective, as a trial or a config has it."""
        return cls(objective["name"], objective.get("anchor"), bool(objective.get("frozen", False)))

    @property
    def family(self) -> Family:
        return FAMILIES.get(self.name) or Family(self.name.rpartition(":")[2], "own", GREY)

    @property
    def kind(self) -> Kind:
        return self.family.kind

    @property
    def hindsight(self) -> bool:
        return self.kind == "fixed" and self.anchor is None

    @property
    def label(self) -> str:
        if self.kind != "fixed":
            return self.family.title
        how = ", closed form" if self.name == "ridge" else ", frozen" if self.frozen else ", trained"
        if self.hindsight:
            return f"{self.family.title}{how}, best anchor in hindsight"
        return f"{self.family.title} {self.anchor}{how}"

    @property
    def colour(self) -> str:
        return FROZEN if self.frozen else self.family.colour

    @property
    def tuned(self) -> bool:
        """Whether it has a temperature and a learning rate, and a cross-modal score to choose them by."""
        return (self.name in OBJECTIVES and self.kind != "single") or self.kind == "own"

    @property
    def objective(self) -> dict[str, Any]:
        """As in a config, without temperature."""
        if self.kind != "fixed":
            return {"name": self.name}
        frozen = {} if self.name == "ridge" else {"frozen": self.frozen}
        return {"name": self.name, "anchor": self.anchor, **frozen}

    def describe(self) -> dict[str, Any]:
        """As JSON; `Contender(**described)` is the same again."""
        return asdict(self)

    def unable(self, modalities: Sequence[str]) -> str:
        """Why it cannot run on data with these modalities; nothing if it can."""
        return "needs exactly three modalities" if self.name == "triangle" and len(modalities) != 3 else ""


def contenders(objectives: Sequence[str] | str, modalities: Sequence[str]) -> list[Contender]:
    """The rows for data with these modalities; every fixed anchor, trained and frozen, is one of its own."""
    rows: list[Contender] = []
    for name in ALL if objectives == "all" else objectives:
        if name not in FAMILIES and ":" not in name:
            raise ConfigError(f"objectives: unknown {name!r}, expected some of {list(FAMILIES)}, or file.py:function")
        if Contender(name).kind == "fixed":
            ways = (False,) if name == "ridge" else (False, True)
            rows += [Contender(name, modality, frozen) for frozen in ways for modality in modalities]
        else:
            rows.append(Contender(name))
    return rows


def dynamic(rows: Sequence[Contender]) -> list[Contender]:
    """Those whose anchor is made anew from all modalities of a sample."""
    return [row for row in rows if row.kind == "dynamic"]
