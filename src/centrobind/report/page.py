"""One self-contained HTML page about a run: no script, no request, readable in light and dark, by eye and ear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from centrobind.evaluation.scores import joined
from centrobind.files import write_atomically
from centrobind.report import plots
from centrobind.report.tables import Row, html_table
from centrobind.types import Embeddings


def write_page(path: Path, title: str, lead: str, sections: Sequence[str]) -> None:
    """Put sections into a page."""
    style = files("centrobind").joinpath("report", "page.css").read_text(encoding="utf-8")
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f"<h1>{escape(title)}</h1><p class='lead'>{escape(lead)}</p>{''.join(sections)}</body></html>\n"
    )
    write_atomically(path, page.encode())


def section(heading: str, *parts: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{''.join(parts)}</section>"


def points(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def paragraph(text: str, kind: str = "") -> str:
    return f"<p class='{kind}'>{escape(text)}</p>" if kind else f"<p>{escape(text)}</p>"


def figure(picture: str, caption: str = "") -> str:
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure class='wide'>{picture}{said}</figure>"


def table_section(rows: Sequence[Row], colours: Mapping[str, str]) -> str:
    """The dots first, because most people would rather look than read; the table below has everything."""
    dots = [
        (
            row["label"],
            colours[row["label"]],
            {
                name: tuple(row["metrics"][f"{key}/recall@1{end}"] * 100 for end in ("", "/low", "/high"))
                for name, key in (("mean of all pairs", "mean"), ("worst pair", "worst"))
            },
        )
        for row in rows
    ]
    caption = "Test split, in %: recall@1 / recall@10 of each direction, then accuracy of linear probes"
    return section("Who finds the right match?", figure(plots.score_dots(dots)), html_table(rows, caption))


def matrices_section(rows: Sequence[Row], modalities: Sequence[str]) -> str:
    tables = {row["label"]: recall_matrix(row["metrics"], modalities) for row in rows}
    note = "Recall@1 in %, rows ask, columns answer. For a fixed anchor, look at the pair that it is not part of."
    return section("Every direction", figure(plots.retrieval_matrices(modalities, tables), note))


def recall_matrix(metrics: Mapping[str, float], modalities: Sequence[str]) -> np.ndarray:
    """(M, M) recall@1 in percent, NaN where there is none."""
    return np.array([[100 * metrics.get(f"{joined(a, b)}/recall@1", np.nan) for b in modalities] for a in modalities])


def curves_section(logs: Mapping[str, Sequence[Mapping[str, Any]]], colours: Mapping[str, str]) -> str:
    """Loss and validation MRR over steps."""
    pictures = []
    for key, title, up in (
        ("loss", "Loss while training", "nats"),
        ("valid/mean/mrr", "Retrieval on the validation split", "mean reciprocal rank"),
    ):
        series: dict[str, tuple[str, list[float], list[float]]] = {}
        for label, records in logs.items():
            points = [(record["step"], record[key]) for record in records if key in record]
            if points:
                series[label] = (colours[label], [step for step, _ in points], [value for _, value in points])
        if series:
            pictures.append(figure(plots.curves(series, title, "step", up)))
    note = (
        "Losses of different objectives do not compare: a centroid that contains its target modality is easy to match."
    )
    return section("How they learned", "<div class='beside'>", *pictures, "</div>", paragraph(note, "note"))


def map_section(
    embeddings: Embeddings, labels: Sequence[str], *, most: int = 500, label_title: str = "label", seed: int = 0
) -> str:
    """A 2-D map of up to `most` samples in all modalities, and how far it can be trusted."""
    picked = np.linspace(0, len(embeddings) - 1, min(most, len(embeddings))).astype(int)
    some = embeddings.take(picked)
    there = some.present.numpy()
    z = some.z.numpy()[there]
    modality = np.repeat(np.array(some.modalities)[:, None], there.shape[1], axis=1)[there]
    label = np.repeat(np.asarray(labels)[picked][None], there.shape[0], axis=0)[there]
    points = TSNE(perplexity=min(30, max(2, len(z) // 4)), init="pca", random_state=seed, n_jobs=2).fit_transform(z)
    kept = neighbours_kept(z, points)
    note = (
        f"{len(picked)} test samples, each once per modality (t-SNE). A map in two dimensions lies: it keeps "
        f"{kept:.0%} of the ten nearest neighbours of the real space."
    )
    return section("The space", figure(plots.space_map(points, {"modality": modality, label_title: label}), note))


def neighbours_kept(space: np.ndarray, points: np.ndarray, k: int = 10) -> float:
    """The share of each point's k nearest neighbours in the space that are also its nearest on the map."""
    k = min(k, len(space) - 1)
    near = [NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False) for x in (space, points)]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(*near)]))


# A query, its own picture, and what was found: names, pictures, and whether they are right.
Asked = tuple[str, np.ndarray, Sequence[tuple[str, np.ndarray, bool]]]


def pictures_section(found: Sequence[Asked]) -> str:
    """For each (query, its own picture, [(name, picture, right)]): what was found, right and wrong marked."""
    cells = []
    for query, truth, hits in found:
        cells.append(f"<div class='asked'>{escape(query.upper())}</div>")
        cells.append(_glyph("truth", "the right one", query, truth))
        for name, picture, right in hits:
            mark = "✓ " if right else ""
            cells.append(_glyph("right" if right else "wrong", mark + name, name, picture))
    note = "First the right answer in blue, then the five test pictures nearest to the name, the right one in green."
    return section("Ask in words", paragraph(note, "note"), f"<div class='found'>{''.join(cells)}</div>")


def _glyph(kind: str, caption: str, name: str, picture: np.ndarray) -> str:
    image = plots.glyph_png(picture, escape(f"{name} ({kind})"))
    return f"<figure class='{kind}'>{image}<figcaption>{escape(caption)}</figcaption></figure>"
