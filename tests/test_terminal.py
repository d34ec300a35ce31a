"""What others wrote into labels, ids and captions cannot steer the terminal that shows it."""

import sys
import unicodedata
import warnings

import numpy as np
import pytest

import centrobind as cb
from centrobind.binder.binder import build_binder
from centrobind.cli.main import main
from centrobind.cli.terminal import plain

HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "[bold]",
    "[/bold]",
    "a\nb",
    "a\rb",
    "\x9b2J",
    "\u202egnp.exe",
    "\u2028",
    "\x00",
]


def steers(character):
    """The literal twin: C0 but for nothing, DEL and C1, lone surrogates, other line ends, and turns of direction."""
    number = ord(character)
    if number < 32 or 127 <= number < 160 or 0xD800 <= number <= 0xDFFF or number in (0x2028, 0x2029):
        return True
    return unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI") or (
        number in (0x200E, 0x200F)
    )


def test_every_character_that_steers_is_written_out_and_no_other():
    for character in map(chr, range(sys.maxunicode + 1)):
        text = plain(f"a{character}b")
        if steers(character):
            assert text.isascii() and text.isprintable() and len(text) > 3, hex(ord(character))
        else:
            assert text == f"a{character}b", hex(ord(character))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with every hostile text as a label, an id and a caption, and its index."""
    folder = tmp_path_factory.mktemp("terminal")
    count = len(HOSTILE)
    texts = [f"{text} thing" for text in HOSTILE]
    samples = cb.Samples.of(
        {"text": texts, "vector": np.arange(count * 3.0).reshape(count, 3)},
        ids=[f"id {text}" for text in HOSTILE],
        label=HOSTILE,
        split=["test" if n % 2 else "train" for n in range(count)],
    )
    binder = build_binder(samples, dim=4)
    cb.write_store(folder / "store", samples)
    cb.save(binder, folder / "run" / "binder")
    cb.build_index(binder, samples, folder / "run" / "index")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "store"),
        ("search", "run", "--text", "thing", "-k", "99"),
        ("search", "run", "--text", "thing \x1b[31m", "--json"),
        ("evaluate", "run", "store", "--split", "\x1b[31m"),
        ("search", "run", "--text", "thing", "--where", "label=\x1b[31mnone"),
        ("search", "run", "--id", "\x1b[31mnone"),
        ("inspect", "\x1b[31mnone"),
    ],
)
def test_no_command_prints_what_steers(world, command, monkeypatch, capsys):
    """On a terminal: elsewhere click takes out escapes by itself. A dumb one, so that rich adds no styles of its own."""
    monkeypatch.chdir(world)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(sys, "argv", ["centrobind", *command])
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # `main` sets its own
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code in (0, 2)
    shown = "".join(capsys.readouterr())
    assert shown and not [character for character in shown if steers(character) and character != "\n"], repr(shown)
    if command == ("inspect", "store") or "99" in command:
        assert [text for text in HOSTILE if plain(text) not in shown] == []
    if "99" in command:
        assert len(shown.splitlines()) == 2 * (len(HOSTILE) + 1), "a line of its own for each hit, and only those"
