"""What the examples report: retrieval and probes on the test split, and where the numbers are kept."""

import json
from pathlib import Path
from typing import Any

import centrobind as cb


def scores_of(binder: cb.Binder, samples: cb.Samples) -> dict[str, Any]:
    """Recall over all directions, their worst, and linear probes learned on train; on the test split."""
    train, test = samples.part("train"), samples.part("test")
    found = cb.evaluate(binder.embed(test), test.label, train=binder.embed(train), train_labels=train.label)
    return {"samples": len(test)} | {key: round(float(value), 4) for key, value in found.items() if _told(key)}


def _told(key: str) -> bool:
    return key.startswith("probe/") or key.endswith(("recall@1", "recall@10"))


def add_scores(out: Path | None, name: str, found: dict[str, Any], given: Any) -> None:
    """Put them into a results file beside those of the other examples."""
    if out is None:
        return
    results = json.loads(out.read_text()) if out.exists() else {}
    results[name] = {"steps": given.steps, "seed": given.seed, **found}
    out.write_text(json.dumps(results, indent=1) + "\n")
