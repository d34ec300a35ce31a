"""Results as text for a terminal: a diagnosis, an inspection of data, a plan of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from centrobind.cli.terminal import plain
from centrobind.columns import aligned
from centrobind.evaluation.bounds import Bound
from centrobind.evaluation.findings import Diagnosis

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


def print_inspection(store: str | Path, found: Any) -> None:
    """What `inspect_samples` found, to the terminal."""
    console = Console()
    table = Table(title=escape(f"{plain(str(store))}: {found.samples} samples"), title_justify="left")
    for head in ("modality", "kind", "shape", "type", "present", "missing"):
        table.add_column(head, justify="left" if head in ("modality", "kind") else "right")
    for name, about in found.modalities.items():
        shape = " x ".join(map(str, about["shape"])) or "text"
        table.add_row(name, about["kind"], shape, about["dtype"], str(about["present"]), f"{about['missing']:.1%}")
    console.print(table)
    for title, counts in (("splits", found.splits), ("labels", found.labels), ("together", found.together)):
        if counts:
            shown = ", ".join(f"{plain(str(name))} {count}" for name, count in list(counts.items())[:12])
            more = f", and {len(counts) - 12} more" if len(counts) > 12 else ""
            console.print(f"[bold]{title}[/bold]: {escape(shown)}{more}", highlight=False)
    console.print("[bold]findings[/bold]:" + ("" if found.findings else " nothing looks wrong"))
    for finding in found.findings:
        console.print(f"  - {plain(str(finding))}", highlight=False, markup=False)


def print_needs(path: Path, needs: list[dict[str, Any]], chunk: int | None) -> None:
    """The rows of a memory plan, to the terminal."""
    table = Table(title=escape(f"{plain(str(path))}: memory of tensors in MB, by batch size"), title_justify="left")
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
