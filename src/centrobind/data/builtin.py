"""Data that needs no download: `glyphs`, real and good to look at, and `synthetic`, with a known answer."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from centrobind.data.batches import assign_splits
from centrobind.data.samples import Samples
from centrobind.errors import DataError

IMAGE_SIZE = 32
OUTLINE_POINTS = 64
# Chosen, before anything was trained, so that the characters the README names fall into the test split.
GLYPH_SPLIT_SEED = 250


def glyphs() -> Samples:
    """Every character of the font that matplotlib ships: its picture, its outline and its name.

    About 5,570 samples (the exact number follows Python's Unicode version): `image` (32, 32) uint8, `outline`
    (64, 3) points x, y in em and a pen-up flag, `name` the Unicode name in lower case; label = script. Marks,
    spaces and control characters are left out. Characters drawn alike share a group, so that no picture of
    the training split comes back in the test split. Split 70/10/20. Takes about 2 seconds.
    """
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font, LoadFlags
    from matplotlib.path import Path as Outline
    from PIL import Image, ImageDraw, ImageFont

    path = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font, pen = FT2Font(str(path)), ImageFont.truetype(str(path), 22)
    font.set_size(64, 72)  # points on a 72 dpi page: one em is 64 units
    images, outlines, names, scripts, ids = [], [], [], [], []
    for code, glyph in sorted(font.get_charmap().items()):
        name = unicodedata.name(chr(code), None)
        if name is None or unicodedata.category(chr(code))[0] in "MZC":
            continue
        font.load_glyph(glyph, flags=LoadFlags.NO_HINTING)
        points, moves = font.get_path()
        if len(points) == 0:
            continue
        images.append(_picture(chr(code), pen, Image, ImageDraw))
        outlines.append(_outline([np.asarray(polygon) / 64 for polygon in Outline(points, moves).to_polygons()]))
        names.append(name.lower())
        scripts.append(_script(chr(code), name))
        ids.append(f"U+{code:04X}")
    samples = Samples.of(
        {"image": np.stack(images), "outline": np.stack(outlines), "name": names},
        ids=ids,
        label=scripts,
        group=_alike([image.tobytes() for image in images], [outline.tobytes() for outline in outlines]),
    )
    return assign_splits(samples, seed=GLYPH_SPLIT_SEED)


def _alike(*looks: list[bytes]) -> list[int]:
    """One number for all samples that share any of their looks, directly or through others."""
    leader = list(range(len(looks[0])))

    def lead(index: int) -> int:
        while leader[index] != index:
            leader[index] = index = leader[leader[index]]
        return index

    for look in looks:
        first: dict[bytes, int] = {}
        for index, key in enumerate(look):
            leader[lead(index)] = lead(first.setdefault(key, index))
    return [lead(index) for index in range(len(leader))]


def _picture(character: str, pen: Any, image: Any, draw: Any) -> np.ndarray:
    """(32, 32) uint8, white on black, centred sideways, on a common baseline unless it would not fit."""
    left, top, right, bottom = pen.getbbox(character, anchor="ls")
    width, height = max(right - left, 1), max(bottom - top, 1)
    side = max(IMAGE_SIZE, width, height)
    x = (side - width) // 2 - left
    baseline = min(max(int(side * 0.72), -top), side - bottom)
    canvas = image.new("L", (side, side))
    draw.Draw(canvas).text((x, baseline), character, fill=255, font=pen, anchor="ls")
    return np.asarray(canvas if side == IMAGE_SIZE else canvas.resize((IMAGE_SIZE, IMAGE_SIZE), image.LANCZOS))


def _outline(contours: list[np.ndarray]) -> np.ndarray:
    """(64, 3) float32 from closed polygons in em: points at equal distances along all of them, centred sideways, and
    1 where the pen is put down anew."""
    corners = np.concatenate(contours)
    steps = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    ends = np.cumsum([len(contour) for contour in contours])
    steps[ends[:-1] - 1] = 0  # from the end of one contour to the start of the next the pen is up
    walked = np.concatenate([[0], np.cumsum(steps)])
    at = (np.arange(OUTLINE_POINTS) + 0.5) / OUTLINE_POINTS * walked[-1]
    contour = np.searchsorted(walked[ends - 1], at)
    corner = np.clip(np.searchsorted(walked, at, side="right"), 1, len(corners) - 1)
    share = (at - walked[corner - 1]) / np.maximum(steps[corner - 1], 1e-12)
    points = corners[corner - 1] + share[:, None] * (corners[corner] - corners[corner - 1])
    points[:, 0] -= (corners[:, 0].min() + corners[:, 0].max()) / 2
    pen_down = np.diff(contour, prepend=-1) > 0
    return np.concatenate([points, pen_down[:, None]], axis=1).astype(np.float32)


SCRIPTS = {
    *("LATIN", "GREEK", "CYRILLIC", "ARABIC", "CANADIAN", "GEORGIAN", "HEBREW", "ARMENIAN", "LAO", "TIFINAGH"),
    *("NKO", "LISU", "OGHAM", "COPTIC", "BRAILLE"),
}
CATEGORIES = {"S": "SYMBOL", "P": "PUNCTUATION", "N": "NUMBER", "L": "OTHER LETTER"}


def _script(character: str, name: str) -> str:
    word = name.split()[0]
    if word in SCRIPTS:
        return word
    category = unicodedata.category(character)
    return {"Sm": "MATHEMATICS", "Lm": "MODIFIER"}.get(category, CATEGORIES[category[0]])


def synthetic(
    samples: int = 4000,
    modalities: int = 3,
    *,
    classes: int = 10,
    latent: int = 8,
    width: int = 32,
    private: int = 4,
    noise: float | Sequence[float] = 0.3,
    shared_nuisance: Mapping[tuple[int, int], int] | None = None,
    missing: float | Sequence[float] = 0.0,
    seed: int = 0,
) -> Samples:
    """Modalities of a common Gaussian-mixture latent, X_m = g_m(Z, private_m, nuisance) + noise_m.

    g_m is a random one-hidden-layer network, `private` the number of directions only one modality sees,
    `shared_nuisance` {(0, 1): 4} gives modalities 0 and 1 four common directions that say nothing of the
    class, `noise` and `missing` may differ by modality. Label = mixture component. Modalities are m0, m1, ...
    Raises DataError for values out of range.
    """
    noises, gaps = _each(noise, modalities, "noise"), _each(missing, modalities, "missing")
    if samples < 10 or modalities < 2 or classes < 2 or any(not 0 <= gap < 1 for gap in gaps):
        raise DataError(
            "synthetic needs samples >= 10, modalities >= 2, classes >= 2 and 0 <= missing < 1, got "
            f"{samples}, {modalities}, {classes} and {gaps}"
        )
    draw = np.random.default_rng(seed)
    label = draw.integers(classes, size=samples)
    z = 1.5 * draw.normal(size=(classes, latent))[label] + draw.normal(size=(samples, latent))
    nuisance = {pair: draw.normal(size=(samples, size)) for pair, size in (shared_nuisance or {}).items()}
    arrays = {}
    for m in range(modalities):
        common = [values for pair, values in nuisance.items() if m in pair]
        seen = np.concatenate([z, draw.normal(size=(samples, private)), *common], axis=1)
        arrays[f"m{m}"] = _random_network(seen, width, draw) + noises[m] * draw.normal(size=(samples, width))
    present = _present(samples, gaps, draw)
    made = Samples.of(arrays, present={f"m{m}": present[m] for m in range(modalities)}, label=label)
    return assign_splits(made, seed=seed)


def xor(samples: int = 4000, *, bits: int = 8, width: int = 32, noise: float = 0.1, seed: int = 0) -> Samples:
    """Three modalities of which any two are independent: c = a XOR b bit by bit. Label = first bit of c.

    No pairwise or centroid objective can align them; a joint one can (Saporta et al. 2024, section 5.1).
    """
    draw = np.random.default_rng(seed)
    a, b = draw.integers(0, 2, (2, samples, bits))
    c = a ^ b
    arrays = {
        name: _random_network(2.0 * bit - 1, width, draw) + noise * draw.normal(size=(samples, width))
        for name, bit in (("a", a), ("b", b), ("c", c))
    }
    return assign_splits(Samples.of(arrays, label=c[:, 0]), seed=seed)


def _each(value: float | Sequence[float], modalities: int, what: str) -> list[float]:
    values = list(value) if isinstance(value, Sequence) else [value] * modalities
    if len(values) != modalities:
        raise DataError(f"{what}: expected one value or {modalities}, one per modality, got {len(values)}")
    return values


def _random_network(x: np.ndarray, width: int, draw: np.random.Generator) -> np.ndarray:
    """One hidden tanh layer with random weights, outputs of unit variance."""
    hidden = np.tanh(x @ draw.normal(size=(x.shape[1], 2 * width)) / np.sqrt(x.shape[1]))
    out = hidden @ draw.normal(size=(2 * width, width))
    standard: np.ndarray = ((out - out.mean(0)) / out.std(0)).astype(np.float32)
    return standard


def _present(samples: int, gaps: Sequence[float], draw: np.random.Generator) -> np.ndarray:
    """(M, N) bool with these shares missing, at least one modality left in every sample."""
    present = draw.random((len(gaps), samples)) >= np.array(gaps)[:, None]
    empty = ~present.any(0)
    present[draw.integers(len(gaps), size=empty.sum()), np.flatnonzero(empty)] = True
    return present


DATASETS: dict[str, Callable[..., Samples]] = {"glyphs": glyphs, "synthetic": synthetic, "xor": xor}
