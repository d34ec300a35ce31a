"""Carry one trial out: train, validate, and, in the final stage only, meet the test split. Runs in a worker."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from centrobind.arena.plan import DatasetConfig, Trial, objective_of
from centrobind.binder.binder import Binder, build_binder
from centrobind.binder.checkpoint import load, save
from centrobind.closed_form.bind import DYNAMIC, fit_closed_form
from centrobind.data import Samples, open_store, read_chunks, train_and_valid, write_store
from centrobind.data.builtin import DATASETS
from centrobind.errors import DataError
from centrobind.evaluation.evaluate import accuracies, label_codes, means_of, probe_outcomes, units
from centrobind.evaluation.metrics import asked_ranks, geometry, rank_metrics, ranks_by_sample, retrieval
from centrobind.evaluation.ranks import score_ranks
from centrobind.evaluation.relevance import question, with_relevance
from centrobind.evaluation.scores import joined, mean_of
from centrobind.files import named
from centrobind.objectives.anchored import AllPairs
from centrobind.objectives.base import Objective
from centrobind.training.config import dump_config
from centrobind.training.fit import fit
from centrobind.training.loop import train
from centrobind.training.recipe import closed_binder
from centrobind.training.run_folder import RunFolder
from centrobind.types import Embeddings


def store_of(dataset: DatasetConfig, out: Path) -> Path:
    """The data set as a store that all workers share; made on first use."""
    path = named(out / "stores" / dataset.label, DataError)
    if not path.exists():
        if (Path(dataset.path) / "meta.json").is_file():
            return Path(dataset.path)
        known = dataset.path in DATASETS and not Path(dataset.path).exists()
        write_store(path, DATASETS[dataset.path]() if known else read_chunks(dataset.path))
    return path


@lru_cache(maxsize=4)
def _opened(path: str) -> Samples:
    return open_store(path)


@lru_cache(maxsize=16)
def _parts(path: str, valid: float, seed: int) -> tuple[Samples, Samples]:
    return train_and_valid(_opened(path), valid=valid, seed=seed)


def run_trial(trial: Trial, dataset: DatasetConfig, out: Path) -> dict[str, Any]:
    """The trial's row: settings, validation score, seconds, and in the final stage every measure on test.

    What is needed for paired statistics, the outcome of every test sample, goes to outcomes/<key>.npz.
    """
    path = str(store_of(dataset, out))
    learn, valid = _parts(path, trial.valid, trial.seed)
    started = time.perf_counter()
    if trial.contender.kind == "default" or trial.contender.name in ("closed_form", "ridge"):
        objective: Objective = AllPairs()  # for its native score, which is the cosine with the centroid
        binder = without_settings(trial, _opened(path))
        if trial.keep:
            save(binder, out / trial.folder / "binder")
    else:
        objective = objective_of(trial, learn.modalities)
        binder = trained(
            trial, objective, learn, valid, out, kept_run(trial, dataset, path, out) if trial.keep else None
        )
    row: dict[str, Any] = {"seconds": round(time.perf_counter() - started, 3)}
    if trial.stage == "start":
        save(binder, trial.beginning(out))
        return row
    seen = binder.embed(valid)
    scores = retrieval(seen)
    row["valid"] = {"cosine": scores.mean.mrr, "native": native_retrieval(objective, seen)["mrr"]}
    row["valid"] |= {"mean": scores.mean.recall[1], "worst": scores.worst.recall[1]}
    row["temperature"] = objective.temperature().item()
    if trial.stage == "final":
        test = _opened(path).part("test")
        measures, outcomes = measure(binder, objective, learn, test)
        row["test"] = {name: round(value, 6) for name, value in measures.items()}
        (out / "outcomes").mkdir(exist_ok=True)
        np.savez_compressed(out / "outcomes" / f"{trial.key}.npz", **outcomes)
    return row


def trained(
    trial: Trial, objective: Objective, learn: Samples, valid: Samples, out: Path, run: RunFolder | None
) -> Binder:
    """Towers trained by an objective, from where the trial starts."""
    binder = build_binder(learn, dim=trial.dim, encoders=trial.encoders, seed=trial.seed)
    if trial.start == "unimodal":
        binder.load_state_dict(load(trial.beginning(out)).state_dict())
    settings = trial.train_config().model_copy(update={"batch_size": min(trial.batch_size, len(learn))})
    return train(binder, objective, learn, valid, settings, seed=trial.seed, run=run)


def without_settings(trial: Trial, samples: Samples) -> Binder:
    """What `cb.fit` or the closed form makes of all that is not test, with nothing but the data."""
    known = samples.take(np.flatnonzero(splits_of(samples) != "test"))
    if trial.contender.kind == "default":
        return fit(known, seed=trial.seed, show_progress=False)
    closed = fit_closed_form(known, anchor=trial.contender.anchor or DYNAMIC, seed=trial.seed)
    return closed_binder(closed, known, dim=None, encoders=None, seed=trial.seed)


def splits_of(samples: Samples) -> np.ndarray:
    """(N,) names."""
    if samples.split is None:
        raise DataError("the arena needs data with a split named test; see centrobind.data.assign_splits")
    return np.array(samples.split.texts())


def kept_run(trial: Trial, dataset: DatasetConfig, store: str, out: Path) -> RunFolder:
    """The folder of a run that stays, with the config that would train it again."""
    built_in = dataset.path in DATASETS and not Path(dataset.path).exists()
    config = trial.run_config(dataset.path if built_in else store, out)
    run = RunFolder(config.out, replace=True)
    run.write_config(dump_config(config))
    return run


def measure(
    binder: Binder, objective: Objective, learn: Samples, test: Samples
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Every number of a final trial, and per test sample what paired comparisons need."""
    space = binder.embed(test)
    outcomes = {f"{joined(*pair)}/rank": ranks_by_sample(space, *pair).astype(np.float32) for pair in space.pairs}
    outcomes["units"] = units(space).astype(np.int32)
    scores = replace(retrieval(space), geometry=geometry(space))
    found = {}
    if test.label is not None:
        known = label_codes(test.label, len(test), "labels")
        taught = label_codes(learn.label, len(learn), "labels")
        right = probe_outcomes(space, known, binder.embed(learn), taught)
        outcomes |= {key.name: hits.astype(np.float32) for key, hits in right.items() if key.kind != "knn"}
        scores = replace(scores, **accuracies(means_of(right)))
        found["transfer/mean"] = fmean(scores.transfer.values()) if scores.transfer else math.nan
    found |= scores.to_dict()
    found |= {f"native/{name}": value for name, value in native_retrieval(objective, space).items()}
    found |= {f"from_{size}/recall@1": value for size, value in subset_retrieval(space).items()}
    return found, outcomes


