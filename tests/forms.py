"""The forms of InfoNCE behind one signature, that of dense_infonce."""

from centrobind.objectives.batched_infonce import batched_infonce
from centrobind.objectives.comparison import ALONE, Comparison
from centrobind.objectives.tiled_infonce import tiled_infonce


def compared(has_q, has_k, *, pairs, groups=None, first=0, ranks=ALONE, memory=0):
    return Comparison(has_q, has_k, tuple(pairs), has_k.shape[1], groups, first, ranks, memory)


def tiled(query, key, has_q, has_k, tau, **options):
    """Sums over the positives."""
    comparison = compared(has_q, has_k, **options)
    return tiled_infonce(query, key, tau, comparison) * comparison.count


def batched(query, key, has_q, has_k, tau, **options):
    """As infonce takes it: by tiles where logits reach too far."""
    comparison = compared(has_q, has_k, **options)
    means = batched_infonce(query, key, tau, comparison)
    return (tiled_infonce(query, key, tau, comparison) if means is None else means) * comparison.count
