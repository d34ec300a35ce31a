"""Text in columns, for terminals."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(text.rjust(width) if i else text.ljust(width) for i, (text, width) in enumerate(zip(row, widths)))
        for row in rows
    )


def shortened(text: str, width: int) -> str:
    """At most `width` characters, an ellipsis for the rest."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"
