"""docs/search.md says what the results files say, and what it shows can be typed."""

import json
import re

import typer.main

import search_page
from centrobind.cli.main import app


def test_the_tables_come_from_the_results_files():
    text = search_page.PAGE.read_text()
    assert search_page.filled(text) == text


def test_what_the_results_say_is_what_was_promised():
    found = json.loads((search_page.RESULTS / "search.json").read_text())
    assert [sorted([row["want"], *row["given"]]) for row in found["two_for_one"]] == [["image", "name", "outline"]] * 3
    for row in found["two_for_one"]:  # two modalities are better than the worse of them, and never clearly worse
        gains = [row["gain"][name]["recall@1"] for name in row["given"]]
        assert max(gain["low"] for gain in gains) > 0 and min(gain["high"] for gain in gains) > 0
    assert sum(row["after"] <= row["before"] for row in found["not"]) >= 0.9 * len(found["not"])


def test_no_write_was_lost_or_half_there():
    file = search_page.RESULTS / "index_kills.json"
    for what, part in (json.loads(file.read_text()) if file.is_file() else {}).items():
        assert part["whole"] == part["rounds"] > 0, what


def test_its_commands_and_options_exist():
    text = search_page.PAGE.read_text()
    commands = typer.main.get_command(app).commands
    options = {option for name in ("index", "search") for param in commands[name].params for option in param.opts}
    assert set(re.findall(r"^    centrobind (\w+)", text, flags=re.MULTILINE)) <= set(commands)
    assert {option for option in re.findall(r"(?<![\w-])--?[a-z]+", text) if option != "--force"} <= options
    targets = re.findall(r"^([\w-]+):", (search_page.ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"`make ([\w-]+)`", text)) <= set(targets)
