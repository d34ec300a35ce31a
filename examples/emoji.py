"""Emoji in five modalities: three drawings, an English and a Spanish name, from files to scores on unseen emoji.

    python examples/emoji.py emoji.npz runs/emoji                 # from scratch, about two minutes on 2 cores
    python examples/emoji.py emoji.npz runs/emoji --pretrained    # names through MiniLM, drawings through EfficientNet

The npz is unpacked into PNG files and a manifest first, to go the way that files of one's own would go:
`centrobind import manifest.csv STORE`, `centrobind featurize STORE OUT`, then `fit` and `evaluate`.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image
from scores import add_scores, scores_of

import centrobind as cb
from centrobind.binder.features import featurize_store

DRAWINGS, NAMES = ("noto", "twemoji", "fluent"), ("name_en", "name_es")


def unpack(npz: Path, folder: Path) -> Path:
    """A PNG per drawing and a manifest that names them."""
    with np.load(npz, allow_pickle=False) as archive, open(_made(folder) / "manifest.csv", "w", newline="") as file:
        found = {name: archive[name] for name in archive.files}
        table = csv.writer(file)
        table.writerow(["id", *DRAWINGS, *NAMES, "label", "split"])
        for i in range(len(found["id"])):
            for name in DRAWINGS:
                Image.fromarray(found[f"x_{name}"][i]).save(_made(folder / name) / f"{i}.png")
            names = [str(found[f"x_{name}"][i]) for name in NAMES]
            table.writerow(
                [
                    found["id"][i],
                    *(f"{name}/{i}.png" for name in DRAWINGS),
                    *names,
                    found["label"][i],
                    found["split"][i],
                ]
            )
    return folder / "manifest.csv"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("npz", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also add the scores to this JSON file")
    given = parser.parse_args()

    manifest = unpack(given.npz, given.folder / "files")
    readings = dict.fromkeys(DRAWINGS, "image:32x32x3")
    cb.write_store(given.folder / "store", cb.data.read_chunks(manifest, readings=readings), replace=True)
    store = given.folder / "store"
    if given.pretrained:
        here = Path(__file__).with_name("pip_weights.py")
        extractors = dict.fromkeys(DRAWINGS, f"{here}:efficientnet_lite0_at_128")
        extractors |= dict.fromkeys(NAMES, f"{here}:minilm_features")
        store = featurize_store(store, given.folder / "features", extractors, force=True)
    samples = cb.open_store(store)
    binder = cb.fit(samples, dim=64, steps=given.steps, seed=given.seed)
    found = scores_of(binder, samples)
    print(found)
    add_scores(given.out, "emoji, pretrained" if given.pretrained else "emoji, from scratch", found, given)


if __name__ == "__main__":
    main()
