"""A few hundred cases of `make fuzz`, and proof that its watch would see what it is there to see."""

import json
import pickle
import random

import numpy as np

from chaos import fuzz
from chaos.process import python


def test_broken_stores_and_checkpoints_end_in_our_own_errors(tmp_path):
    python("-m", "chaos.fuzz", "--cases", 40 * len(fuzz.WAYS), "--seed", 7, "--out", tmp_path / "fuzz.json")
    found = json.loads((tmp_path / "fuzz.json").read_text())
    assert [found[key] for key in ("crashed", "unpickled", "outside")] == [0, 0, 0]
    assert set(found["ways"]) == set(fuzz.WAYS)
    for way, counts in found["ways"].items():
        assert counts["refused"] > 0 and counts["refused"] + counts["opened"] == 40, way
    assert sum(counts["opened"] for counts in found["ways"].values()) > 10, "what means no harm still opens"


def test_the_watch_sees_pickles_and_files_elsewhere(tmp_path):
    """The hook of a process cannot be taken off again, so this one is in another process."""
    code = """
import json, os, pickle, sys
from pathlib import Path
from chaos.fuzz import Watch
inside = Path(sys.argv[1]) / "inside"
inside.mkdir()
(inside / "link").symlink_to("/etc/hostname")
watch = Watch(inside)
def tried(act):
    before = len(watch.outside) + len(watch.unpickled)
    with watch():
        try:
            act()
        except (OSError, AttributeError):
            pass
    return len(watch.outside) + len(watch.unpickled) > before
acts = {
    "read inside": lambda: open(inside / "link2", "a").close(),
    "read outside": lambda: open("/etc/hostname").close(),
    "through a link": lambda: open(inside / "link").close(),
    "through ..": lambda: open(inside / ".." / "x", "w").close(),
    "removed": lambda: os.remove(inside / ".." / "x"),
    "listed": lambda: os.listdir("/etc"),
    "unpickled": lambda: pickle.loads(pickle.dumps(Path)),
}
print(json.dumps({name: tried(act) for name, act in acts.items()}))
"""
    seen = json.loads(python("-c", code, tmp_path))
    assert seen == dict.fromkeys(seen, True) | {"read inside": False}


def test_every_way_breaks_something_and_says_the_same_for_the_same_seed(tmp_path):
    """A way that leaves its file as it was would fuzz nothing."""
    fuzz.make_sound(tmp_path)
    fuzz.use_store(tmp_path / "store")
    fuzz.use_run(tmp_path / "run")
    for way, (what, harm, _) in fuzz.WAYS.items():
        changed = set()
        for number in range(4):
            contents = []
            for copy in ("one", "other"):
                folder = tmp_path / copy / f"{what} {way.split(':')[1]} {number}"
                fuzz.shutil.copytree(tmp_path / what, folder)
                harm(folder, random.Random(number))
                contents.append({path.name: path.is_file() and path.read_bytes() for path in folder.iterdir()})
            assert contents[0] == contents[1], way
            changed.add(pickle.dumps(sorted(contents[0].items())))
        assert len(changed) > 2, way


def test_the_sound_things_are_read_in_full(tmp_path):
    fuzz.make_sound(tmp_path)
    values = np.load(tmp_path / "store" / "ids.npy")
    values[-1] = 255
    np.save(tmp_path / "store" / "ids.npy", values)
    try:
        fuzz.use_store(tmp_path / "store")
    except fuzz.CentrobindError as error:
        assert "UTF-8" in str(error)
    else:
        raise AssertionError("the last byte of the last id was not read")
