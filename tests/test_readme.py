"""The README is run, not only read: its code, its output, its table, its commands, its links."""

import ast
import contextlib
import io
import re
from pathlib import Path

import pytest
import typer.main
import yaml

from centrobind.cli.main import app
from centrobind.training.config import check_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```\n(?:\n((?:    [^\n]*\n)+))?", README, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_runs_and_prints_what_stands_below_it(number):
    code, expected = BLOCKS[number]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, f"README block {number}", "exec"), {"__name__": "readme"})
    if expected:
        told, came = ast.literal_eval(expected.strip()), ast.literal_eval(printed.getvalue().strip())
        # Another processor rounds otherwise and 200 steps carry that along: 0.05 is far below what a reader reads.
        assert came == (pytest.approx(told, abs=0.05) if isinstance(told, dict) else told)
    else:
        assert printed.getvalue() == ""


def test_there_is_code_to_run():
    assert len(BLOCKS) >= 3 and sum(bool(expected) for _, expected in BLOCKS) >= 2


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_commands_exist():
    commands = typer.main.get_command(app).commands
    told = re.findall(r"^    centrobind (\w+)", README, flags=re.MULTILINE)
    assert told and set(told) <= set(commands)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"^    make (\w+)", README, flags=re.MULTILINE)) <= set(targets)


def test_the_yaml_is_a_config():
    block = re.search(r"\n((?:    \w+: .*\n){3,})", README)[1]
    assert check_config(yaml.safe_load(block)).objective.name == "centrobind"


def test_every_page_is_reached_from_the_readme():
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        for link in re.findall(r"\]\(([\w/]+\.md)[)#]", page.read_text()):
            found = (page.parent / link).resolve()
            if found not in reached:
                reached.add(found)
                ahead.append(found)
    assert set((ROOT / "docs").glob("*.md")) <= reached


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), (page.name, link)


def test_every_objective_is_in_the_docs():
    from centrobind.objectives.table import OBJECTIVES

    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "objectives.md").read_text(), flags=re.MULTILINE)
    assert rows == list(OBJECTIVES)
