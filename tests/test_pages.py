"""Pages in docs say what the results files say."""

import json

import arena_page
import demo_page
import pages
import pytest
import stress
import winner

from centrobind.arena.contenders import Contender


def arena():
    return json.loads(arena_page.RESULTS.read_text())


def test_the_arena_page_comes_from_the_results():
    text = arena_page.DOCS.read_text()
    assert pages.filled(text, arena_page.parts(arena())) == text


def test_the_demo_page_and_the_readme_come_from_the_results():
    results = json.loads(demo_page.RESULTS.read_text())
    text = demo_page.DOCS.read_text()
    assert pages.filled(text, demo_page.parts(results)) == text
    text = demo_page.README.read_text()
    assert pages.filled(text, {"pitch": demo_page.pitch(results), "demo table": demo_page.short(results)}) == text


def test_what_the_arena_page_claims():
    """Two fixed anchors in hindsight beaten on two sets, all pairs on one, emoji lost to the centroid, GCCA ahead on two."""
    found, floor = arena(), json.loads(arena_page.FLOOR.read_text())
    duels = {duel["rival"]: duel for duel in found["duels"] if duel["measure"] == "mean/recall@1"}
    for how in ("trained", "frozen"):
        duel = duels[f"FABind, {how}, best anchor in hindsight"]
        assert (duel["wins"], duel["losses"]) == (2, 0)
    assert (duels["all pairs"]["wins"], duels["all pairs"]["losses"]) == (1, 0)
    lost = {name: one for name, one in duels["CentroBind"]["by_data"].items() if one["p_holm"] < 0.05}
    assert duels["CentroBind"]["losses"] == 1 and lost["emoji"]["difference"] < 0
    best = {
        name: max(row["metrics"].get("mean/recall@1", 0) for row in data["rows"])
        for name, data in found["data"].items()
    }
    assert sum(floor[name]["GCCA"]["mean/recall@1"] > best[name] for name in best) == 2
    claim = " ".join(arena_page.DOCS.read_text().split("**In short**: ")[1].split("\n\n")[0].split())
    assert "on two and all pairs on one, and loses to neither; the plain centroid beats it on emoji" in claim


def test_the_arena_is_whole():
    """Six data sets, every objective that fits them, three seeds each, and nothing failed."""
    found = arena()
    assert len(found["data"]) == 6 and not found["failures"]
    for name, data in found["data"].items():
        for row in data["rows"]:
            if "seeds" in row:
                assert row["seeds"] == 3, (name, row["label"])
            else:
                assert Contender(**row["contender"]).hindsight or "exactly three" in row["why"], (name, row["label"])


def test_the_stress_page_comes_from_its_rows():
    rows, text = json.loads(stress.RESULTS.read_text()), stress.PAGE.read_text()
    assert pages.filled(text, {name: stress.table(rows, name) for name in stress.FAMILIES}) == text
    assert all((stress.PLOTS / f"{name}.png").is_file() for name in stress.FAMILIES)


def test_the_experiments_page_comes_from_its_rows_and_names_every_idea():
    rows, text = json.loads(winner.RESULTS.read_text()), winner.PAGE.read_text()
    assert pages.filled(text, {"ideas": winner.page(rows)}) == text
    prose = text.split("<!-- /ideas -->")[1]
    assert [name for name in {key.split("/")[0] for key in rows} if f"`{name}`" not in prose] == []


def test_a_part_without_a_place_is_no_small_matter():
    with pytest.raises(AssertionError, match="no place for x"):
        pages.filled("<!-- y -->\n\n<!-- /y -->", {"x": "1"})
    assert pages.filled("a\n<!-- y -->\nold\n<!-- /y -->\nb", {"y": "new"}) == "a\n<!-- y -->\nnew\n<!-- /y -->\nb"


def test_rows_of_a_stress_cell_are_chosen_on_valid():
    cell = {"valid": {"mrr": 0.2, "native": 0.9}, "test": {"mean": 0.5}}
    other = {"valid": {"mrr": 0.3, "native": 0.1}, "test": {"mean": 0.1}}
    rows = {"quality/1.0/GRAM/0.07/0": cell, "quality/1.0/GRAM/0.2/0": other, "quality/1.0/GRAM/0.2/1": other}
    assert stress.chosen(rows, "quality", 1.0, "GRAM") == (0.2, [{"mean": 0.1}, {"mean": 0.1}])
    rows = {key.replace("quality/1.0", "xor/2"): row for key, row in rows.items()}
    assert stress.chosen(rows, "xor", 2, "GRAM") == (0.07, [{"mean": 0.5}])
    assert stress.chosen({}, "xor", 2, "GRAM") is None


def test_gaps_are_where_they_should_be():
    whole, holes = stress.gapped(0.0, 0, ("train", "valid")), stress.gapped(0.5, 0, ("train", "valid"))
    assert whole.present.all() and holes.part("test").present.all()
    assert 0.4 < holes.part("train").present.mean() < 0.65
    assert (whole.part("test").batch([3]).inputs["m1"] == holes.part("test").batch([3]).inputs["m1"]).all()
    copies = stress.copied(2, 0)
    assert copies.modalities == ("m0", "m1", "m2", "copy0", "copy1")