def native_retrieval(objective: Objective, space: Embeddings) -> dict[str, float]:
    """Each modality found from all the others by the objective's own score: recall and MRR, mean over modalities.

    Over the samples that have everything; NaN where there are none.
    """
    whole = with_relevance(space).take(space.present.all(0))
    if len(whole) == 0:
        return {"recall@1": math.nan, "recall@10": math.nan, "mrr": math.nan}
    rows = []
    for m in range(len(whole.modalities)):
        others = [k for k in range(len(whole.modalities)) if k != m]
        ask = question(whole, others, m)
        with torch.no_grad():
            scores = objective.similarity(whole.z[m, ask.candidates], whole.z[others][:, ask.queries]).T
        rows.append(rank_metrics(score_ranks(scores, ask.right)[ask.query]))
    mean = mean_of(rows)
    return {"recall@1": mean.recall[1], "recall@10": mean.recall[10], "mrr": mean.mrr}


def subset_retrieval(space: Embeddings) -> dict[int, float]:
    """Recall@1 of a modality from the centroid of k others, by k, mean over all modalities and subsets of that size."""
    space, count = with_relevance(space), len(space.modalities)
    return {
        size: float(
            np.mean(
                [
                    _recall_from(space, subset, target)
                    for target in range(count)
                    for subset in itertools.combinations([m for m in range(count) if m != target], size)
                ]
            )
        )
        for size in range(1, count)
    }


def _recall_from(space: Embeddings, subset: Sequence[int], target: int) -> float:
    """Samples that have the target and any of the subset ask with the centroid of what they have of it."""
    ranks = asked_ranks(space, subset, target)
    return float((ranks[np.isfinite(ranks)] <= 1).mean())
