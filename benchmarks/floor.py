"""The classical floor of the arena: MCCA and GCCA for retrieval, logistic regression and an RBF-SVM for labels.

    pip install -c constraints.txt -e '.[bench]'
    python benchmarks/floor.py                 writes benchmarks/results/floor.json

Every modality becomes at most 100 principal components of its raw values (of TF-IDF for text), standardised, fitted on
the training split. Shrinkage and dimensions of MCCA and GCCA, and C of the classifiers, are chosen on the same
validation part as everybody's settings in the arena; then they are fitted on the whole training split. One run, no
seeds: nothing in it is drawn but the validation part.
"""

from __future__ import annotations

import argparse
import itertools
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from cca_zoo.linear import GCCA, MCCA
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

from centrobind.arena.plan import ArenaConfig
from centrobind.arena.trials import store_of
from centrobind.data import Samples, open_store, train_and_valid
from centrobind.evaluation.evaluate import label_codes
from centrobind.evaluation.metrics import retrieval
from centrobind.training.config import load_checked
from centrobind.types import Embeddings

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "floor.json"
MEASURES = ("mean/recall@1", "worst/recall@1", "mean/recall@10", "worst/recall@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    config = load_checked(ArenaConfig, HERE / "arena.yaml")
    found = {}
    for data in config.datasets():
        samples = open_store(store_of(data, Path(config.out)))
        train, test = samples.part("train"), samples.part("test")
        learn, valid = train_and_valid(samples, valid=config.valid, seed=0)
        found[data.label] = {
            **{name: correlate(kind, (learn, valid), (train, test)) for name, kind in KINDS.items()},
            **{name: classify(make, (learn, valid), (train, test)) for name, make in CLASSIFIERS.items()},
        }
        print(data.label, json.dumps(found[data.label]), flush=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


KINDS = {"MCCA": MCCA, "GCCA": GCCA}
CLASSIFIERS = {
    "logistic regression": lambda c: LogisticRegression(C=c, max_iter=500),
    "RBF-SVM": lambda c: SVC(C=c, random_state=0),
}


def features(learn: Samples, *others: Samples) -> list[list[np.ndarray]]:
    """For each of the samples, one (N, <= 100) array per modality, all fitted on `learn`."""
    made: list[list[np.ndarray]] = [[] for _ in (learn, *others)]
    for name in learn.modalities:
        raw = [each.columns[name].take(np.arange(len(each))) for each in (learn, *others)]
        if learn.columns[name].kind == "text":
            steps = [TfidfVectorizer(min_df=2), TruncatedSVD(100, random_state=0), StandardScaler()]
        else:
            raw = [np.asarray(x, dtype=np.float32).reshape(len(x), -1) for x in raw]
            some = min(100, raw[0].shape[1], len(raw[0]) - 1)
            # Scaled before and after: views of very different units, and components of very different variance.
            steps = [StandardScaler(), PCA(some, random_state=0), StandardScaler()]
        pipe = make_pipeline(*steps).fit(raw[0])
        for each, x in zip(made, raw):
            each.append(pipe.transform(x))
    return made


def scores_of(kind: type, views: list[np.ndarray], asked: list[np.ndarray], names, dims: int, shrinkage: float):
    """Retrieval by cosine in the common space."""
    dims = min(dims, min(view.shape[1] for view in views)) if kind is MCCA else dims
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind(n_components=dims, shrinkage=shrinkage).fit(views)
        z = model.transform(asked)
    z = torch.stack([torch.nn.functional.normalize(torch.from_numpy(np.array(x)).float(), dim=1) for x in z])
    return retrieval(Embeddings.of(dict(zip(names, z)))).to_dict()


def correlate(kind: type, search: tuple[Samples, Samples], final: tuple[Samples, Samples]) -> dict[str, object]:
    best, chosen = -1.0, None
    learn, valid = features(*search)
    for dims, shrinkage in itertools.product((6, 16, 32, 64), (0.01, 0.1, 0.3, 0.6, 0.9)):
        try:
            mrr = scores_of(kind, learn, valid, search[0].modalities, dims, shrinkage)["mean/mrr"]
        except (ValueError, np.linalg.LinAlgError):
            continue  # more dimensions than there are
        if mrr > best:
            best, chosen = mrr, (dims, shrinkage)
    if chosen is None:
        return {"error": "no setting could be fitted"}
    train, test = features(*final)
    scores = scores_of(kind, train, test, search[0].modalities, *chosen)
    return {"dims": chosen[0], "shrinkage": chosen[1], **{name: scores[name] for name in MEASURES}}


def classify(make, search: tuple[Samples, Samples], final: tuple[Samples, Samples]) -> dict[str, float]:
    """Accuracy on test of each modality alone and of all together."""
    learn, valid = features(*search)
    train, test = features(*final)
    y = [label_codes(each.label, len(each), "labels") for each in (*search, *final)]
    names = [*search[0].modalities, "all"]
    found = {}
    for m, name in enumerate(names):
        pick = FunctionTransformer(lambda views, m=m: np.hstack(views) if m == len(views) else views[m])
        x = [pick.transform(views) for views in (learn, valid, train, test)]
        chosen = max((0.01, 0.1, 1.0, 10.0), key=lambda c: make(c).fit(x[0], y[0]).score(x[1], y[1]))
        found[name] = float(make(chosen).fit(x[2], y[2]).score(x[3], y[3]))
    return found


if __name__ == "__main__":
    main()
