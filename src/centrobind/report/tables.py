"""One table, three ways to show it: on a terminal, in Markdown, in a page. Numbers come in, text goes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from centrobind.columns import aligned
from centrobind.evaluation.scores import parted, unquoted

# A row of results: {"label": "all pairs", "metrics": {"mean/recall@1": 0.4, ...}, ...}
Row = Mapping[str, Any]
# A column: its heading, and the metrics it shows, or a function that makes its text from a row.
Column = tuple[str, Sequence[str] | Callable[[Row], str]]


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Every column: mean, worst pair, each direction as recall@1 and @10; then probes."""
    metrics = rows[0]["metrics"]
    heads = {"mean": "mean", "worst": "worst pair"}
    for key in metrics:
        if key.endswith("/recall@1") and (pair := parted(key)):
            heads[key.removesuffix("/recall@1")] = f"{pair[0]} → {pair[1]}"
    recall = [(head, [f"{start}/recall@1", f"{start}/recall@10"]) for start, head in heads.items()]
    probe = [key for key in metrics if key.startswith("probe/") and key != "probe/majority"]
    return [*recall, *((f"probe {unquoted(key.removeprefix('probe/'))}", [key]) for key in probe)]


def cell(row: Row, names: Sequence[str] | Callable[[Row], str]) -> str:
    """Percents with one decimal, "36.1 / 74.0" for two of them; a dash where a number is missing."""
    if callable(names):
        return names(row)
    values = [row["metrics"].get(name) for name in names]
    return " / ".join("-" if value is None else f"{100 * value:.1f}" for value in values)


def is_best(row: Row, rows: Sequence[Row], names: Sequence[str] | Callable[[Row], str]) -> bool:
    """Whether no row has a higher first number in this column; ties are all best."""
    if callable(names) or names[0] not in row["metrics"]:
        return False
    return row["metrics"][names[0]] == max(other["metrics"].get(names[0], float("-inf")) for other in rows)


def terminal_table(rows: Sequence[Row]) -> str:
    """Aligned columns, headings over two lines so that nothing is wrapped; percents."""
    columns = columns_of(rows)
    heads = [("", "")] + [_two_lines(head) for head, _ in columns]
    body = [[row["label"]] + [cell(row, names).replace(" / ", "/") for _, names in columns] for row in rows]
    lines = aligned([[head[0] for head in heads], [head[1] for head in heads], *body]).split("\n")
    return "\n".join([*lines[:2], "-" * len(lines[0]), *lines[2:]])


def markdown_table(rows: Sequence[Row], columns: Sequence[Column] | None = None) -> str:
    """The same in Markdown; the highest first number of each column is bold."""
    columns = columns_of(rows) if columns is None else columns
    lines = ["| | " + " | ".join(head for head, _ in columns) + " |", "|---|" + "---:|" * len(columns)]
    for row in rows:
        cells = []
        for _, names in columns:
            text = cell(row, names)
            cells.append(f"**{text}**" if is_best(row, rows, names) else text)
        lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def html_table(rows: Sequence[Row], caption: str, columns: Sequence[Column] | None = None) -> str:
    """The same for a page; the highest of each column is bold."""
    columns = columns_of(rows) if columns is None else columns
    head = "".join(f"<th scope='col'>{escape(text)}</th>" for text, _ in columns)
    body = []
    for row in rows:
        cells = []
        for _, names in columns:
            mark = " class='best'" if is_best(row, rows, names) else ""
            cells.append(f"<td{mark}>{escape(cell(row, names))}</td>")
        body.append(f"<tr><th scope='row'>{escape(row['label'])}</th>{''.join(cells)}</tr>")
    return (
        f"<div class='wide'><table><caption>{escape(caption)}</caption><thead><tr><td></td>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _two_lines(head: str) -> tuple[str, str]:
    first, _, rest = head.partition(" ")
    if "→" in head:
        source, _, target = head.partition(" → ")
        return source, f"→ {target}"
    return (first, rest) if rest else ("", first)
