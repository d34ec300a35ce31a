"""What in the test suite takes how long: docs/testing.md, from one run of it.

python benchmarks/suite.py              runs the suite as `make test` does, writes benchmarks/results/suite.json
python benchmarks/suite.py --page       only the page again
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pages

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results" / "suite.json", ROOT / "docs" / "testing.md"
COMMAND = ["-m", "pytest", "-n", "2", "--dist", "loadfile"]
SHOWN = 15


def run() -> dict[str, Any]:
    """Seconds by test file, as the suite's own report has them, and of the whole."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        began = time.monotonic()
        done = subprocess.run([sys.executable, *COMMAND, f"--junitxml={report}"], cwd=ROOT, check=False)
        seconds = time.monotonic() - began
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    by_file: Counter[str] = Counter()
    for case in cases:
        by_file[case.attrib["classname"].replace(".", "/") + ".py"] += float(case.attrib["time"])
    files = {name: round(value, 1) for name, value in by_file.most_common()}
    return {"passed": done.returncode == 0, "tests": len(cases), "seconds": round(seconds), "files": files}


def parts(results: dict[str, Any]) -> dict[str, str]:
    """What docs/testing.md says in numbers."""
    files = list(results["files"].items())
    lines = [[f"`{name}`", f"{seconds:.0f}"] for name, seconds in files[:SHOWN]]
    lines.append([f"the other {len(files) - SHOWN} files", f"{sum(seconds for _, seconds in files[SHOWN:]):.0f}"])
    whole = f"{results['tests']} tests in {results['seconds']} s, two processes on two cores."
    return {"whole": whole, "files": pages.table(["file", "seconds in one process"], lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="only the page again")
    if not parser.parse_args().page:
        RESULTS.write_text(json.dumps(run(), indent=1) + "\n")
    pages.fill(DOCS, parts(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
