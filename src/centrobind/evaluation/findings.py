"""What numbers of a binder say is wrong, in words: one function per finding.

Every threshold stands below with the reason for it; `python benchmarks/diagnosis.py` measures what healthy binders
have and what planted faults do, and docs/theory.md shows both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from centrobind.evaluation.bounds import Bound, Bounds, Dominance, Slack
from centrobind.evaluation.scores import joined

# 1 - |mean|^2, the variance of unit vectors: 1 when they point everywhere, 0 when all are one vector. Healthy binders
# stay above 0.9; at 0.05 the mean cosine of unrelated samples is 0.95.
LEAST_SPREAD = 0.05
# Below this spread unrelated samples have a mean cosine above 0.4: a narrow cone. Temperature 0.005 makes one.
LEAST_USED = 0.6
LOW_TEMPERATURE = 0.03  # below, a spread or a gap that is off is blamed on the temperature
# exp of the entropy of the covariance's eigenvalues (Roy & Vetterli 2007): in how many directions embeddings differ.
# Healthy: 9 or more. Below 3 they lie on a line or in a plane, where even ten samples are hard to keep apart.
LEAST_RANK = 3.0
# Distance between the means of two modalities. Healthy: below 0.2. Temperature 0.005 makes gaps above 0.6.
MOST_GAP = 0.3
# How far the leading modality's share of the anchor's variance may be from 1/M on the way to 1. Half of the way means
# that it says as much as all others and itself together should; healthy centroids stay within a tenth.
MOST_DOMINANCE = 0.5
# The loss that is left with the centroid, by that with the others' centroid at its best temperature. A loss that sees
# less than a quarter of what is still unaligned has stopped teaching it. Healthy: 0.8 or more at temperature 0.2.
LEAST_LOSS_LEFT = 0.25
# Nats: with fewer, two modalities of a pair tell nothing of each other. Healthy: above 1.5.
LEAST_SHARED = 0.1
# Nats that new heads on the same encoders add to a pair. Healthy: below 0.1, but 0.28 under a fixed anchor with five
# modalities; so the gain must also be beyond both intervals, which misses real ones of 0.3 on 300 samples.
MOST_LOST = 0.25
# The share of what modalities share that the objective sees at its own temperature. Healthy: above 0.6; at temperatures
# of 0.5 and 1 below 0.42.
LEAST_SEEN = 0.45
# What pairs with one modality share, by what pairs without it do. Healthy: above 0.9; with noise of 3: 0.13.
LEAST_PART = 0.25


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, where, by what number, and what to try."""

    name: str
    severity: Literal["fault", "warning"]
    where: tuple[str, ...]  # a modality, a pair, or () for the whole space
    value: float
    normal: str
    sentence: str
    advice: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.sentence} (normal: {self.normal}). Try: {self.advice}."


@dataclass(frozen=True)
class Diagnosis:
    """What was measured on a binder's embeddings, and the findings that follow from it."""

    samples: int
    temperature: float  # of the objective; without one, the best for the anchor
    trained_on: Literal["anchor", "inter", "intra"] | None  # which of the bounds its loss is one of, if any
    anchor_modality: str | None  # of a fixed anchor
    bounds: Bounds
    seen: Bound | None  # the mean of the bounds it was trained on, at its own temperature
    reachable: Mapping[tuple[str, str], Bound]  # with new heads on the same encoders; empty if not tried
    slack: Mapping[str, Slack]
    leak: Mapping[str, float]
    dominance: Mapping[str, Dominance]
    spread: Mapping[str, float]
    rank: Mapping[str, float]
    gap: Mapping[tuple[str, str], float]

    @cached_property
    def findings(self) -> list[Finding]:
        """Faults first."""
        found = [finding for check in CHECKS for finding in check(self)]
        return sorted(found, key=lambda finding: finding.severity)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        plain = {key: value for key, value in vars(self).items() if key != "findings"}
        nested = {key: {name: vars(one) for name, one in plain[key].items()} for key in ("slack", "dominance")}
        return (
            plain
            | nested
            | {
                "bounds": self.bounds.as_dict(),
                "seen": None if self.seen is None else vars(self.seen),
                "reachable": {joined(*pair, "_with_"): vars(bound) for pair, bound in self.reachable.items()},
                "gap": {joined(*pair, "_with_"): value for pair, value in self.gap.items()},
                "findings": [vars(finding) | {"where": list(finding.where)} for finding in self.findings],
            }
        )


