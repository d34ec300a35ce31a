"""docs/search.md says what the results files say, and what it shows can be typed."""

import json
import re

import typer.main

import search_page
from centrobind.cli import app


def test_the_tables_come_from_the_results_files():
    text = search_page.PAGE.read_text()
    assert search_page.filled(text) == text


def test_what_the_results_say_is_what_was_promised():
    kills = json.loads((search_page.RESULTS / "index_kills.json").read_text())
    assert all(part["whole"] == part["rounds"] >= 20 for part in kills.values()) and len(kills) == 3
    found = json.loads((search_page.RESULTS / "search.json").read_text())
    assert [sorted([row["want"], *row["given"]]) for row in found["two_for_one"]] == [["image", "name", "outline"]] * 3


def test_its_commands_and_options_exist():
    text = search_page.PAGE.read_text()
    commands = typer.main.get_command(app).commands
    options = {option for name in ("index", "search") for param in commands[name].params for option in param.opts}
    assert set(re.findall(r"^    centrobind (\w+)", text, flags=re.MULTILINE)) <= set(commands)
    assert {option for option in re.findall(r"(?<![\w-])--?[a-z]+", text) if option != "--force"} <= options
    targets = re.findall(r"^([\w-]+):", (search_page.ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"`make ([\w-]+)`", text)) <= set(targets)
