from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from centrobind.evaluation.evaluate import evaluate
from centrobind.report import page as pages
from centrobind.report import plots
from centrobind.report.tables import html_table, markdown_table, terminal_table
from centrobind.types import Embeddings


def embeddings(noise, samples=40):
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(samples, 8, generator=draw)
    tensors = {name: base + noise * torch.randn(samples, 8, generator=draw) for name in ("image", "sound", "te_xt")}
    return Embeddings.of(tensors, {"sound": torch.arange(samples) % 4 > 0})


@pytest.fixture(scope="module")
def rows():
    labels = np.arange(40) % 2
    return [
        {"label": name, "metrics": evaluate(embeddings(noise), labels, resamples=50).to_dict()}
        for name, noise in (("sharp", 0.1), ("blurred & <b>", 1.0))
    ]


class Reader(HTMLParser):
    """Checks that tags are closed in order and gathers what the page would load."""

    empty = frozenset({"meta", "img", "br", "path", "use", "rect", "hr", "image", "circle"})

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.tags, self.text = [], [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action", "data")]
        if tag not in self.empty:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [v for k, v in attributes if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in self.empty:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_asks_for_nothing(rows, tmp_path):
    space = embeddings(0.3)
    colours = {row["label"]: "#d1495b" for row in rows}
    log = [{"step": s, "loss": 5 / s, "valid/mean/mrr": 1 - 1 / s} for s in range(1, 9)]
    glyph = np.eye(8, dtype=np.uint8) * 255
    pages.write_page(
        tmp_path / "r.html",
        "A <title>",
        "What it shows & more",
        [
            pages.points(["one < two"]),
            pages.table_section(rows, colours),
            pages.matrices_section(rows, space.modalities),
            pages.curves_section({row["label"]: log for row in rows}, colours),
            pages.map_section(space, ["x", "y"] * 20, most=30),
            pages.pictures_section([("<knight>", glyph, [("a", glyph, True), ("b", glyph, False)])]),
        ],
    )
    page = (tmp_path / "r.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert all(load.startswith(("data:image/png;base64,", "#")) for load in reader.loads), "nothing is fetched"
    assert "script" not in reader.tags and "url(http" not in page
    assert reader.tags.count("svg") == 4 and reader.tags.count("img") == 4 and "table" in reader.tags
    for words in ("A <title>", "blurred & <b>", "one < two", "<KNIGHT>", "✓ a"):
        assert words in reader.text, words
    assert "currentColor" in page and pages.plots.INK not in page


def test_tables_say_the_same_three_times(rows):
    mean = 100 * rows[0]["metrics"]["mean/recall@1"]
    for table in (terminal_table(rows), markdown_table(rows), html_table(rows, "c")):
        assert f"{mean:.1f}" in table and "worst" in table and "sharp" in table
    assert "**" in markdown_table(rows) and "class='best'" in html_table(rows, "c")
    lines = terminal_table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1, "every line is as long as the others: columns stand"


def test_a_number_that_is_missing_is_a_dash(rows):
    fewer = [rows[0], {"label": "x", "metrics": {"mean/recall@1": 0.5}}]
    assert "-/-" in terminal_table(fewer) and " - " in markdown_table(fewer)


def test_the_matrix_has_rows_that_ask():
    table = pages.recall_matrix({"a_to_b/recall@1": 0.25, "b_to_a/recall@1": 0.5}, ["a", "b"])
    assert table[0, 1] == 25 and table[1, 0] == 50 and np.isnan(table[0, 0])


def test_neighbours_kept_is_one_for_the_same_space_and_small_for_chance():
    z = np.random.default_rng(0).normal(size=(300, 5))
    assert pages.neighbours_kept(z, 3 * z) == 1
    assert pages.neighbours_kept(z, np.random.default_rng(1).normal(size=(300, 2))) < 0.1


@pytest.mark.parametrize("label", ["$x^2$", "US$ and C$", "$\\frac{1}{$", "a_b $ c"])
def test_a_dollar_in_a_label_is_a_dollar(label):
    """matplotlib takes what stands between two for a formula, and raises for one that is none."""
    points = np.random.default_rng(0).normal(size=(12, 2))
    assert "base64" in plots.space_map(points, {label: [label, "other"] * 6})
    assert "<svg" in plots.curves({label: ("red", [1, 2], [1, 2])}, label, label, label)
    assert "<svg" in plots.score_dots([(label, "red", {"mean": (0.5, 0.4, 0.6)})])


@pytest.mark.parametrize(
    "label",
    [
        "$5 to $10",
        "$\\foo$",
        "$\\frac{1}{0",
        "_hidden",
        "\0",
        "\ud800",
        "\x1b[31m",
        "a\nb",
        "x" * 5000,
        "<script>",
        "\u202egnp",
        "",
    ],
)
def test_a_label_of_the_data_is_drawn_as_it_is_written(label, monkeypatch):
    """And neither as a formula, nor left out, nor as an error of the library's."""
    points, labels = np.random.default_rng(0).random((6, 2)), [label, "b"] * 3
    assert plots.space_map(points, {"label": labels, label: labels}).startswith("<")
    monkeypatch.setattr(plots, "as_png", lambda figure, _: figure)
    figure = plots.space_map(points, {"label": labels})
    texts = figure.axes[0].get_legend().get_texts()
    shown = sorted(text.get_text().strip() for text in texts)
    assert len(shown) == 2 and all(not text.get_parse_math() for text in texts)
    if label in ("", "\0"):
        assert shown == ["(empty)", "b"]
    elif label.isprintable() and len(label) < 40:
        assert shown == sorted([label, "b"])
    else:
        assert all(text.isprintable() and len(text) <= 40 for text in shown)
