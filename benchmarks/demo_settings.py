"""Choose each demo objective's temperature and learning rate, on the validation split of glyphs.

    python benchmarks/demo_settings.py            writes benchmarks/results/demo_settings.json

The demo's own comparison with a grid in place of its settings: same encoders, data order and number of steps for
every objective; the score is the mean reciprocal rank on the validation split. Takes about an hour on 2 cores; killed,
it resumes where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from centrobind.arena import demo
from centrobind.arena.contenders import Contender
from centrobind.arena.plan import ArenaConfig, SearchConfig
from centrobind.arena.schedule import Arena
from centrobind.progress import progress

TEMPERATURES = (0.05, 0.07, 0.1, 0.14, 0.2)
RATES = (2.5e-3, 5e-3, 1e-2, 2e-2)
RESULTS = Path(__file__).parent / "results" / "demo_settings.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo-settings"))
    options = parser.parse_args()
    config = searched(options.out)
    arena = Arena(config)
    with progress("settings", sum(arena.count())) as watch:
        arena.run(watch=watch)
    scores: dict[str, dict[str, float]] = {}
    for row in arena.ledger.rows.values():
        trial = row["trial"]
        if trial["stage"] == "search":
            label = Contender.of(trial["objective"]).label
            setting = f"temperature {trial['temperature']} lr {trial['lr']}"
            scores.setdefault(label, {})[setting] = row["valid"]["cosine"]
    RESULTS.write_text(json.dumps(scores, indent=1) + "\n")
    for label, found in scores.items():
        print(f"{label}: {max(found, key=lambda setting: found[setting])}")


def searched(out: Path) -> ArenaConfig:
    """The demo with a search; unimodal encoders have no score to be chosen by and keep their setting."""
    known = tuple(setting for setting in demo.SETTINGS if not setting.contender.tuned)
    config = demo.preset(out)
    search = SearchConfig(temperatures=TEMPERATURES, lrs=RATES)
    return config.model_copy(update={"settings": known, "search": search, "keep": False})


if __name__ == "__main__":
    main()
