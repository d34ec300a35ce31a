"""One table, three ways to show it: on a terminal, in Markdown, in a page. Numbers come in, text goes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from centrobind.evaluation.bounds import Bound
from centrobind.evaluation.findings import Diagnosis

# A row of results: {"label": "all pairs", "metrics": {"mean/recall@1": 0.4, ...}, ...}
Row = Mapping[str, Any]
# A column: its heading, and the metrics it shows, or a function that makes its text from a row.
Column = tuple[str, Sequence[str] | Callable[[Row], str]]


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Every column: mean, worst pair, each direction as recall@1 and @10; then probes."""
    metrics = rows[0]["metrics"]
    pairs = [key.removesuffix("/recall@1") for key in metrics if key.endswith("/recall@1")]
    pairs = ["mean", "worst", *(pair for pair in pairs if pair not in ("mean", "worst"))]
    heads = {"mean": "mean", "worst": "worst pair"}
    recall = [
        (heads.get(pair, pair.replace("_to_", " → ")), [f"{pair}/recall@1", f"{pair}/recall@10"]) for pair in pairs
    ]
    probe = [key for key in metrics if key.startswith("probe/") and key != "probe/majority"]
    return recall + [(f"probe {key.removeprefix('probe/')}", [key]) for key in probe]


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


CLAIMS = {
    "intra": "kept of itself (intra)",
    "inter": "shared by pairs (inter)",
    "anchor": "shared with the anchor",
    "others": "shared with the others",
}


def diagnosis_text(found: Diagnosis) -> str:
    """Bounds with their ceiling, then each modality's part in the anchor, then findings; for a terminal."""
    rows = [["in nats", "", "95 % interval", "", "ceiling", "temperature"]]
    for kind, title in CLAIMS.items():
        single = getattr(found.bounds, kind)
        if kind in found.bounds.mean:
            rows.append(_bound_cells(title, found.bounds.mean[kind]))
            names = {key: key if isinstance(key, str) else " with ".join(key) for key in single}
            rows += [_bound_cells(f"  {names[key]}", bound) for key, bound in single.items()]
    parts = [["", "of its variance", "of its gradient", "leak", "slack (nats)"]]
    for name, share in found.dominance.items():
        leak, slack = found.leak.get(name), found.slack.get(name)
        cells = [f"{share.variance:.0%}", f"{share.gradient:.0%}"]
        cells += ["-" if leak is None else f"{leak:.0%}", "-" if slack is None else f"{slack.slack:.2f}"]
        parts.append([name, *cells])
    whose = {"anchor": "The anchor it was trained with"}.get(
        found.trained_on, "A centroid (not what it was trained with)"
    )
    head = f"{found.samples} samples, temperature {found.temperature:.3g}: bounds on mutual information"
    blocks = [head, aligned(rows), whose, aligned(parts), "Findings"]
    said = [f"  - {finding}" for finding in found.findings] or ["  nothing looks wrong"]
    return "\n\n".join([*blocks, "\n".join(said)])


def _bound_cells(title: str, bound: Bound) -> list[str]:
    shown = f"[{bound.low:.2f}, {bound.high:.2f}]"
    return [title, f"{bound.nats:.2f}", shown, _bar(bound), f"{bound.ceiling:.2f}", f"{bound.temperature:.2g}"]


def _bar(bound: Bound, width: int = 24) -> str:
    """How far the bound reaches, and at its right end the ceiling that it cannot pass."""
    full = round(width * min(1.0, max(0.0, bound.nats / bound.ceiling))) if bound.ceiling > 0 else 0
    return "█" * full + "·" * (width - full) + "|"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(text.rjust(width) if i else text.ljust(width) for i, (text, width) in enumerate(zip(row, widths)))
        for row in rows
    )


def _two_lines(head: str) -> tuple[str, str]:
    first, _, rest = head.partition(" ")
    if "→" in head:
        source, _, target = head.partition(" → ")
        return source, f"→ {target}"
    return (first, rest) if rest else ("", first)


def print_inspection(store: str | Path, found: Any) -> None:
    """What `inspect_samples` found, to the terminal."""
    console = Console()
    table = Table(title=f"{store}: {found.samples} samples", title_justify="left")
    for head in ("modality", "kind", "shape", "type", "present", "missing"):
        table.add_column(head, justify="left" if head in ("modality", "kind") else "right")
    for name, about in found.modalities.items():
        shape = " x ".join(map(str, about["shape"])) or "text"
        table.add_row(name, about["kind"], shape, about["dtype"], str(about["present"]), f"{about['missing']:.1%}")
    console.print(table)
    for title, counts in (("splits", found.splits), ("labels", found.labels), ("together", found.together)):
        if counts:
            shown = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:12])
            more = f", and {len(counts) - 12} more" if len(counts) > 12 else ""
            console.print(f"[bold]{title}[/bold]: {shown}{more}", highlight=False)
    console.print("[bold]findings[/bold]:" + ("" if found.findings else " nothing looks wrong"))
    for finding in found.findings:
        console.print(f"  - {finding}", highlight=False, markup=False)


def print_needs(path: Path, needs: list[dict[str, Any]], chunk: int | None) -> None:
    """The rows of a memory plan, to the terminal."""
    table = Table(title=f"{path}: memory of tensors in MB, by batch size", title_justify="left")
    for head in needs[0]:
        table.add_column(head.replace("_", " "), justify="right")
    for need in needs:
        size, *rest = need.values()
        table.add_row(str(size), *(f"{value / 1e6:,.1f}" for value in rest))
    console = Console()
    console.print(table)
    at_a_time = "" if chunk is None else f", {chunk} of them at a time in the towers"
    console.print(
        f"Measured on small batches and scaled{at_a_time}. python and its libraries need about 400 MB more, and so do "
        "data that are not read from a store.",
        highlight=False,
    )
