"""Randomness that depends on numbers and on nothing else, so that every draw can be repeated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers: (seed, step) and (seed, step, modality) never share a stream."""
    mixed = 0x9E3779B97F4A7C15
    for part in parts:  # the finaliser of splitmix64, Steele et al. 2014
        mixed = (mixed ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 27
        mixed = mixed * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Inside, torch's global draws (initial weights, dropout) follow these numbers; outside, nothing has happened."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(mix_seed(*parts))
        yield