def _collapse(found: Diagnosis) -> Iterator[Finding]:
    """All embeddings of a modality are one vector: one dead modality, or the whole space."""
    normal = f"a spread above {LEAST_SPREAD}, near 1 when healthy"
    dead = _dead(found)
    if dead == set(found.spread):
        worst = max(found.spread.values())
        said = f"the space has collapsed: all embeddings are nearly one vector, spread {worst:.3f} at most"
        advice = "a lower learning rate, longer warmup, or a lower temperature if it is above 0.5"
        yield Finding("collapse", "fault", (), worst, normal, said, advice)
        return
    for name in sorted(dead):
        said = f"{name} is dead: its embeddings are nearly one vector, spread {found.spread[name]:.3f}"
        advice = f"`centrobind inspect` (is {name} constant?), another encoder for it, or leave it out"
        yield Finding("dead modality", "fault", (name,), found.spread[name], normal, said, advice)


def _dead(found: Diagnosis) -> set[str]:
    return {name for name, value in found.spread.items() if value < LEAST_SPREAD}


def _few_directions(found: Diagnosis) -> Iterator[Finding]:
    for name, value in found.rank.items():
        if name not in _dead(found) and value < LEAST_RANK:
            said = f"{name} uses only {value:.1f} directions of the space"
            advice = "a lower temperature, a larger batch; fine if the data has only two or three different things"
            yield Finding("few directions", "warning", (name,), value, f"above {LEAST_RANK:g}", said, advice)


def _narrow(found: Diagnosis) -> Iterator[Finding]:
    """A low temperature distinguishes neighbours without ever pushing unrelated samples apart."""
    low = _too_low(found)
    for name, value in found.spread.items():
        if LEAST_SPREAD <= value < LEAST_USED:
            said = f"{name} lies in a narrow cone: two samples that have nothing in common have cosine {1 - value:.2f}"
            advice = (
                f"a higher temperature than {found.temperature:g}"
                if low
                else "centring, or a look at the labels' balance"
            )
            kind = "temperature too low" if low else "narrow cone"
            yield Finding(kind, "warning", (name,), value, f"a spread above {LEAST_USED}", said, advice)


def _gap(found: Diagnosis) -> Iterator[Finding]:
    explained = _dead(found) | _weak_ones(found)
    for pair, value in found.gap.items():
        if value > MOST_GAP and not explained & set(pair) and pair not in _unbound_pairs(found):
            said = f"{pair[0]} and {pair[1]} live apart: their means are {value:.2f} from each other"
            low = _too_low(found)
            advice = f"a higher temperature than {found.temperature:g}" if low else "more steps, or subtract the means"
            yield Finding("modality gap", "warning", pair, value, f"below {MOST_GAP}", said, advice)


def _too_low(found: Diagnosis) -> bool:
    return found.seen is not None and found.temperature < LOW_TEMPERATURE


def _dominated(found: Diagnosis) -> Iterator[Finding]:
    """A dynamic anchor that is one modality in disguise; a fixed one is meant to be."""
    if found.trained_on != "anchor" or found.anchor_modality is not None:
        return
    fair = 1 / len(found.dominance)
    most = fair + MOST_DOMINANCE * (1 - fair)
    for name, share in found.dominance.items():
        if share.variance > most:
            said = f"{name} dominates the anchor: {share.variance:.0%} of its variance"
            advice = "equal weights, leave_one_out, or a look at why the other modalities hardly vary"
            normal = f"about {fair:.0%}, below {most:.0%}"
            yield Finding("dominated anchor", "warning", (name,), share.variance, normal, said, advice)


def _self_matching(found: Diagnosis) -> Iterator[Finding]:
    """The anchor contains the target modality, and the loss is solved by finding itself there."""
    if found.trained_on != "anchor" or not found.leak or max(found.leak.values()) < 0.01:
        return
    seen = found.bounds.mean["anchor"] if found.seen is None else found.seen
    left, without = (bound.ceiling - bound.nats for bound in (seen, found.bounds.mean["others"]))
    if without > 0 and left / without < LEAST_LOSS_LEFT:
        own = sum(found.leak.values()) / len(found.leak)
        said = (
            f"self-matching solves the loss: {left:.2f} nats are left of it, and {without:.2f} without a "
            f"modality's own view in its anchor ({own:.0%} of a positive similarity is its own)"
        )
        advice = "leave_one_out, or a temperature of 0.2 or more"
        yield Finding("leak", "fault", (), left / without, f"a ratio above {LEAST_LOSS_LEFT}", said, advice)


def _unbound(found: Diagnosis) -> Iterator[Finding]:
    for pair in _unbound_pairs(found):
        bound = found.bounds.inter[pair]
        said = f"{pair[0]} and {pair[1]} are not bound: they share {max(bound.nats, 0):.2f} of {bound.ceiling:.2f} nats"
        advice = (
            "check that row i is the same thing in both (`centrobind inspect`), an objective that uses this pair, "
            "more steps; if only three or more modalities together tell anything, symile"
        )
        normal = f"above {LEAST_SHARED} nats"
        yield Finding("unbound pair", "fault", pair, bound.nats, normal, said, advice)


