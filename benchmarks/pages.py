"""Parts of a page in docs that come from results files: what stands between <!-- name --> and <!-- /name -->."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def filled(text: str, parts: Mapping[str, str]) -> str:
    """The page with these parts put in; every one of them must have its place."""
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        assert found and closed, f"no place for {name}"
        text = before + begin + part + end + after
    return text


def fill(page: Path, parts: Mapping[str, str]) -> None:
    page.write_text(filled(page.read_text(), parts))


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]], others: str = "---:") -> str:
    """Markdown; the first column is text, the others are numbers unless `others` says how they are aligned."""
    lines = [head, ["---"] + [others] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
