"""docs/robustness.md says what the results files say."""

import re

from chaos import page


def test_the_tables_come_from_the_results_files():
    text = page.PAGE.read_text()
    assert page.filled(text) == text


def test_what_the_results_files_say_is_what_was_promised():
    found = {
        name: page.json.loads((page.RESULTS / f"{name}.json").read_text()) for name in ("chaos", "fuzz", "big_store")
    }
    assert found["chaos"]["training"]["rounds"] >= 30 and found["fuzz"]["cases"] >= 10_000
    for part in ("training", "every point", "import", "every point of an import"):
        assert found["chaos"][part]["identical"] == found["chaos"][part]["rounds"] > 0
    assert [found["fuzz"][key] for key in ("crashed", "unpickled", "outside")] == [0, 0, 0]
    assert found["big_store"]["store_gb"] >= 4 and found["big_store"]["same_weights"]
    assert found["big_store"]["peak_gb"]["store"]["resident"] <= found["big_store"]["limit_gb"] <= 1.5
    assert found["big_store"]["store_to_memory"] >= 0.9


def test_its_commands_exist():
    targets = re.findall(r"^(\w+):", (page.ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"`make (\w+)`", page.PAGE.read_text())) <= set(targets)
    for script in re.findall(r"`python (\S+\.py)`", page.PAGE.read_text()):
        assert (page.ROOT / script).is_file()