def _unbound_pairs(found: Diagnosis) -> list[tuple[str, str]]:
    return [
        pair
        for pair, bound in found.bounds.inter.items()
        if not _dead(found) & set(pair) and (bound.nats < LEAST_SHARED or bound.low <= 0)
    ]


def _weak(found: Diagnosis) -> Iterator[Finding]:
    """One modality has little in common with all others, which have much with each other.

    Not said where something worse explains it: the modality is dead, bound to nothing, or has no directions to use.
    """
    for name in sorted(_weak_ones(found)):
        part = part_of(found, name)
        said = f"{name} is weak: its pairs share {part:.0%} of what the other modalities share with each other"
        advice = f"a better encoder for {name}, a small weight for it in `weighted`, or leave it out of training"
        yield Finding("weak modality", "warning", (name,), part, f"above {LEAST_PART:.0%}", said, advice)


def _weak_ones(found: Diagnosis) -> set[str]:
    unbound = {frozenset(pair) for pair in _unbound_pairs(found)}
    alive = [name for name in found.spread if name not in _dead(found) and found.rank[name] >= LEAST_RANK]
    bound = [name for name in alive if not any(name in pair for pair in unbound)]
    return {name for name in bound if part_of(found, name) < LEAST_PART}


def part_of(found: Diagnosis, name: str) -> float:
    """The mean bound of the pairs with a modality, by that of the pairs without it; 1 where either has none."""
    shared = {pair: bound.nats for pair, bound in found.bounds.inter.items() if not _dead(found) & set(pair)}
    with_it, without = ([nats for pair, nats in shared.items() if (name in pair) == side] for side in (True, False))
    if not with_it or not without or sum(without) <= 0:
        return 1.0
    return (sum(with_it) / len(with_it)) / (sum(without) / len(without))


def _lost_pair(found: Diagnosis) -> Iterator[Finding]:
    """New heads on the same encoders bring the pair closer: the objective, not the data, keeps it apart.

    A loss solved by self-matching or a temperature that is too high loses every pair; then that is the finding.
    """
    if [*_self_matching(found), *_temperature(found)]:
        return
    for pair, better in found.reachable.items():
        now = found.bounds.inter.get(pair)
        if now is None or pair in _unbound_pairs(found) or _dead(found) & set(pair):
            continue
        if better.nats - now.nats > MOST_LOST and better.low > now.high:
            away = found.anchor_modality is not None and found.anchor_modality not in pair
            why = f", and neither is the anchor ({found.anchor_modality})" if away else ""
            said = (
                f"{pair[0]} with {pair[1]} is lost: {now.nats:.2f} nats, where new heads on the same encoders reach "
                f"{better.nats:.2f}{why}"
            )
            advice = "leave_one_out or all_pairs" if away else "more steps, all_pairs, or a trained anchor"
            normal = f"a gain below {MOST_LOST}"
            yield Finding("lost pair", "warning", pair, better.nats - now.nats, normal, said, advice)


def _temperature(found: Diagnosis) -> Iterator[Finding]:
    """At a high temperature the loss cannot see what the embeddings hold, so it has no reason to sharpen it."""
    held, share = seen_share(found)
    if (
        held is None
        or found.seen is None
        or _dead(found)
        or held.nats <= LEAST_SHARED
        or held.temperature >= found.temperature
    ):
        return
    if share < LEAST_SEEN:
        said = (
            f"the temperature {found.temperature:g} is too high: at it the loss sees {found.seen.nats:.2f} of "
            f"{held.nats:.2f} nats that are shared (at {held.temperature:.2g})"
        )
        advice = f"a lower one, such as {max(0.05, found.temperature / 3):.2g}"
        yield Finding("temperature too high", "warning", (), share, f"above {LEAST_SEEN:.0%}", said, advice)


def seen_share(found: Diagnosis) -> tuple[Bound | None, float]:
    """What modalities share by the bound that was trained on, and the part of it seen at the objective's temperature.

    Of an anchor that contains its target modality only what the others share with it counts: the rest is self-matching,
    which sharpens at temperatures that bind nothing.
    """
    if found.seen is None or found.trained_on is None:
        return None, 1.0
    kinds: set[str] = {found.trained_on, "others"} if found.trained_on == "anchor" else {found.trained_on}
    held = min((found.bounds.mean[kind] for kind in kinds), key=lambda bound: bound.nats)
    return held, found.seen.nats / held.nats if held.nats > 0 else 1.0


CHECKS: tuple[Callable[[Diagnosis], Iterator[Finding]], ...] = (
    _collapse,
    _few_directions,
    _narrow,
    _gap,
    _dominated,
    _self_matching,
    _unbound,
    _weak,
    _lost_pair,
    _temperature,
)
