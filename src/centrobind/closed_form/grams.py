"""Texts -> hashed counts of words and character n-grams, for every language, with numpy alone.

Hashed, so that a chunk of texts can be counted without having seen the others, and so that a table of fixed size and
a few lines of any language reproduce it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from scipy import sparse

BITS = 20  # a million buckets: 100,000 distinct n-grams lose one in twenty to collisions
LONGEST = 4  # characters of an n-gram
MOST_CHARACTERS = 20_000  # of one text; what lies beyond is not read
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))


def normalised(text: str) -> str:
    """Composed (NFC), case folded, runs of white space as one space, a space at both ends as the mark of a border."""
    text = unicodedata.normalize("NFC", text[:MOST_CHARACTERS]).casefold()
    return " " + " ".join(unicodedata.normalize("NFC", text).split()) + " "


def count_grams(texts: Sequence[str]) -> sparse.csr_matrix:
    """(n, 2^BITS) how often each bucket's character n-grams of 1 to LONGEST occur in each text."""
    return _counts(texts, words=False)


def count_words(texts: Sequence[str]) -> sparse.csr_matrix:
    """(n, 2^BITS) how often each bucket's words and punctuation marks occur in each text."""
    return _counts(texts, words=True)


def _counts(texts: Sequence[str], words: bool) -> sparse.csr_matrix:
    prepared = [normalised(text) for text in texts]
    lengths = np.array([len(text) for text in prepared], np.int64)
    ends = np.cumsum(lengths)
    characters = np.frombuffer("".join(prepared).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    if words:
        spans = [
            (before + match.start(), before + match.end(), row)
            for row, (text, before) in enumerate(zip(prepared, ends - lengths))
            for match in re.finditer(r"\w+|[^\w\s]", text)
        ]
        starts, stops, rows = np.array(spans, np.int64).reshape(-1, 3).T
    else:
        owner = np.repeat(np.arange(len(prepared)), lengths)
        begin = np.arange(len(characters))
        every = [(begin, begin + n) for n in range(1, LONGEST + 1)]
        inside = [stop <= ends[owner] for _, stop in every]
        starts = np.concatenate([start[keep] for (start, _), keep in zip(every, inside)])
        stops = np.concatenate([stop[keep] for (_, stop), keep in zip(every, inside)])
        rows = np.concatenate([owner[keep] for keep in inside])
    buckets = _buckets(characters, starts, stops)
    table = sparse.coo_matrix((np.ones(len(rows), np.float32), (rows, buckets)), shape=(len(prepared), 2**BITS))
    return table.tocsr()  # which adds up the same bucket of the same text


def _buckets(characters: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """A bucket for each span of characters: its polynomial modulo 2^64, from running sums, then mixed."""
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(len(characters), _BASE, np.uint64))
        undo = np.cumprod(np.full(len(characters) + 1, _INVERSE, np.uint64))
        sums = np.concatenate(
            [np.zeros(1, np.uint64), np.cumsum((characters + np.uint64(1)) * powers, dtype=np.uint64)]
        )
        value = (sums[stops] - sums[starts]) * undo[starts]
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # splitmix64, Steele et al. 2014
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        buckets: np.ndarray = ((value ^ (value >> np.uint64(31))) >> np.uint64(64 - BITS)).astype(np.int64)
    return buckets
