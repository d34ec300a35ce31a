"""Small data for every test. Two threads: the suite must be quick on a small machine and kind to a large one."""

import numpy as np
import pytest
import torch

from centrobind.data import Samples, assign_splits

torch.set_num_threads(1)


def mixed_samples() -> Samples:
    """60 samples in four modalities, one of each kind, with gaps; class c shows in every modality."""
    draw = np.random.default_rng(0)
    label = np.arange(60) % 3
    picture = (40 * label[:, None, None] + draw.integers(0, 40, (60, 9, 8))).astype(np.uint8)
    series = label[:, None, None] + 0.1 * draw.normal(size=(60, 12, 2))
    texts = [f"{['red', 'green', 'blue'][c]} thing number {i % 7}" for i, c in enumerate(label)]
    present = {name: draw.random(60) > 0.2 for name in ("picture", "series", "text", "vector")}
    present["vector"] |= ~np.any(list(present.values()), axis=0)
    samples = Samples.of(
        {"picture": picture, "series": series, "text": texts, "vector": label[:, None] + draw.normal(size=(60, 5))},
        present=present,
        label=label,
    )
    return assign_splits(samples)


@pytest.fixture
def mixed() -> Samples:
    return mixed_samples()
