"""Samples -> one linear map per modality, all of it chosen by cross-validation: no anchor, or a fixed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from centrobind.closed_form.choose import KERNEL, LINEAR, REST, Choice, Folds, Settings, choose, fold_numbers
from centrobind.closed_form.features import Features
from centrobind.closed_form.gcca import Solution, principal, solve
from centrobind.closed_form.kinds import learned_features
from centrobind.closed_form.stream import CHUNK, stream
from centrobind.data import Samples, sameness
from centrobind.distributed import team as our_team
from centrobind.errors import DataError
from centrobind.types import Embeddings, unit

DYNAMIC = "dynamic"
FEW, MANY_FOLDS, FEW_FOLDS = 1000, 5, 3  # where samples are few, folds are small and their scores noisy
CHOSEN_ON = 10_000  # samples that cross-validation uses
LEAST = 200  # of these that have a modality, if there are as many
FEW_SAMPLES, MOST_FEATURES, MOST_TOGETHER = 2000, 512, 2048
REFINED = 1000  # largest eigenproblem that settings of single modalities are tried with
MOST_DIMS = 256


@dataclass(frozen=True)
class ClosedForm:
    """z = unit(features[m](x) @ matrix[m] + bias[m]) for every modality m, and how it was chosen."""

    features: dict[str, Features]
    matrix: dict[str, Tensor]  # (width, dim) float32, zero columns beyond the dimension that was chosen
    bias: dict[str, Tensor]  # (dim,)
    spectrum: Tensor  # (chosen dimension,) how much the modalities agree
    choice: Choice
    anchor: str

    @torch.no_grad()
    def embed(self, samples: Samples) -> Embeddings:
        """Unit vectors where present, zeros elsewhere."""
        names = [name for name in self.features if name in samples.columns]
        dim = len(next(iter(self.bias.values())))
        z = torch.zeros(len(names), len(samples), dim)
        for start in range(0, len(samples), CHUNK):
            chunk = samples.take(slice(start, start + CHUNK))
            for row, name in enumerate(names):
                column = chunk.columns[name]
                if column.present.any():
                    x = self.features[name](column.take(np.arange(len(chunk))))
                    here = start + torch.from_numpy(np.flatnonzero(column.present))
                    z[row, here] = unit(x @ self.matrix[name] + self.bias[name]).cpu()
        return Embeddings(
            z,
            torch.from_numpy(samples.only(names).present),
            tuple(names),
            np.array(samples.ids[:]),
            *sameness(samples.only(names)),
        )


@dataclass(frozen=True)
class Prepared:
    """Samples with their features, ready for any anchor."""

    samples: Samples
    features: dict[str, Features]
    folds: Folds  # of all samples, or of CHOSEN_ON of them


def fit_closed_form(
    samples: Samples,
    *,
    dim: int | None = None,
    anchor: str = DYNAMIC,
    groups: np.ndarray | None = None,
    features: Mapping[str, Features] | None = None,
    settings: Settings | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> ClosedForm:
    """The dynamic anchor (MAXVAR generalised CCA) of these samples, or ridge regression to a fixed `anchor` modality.

    All `samples` are learned from; none is held back in the end. `dim`: columns of the matrices; the dimension used is
    chosen up to it, by default up to 256. `groups`: (N,) integers, samples of one group stay in one fold (default: the
    samples' own groups). `features`: learned ones, to be used again; they are not changed. `settings`: chosen ones,
    instead of cross-validation. Raises DataError for an
    unknown anchor, for a modality without samples, and when no two modalities share a sample.
    """
    prepared = prepare_closed_form(samples, groups=groups, features=features, seed=seed, device=device)
    return solve_closed_form(prepared, dim=dim, anchor=anchor, settings=settings)


def prepare_closed_form(
    samples: Samples,
    *,
    groups: np.ndarray | None = None,
    features: Mapping[str, Features] | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> Prepared:
    """Features and folds, the same for every anchor; see fit_closed_form."""
    check_pairs(samples)
    if groups is None and samples.group is not None:
        groups = samples.group.codes
    picked = _picked(samples)

    def on_leader() -> tuple[dict[str, Features], Folds]:
        if features is None:
            return learn_all(samples.take(picked), seed, device)
        modules = {name: features[name].to(device) for name in samples.modalities}
        return modules, look(modules, samples.take(picked))

    # Not on every rank: a rank that rounds otherwise would turn its features, and sums over ranks would mix them.
    modules, folds = our_team().from_leader(on_leader)
    count = MANY_FOLDS if len(picked) <= FEW else FEW_FOLDS
    own = None if groups is None else groups[picked]
    folds.fold_of = torch.from_numpy(fold_numbers(len(picked), count, groups=own, seed=seed)).to(folds.present.device)
    return Prepared(samples, {name: module.to(device) for name, module in modules.items()}, folds)


def solve_closed_form(
    prepared: Prepared, *, dim: int | None = None, anchor: str = DYNAMIC, settings: Settings | None = None
) -> ClosedForm:
    """Settings by cross-validation unless they are given, then the maps from all samples; see fit_closed_form."""
    samples, folds, names = prepared.samples, prepared.folds, prepared.samples.modalities
    if anchor != DYNAMIC and anchor not in names:
        raise DataError(f"anchor {anchor!r}: expected {DYNAMIC!r} or one of {list(names)}")
    weights = [1.0 if anchor in (DYNAMIC, name) else REST for name in names]
    total, rows = sum(x[LINEAR].shape[1] for x in folds.features), folds.present.shape[1]
    most_dims = int(min(dim or MOST_DIMS, total, max(rows // 2, 2)))
    team, refine = our_team(), min(total, rows) <= REFINED
    if settings is None:
        choice = team.from_leader(lambda: choose(folds, dim=most_dims, weights=weights, refine=refine))
    else:
        choice = Choice(settings, ())
    settings = choice.settings
    modules = {
        name: module.without_kernel() if form == LINEAR else module
        for (name, module), form in zip(prepared.features.items(), settings.forms)
    }
    moments = None if rows == len(samples) else stream(modules, samples)

    def on_leader() -> Solution:
        everything = folds.whole(settings.forms) if moments is None else principal(moments)
        return solve(everything, ridge=settings.ridge, weights=settings.weights, dim=settings.dim)

    solution = team.from_leader(on_leader)
    scale = solution.spectrum**settings.power
    matrix, bias = {}, {}
    for name, w, mean in zip(names, solution.maps, solution.means):
        full = w.new_zeros(len(w), dim or settings.dim)
        full[:, : w.shape[1]] = w * scale
        matrix[name], bias[name] = full.float(), -(mean @ full).float()
    return ClosedForm(modules, matrix, bias, solution.spectrum, choice, anchor)


def _picked(samples: Samples) -> np.ndarray:
    """Up to CHOSEN_ON samples, evenly spread, and some of every modality that is hardly among them."""
    picked = np.linspace(0, len(samples) - 1, min(len(samples), CHOSEN_ON)).astype(np.int64)
    for here in samples.present:
        if here[picked].sum() < LEAST:
            rows = np.flatnonzero(here)
            picked = np.union1d(picked, rows[np.linspace(0, len(rows) - 1, min(len(rows), LEAST)).astype(np.int64)])
    return np.unique(picked)


def learn_all(samples: Samples, seed: int = 0, device: torch.device | None = None) -> tuple[dict[str, Features], Folds]:
    """Features of every modality, and those of these samples: no more than an eigenproblem can take."""
    few = len(samples) <= FEW_SAMPLES  # then it is solved in samples, and features cost little
    most = MOST_FEATURES if few else max(min(MOST_FEATURES, MOST_TOGETHER // len(samples.columns)), 32)
    modules, kept = {}, []
    for name, column in samples.columns.items():
        values = column.take(np.arange(len(samples)))
        modules[name], forms = learned_features(column.kind, values, most=most, seed=seed)
        modules[name].to(device)
        kept.append({form: spread(x.to(device), column.present) for form, x in zip((LINEAR, KERNEL), forms)})
    return modules, Folds(kept, torch.from_numpy(samples.present).to(device))


def look(features: Mapping[str, Features], samples: Samples) -> Folds:
    """Linear and kernel features of samples that fit into memory."""
    kept = []
    for name, module in features.items():
        column = samples.columns[name]
        x = module.linear(column.take(np.arange(len(samples))))
        kept.append({LINEAR: spread(x, column.present)})
        if module.kernel is not None:
            kept[-1][KERNEL] = spread(module.kernel(x), column.present)
    return Folds(kept, torch.from_numpy(samples.present).to(kept[0][LINEAR].device))


def spread(x: Tensor, present: np.ndarray) -> Tensor:
    """(n present, width) rows -> (n, width), zeros where missing."""
    rows = x.new_zeros(len(present), x.shape[1])
    rows[torch.from_numpy(present).to(x.device)] = x
    return rows


def check_pairs(samples: Samples) -> None:
    """DataError unless some sample has two modalities and every modality some sample."""
    present = samples.present
    if empty := [name for name, here in zip(samples.modalities, present) if not here.any()]:
        raise DataError(f"modality {empty[0]!r} is missing from all {len(samples)} samples; leave it out")
    if not (present.sum(0) > 1).any():
        raise DataError(
            f"no sample has two of the modalities {list(samples.modalities)}: nothing says what belongs together"
        )
