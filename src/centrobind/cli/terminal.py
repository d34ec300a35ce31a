"""What the commands print. Labels, ids and names are data of somebody else: none of it may steer a terminal."""

from __future__ import annotations

import unicodedata

import typer

TURNS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # reorder what is around them
STEERS = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, lone surrogates, line and paragraph separators


def say(text: object = "", *, err: bool = False) -> None:
    """Print to the terminal, line breaks kept, everything else that would steer it written out."""
    typer.echo("\n".join(plain(line) for line in str(text).split("\n")), err=err)


def plain(text: str) -> str:
    """One line of text as itself, but for characters that would steer a terminal: those as \\x1b, \\n or \\u202e."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii") if _steers(character) else character for character in text
    )


def _steers(character: str) -> bool:
    return character in TURNS or unicodedata.category(character) in STEERS
