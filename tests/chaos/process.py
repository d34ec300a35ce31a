"""A python of its own, for what would leave marks on the one that runs the suite: forks, limits, audit hooks."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]


def python(*arguments: object) -> str:
    """What it prints; AssertionError with what it complained of if it fails."""
    paths = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout
