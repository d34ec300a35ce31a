"""Actions seen by a depth camera, a skeleton tracker and two wrist sensors: from files to scores on unseen people.

    python examples/actions.py utd_mhad.npz runs/actions          # about two minutes on 2 cores

UTD-MHAD (Chen et al. 2015): 27 actions of 8 people, 4 of them in the test split. The npz is unpacked first, the wrist
sensors into CSV files and the others into .npy files, to go the way that files of one's own would go.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scores import add_scores, scores_of

import centrobind as cb

SENSORS, ARRAYS = ("accel", "gyro"), ("skeleton", "depth")


def unpack(npz: Path, folder: Path) -> Path:
    """A file per recording and a manifest that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(npz, allow_pickle=False) as archive, open(folder / "manifest.jsonl", "w") as file:
        found = {name: archive[name] for name in archive.files}
        for i in range(len(found["id"])):
            row = {key: str(found[key][i]) for key in ("id", "label", "split", "group")}
            for name in SENSORS:
                row[name] = f"{i}_{name}.csv"
                np.savetxt(folder / row[name], found[f"x_{name}"][i], delimiter=",", header="x,y,z", comments="")
            for name in ARRAYS:
                row[name] = f"{i}_{name}.npy"
                np.save(folder / row[name], found[f"x_{name}"][i])
            file.write(json.dumps(row) + "\n")
    return folder / "manifest.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("npz", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also add the scores to this JSON file")
    given = parser.parse_args()

    manifest = unpack(given.npz, given.folder / "files")
    readings = {"accel": "series:64", "gyro": "series:64", "skeleton": "series:24"}
    chunks = cb.data.read_chunks(manifest, modalities=["skeleton", "accel", "gyro", "depth"], readings=readings)
    samples = cb.open_store(cb.write_store(given.folder / "store", chunks, replace=True))
    print(samples)
    train, valid = cb.data.train_and_valid(samples, valid=0.25, seed=given.seed)  # one of the four people
    binder = cb.fit(train, valid=valid, dim=64, steps=given.steps, seed=given.seed)
    found = scores_of(binder, samples)
    print(found)
    add_scores(given.out, "actions", found, given)


if __name__ == "__main__":
    main()
