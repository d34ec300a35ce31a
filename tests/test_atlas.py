"""The map against literal forms of what it computes."""

import numpy as np
import pytest
import torch

from centrobind.errors import CentrobindError
from centrobind.report import atlas
from centrobind.types import Embeddings


@pytest.fixture
def few_steps(monkeypatch):
    """For what does not depend on how good a map is."""
    monkeypatch.setattr(atlas, "STEPS", 20)
    monkeypatch.setattr(atlas, "EXAGGERATED", 5)


def space(samples, modalities=3, missing=0.0, clusters=6, noise=0.05, seed=0):
    draw = torch.Generator().manual_seed(seed)
    centre = torch.randn(clusters, 12, generator=draw)
    base = centre[torch.arange(samples) % clusters] + 0.3 * torch.randn(samples, 12, generator=draw)
    names = [f"m{m}" for m in range(modalities)]
    present = {name: torch.rand(samples, generator=draw) >= missing for name in names}
    return Embeddings.of({n: base + noise * torch.randn(samples, 12, generator=draw) for n in names}, present)


def literal_repulsion(y):
    """Every pair, one after the other."""
    force, total = np.zeros_like(y), 0.0
    for i in range(len(y)):
        for j in range(len(y)):
            if i != j:
                q = 1 / (1 + ((y[i] - y[j]) ** 2).sum())
                total += q
                force[i] += q**2 * (y[i] - y[j])
    return force / total


@pytest.mark.parametrize(("spacing", "error"), [(0.5, 0.2), (0.05, 0.01)])
@pytest.mark.parametrize("width", [0.001, 3.0])
def test_the_grid_repels_as_pairs_do(width, spacing, error, monkeypatch):
    monkeypatch.setattr(atlas, "SPACING", spacing)
    monkeypatch.setattr(atlas, "LARGEST", 2000)
    y = np.random.default_rng(1).normal(size=(40, 2)) * width
    expected, found = literal_repulsion(y), atlas._repulsion(y)
    off = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert off < error, off
    alone = np.array([[0.3, 0.7], [1000.0, 0.2]])
    assert np.abs(atlas._repulsion(alone)).max() < 1e-2  # a point does not push itself, wherever in its cell it lies


@pytest.mark.parametrize("extent", [1e-4, 0.7, 29.9, 30.1, 255.9, 256.1, 1000.0])
def test_the_grid_holds_the_map_and_changes_in_steps(extent):
    """Steps, because the spectra of the kernels are computed anew with each change."""
    cells, spacing = atlas._grid(extent)
    assert extent / spacing + 2 <= cells <= atlas.LARGEST + 16
    assert spacing <= atlas.SPACING or extent > atlas.SPACING * atlas.LARGEST
    assert len({atlas._grid(extent * factor) for factor in np.linspace(1, 1.02, 50)}) <= 3
    atlas._kernels.cache_clear()
    for n in range(20):
        atlas._repulsion(np.random.default_rng(n).random((200, 2)) * 35)
    assert atlas._kernels.cache_info().misses <= 2


def test_many_points_repel_in_single_precision_as_in_double(monkeypatch):
    y = np.random.default_rng(0).normal(size=(1200, 2)) * 5
    single = atlas._repulsion(y)
    monkeypatch.setattr(atlas, "EXACT_BELOW", 10**9)
    double = atlas._repulsion(y)
    assert 0 < np.abs(single - double).max() < 1e-5 * np.abs(double).max()


def test_attractions_are_those_of_a_literal_loop():
    near = np.array([[1, 2], [0, 2], [3, 1], [2, 0]])
    weights = np.zeros((4, 4))
    for i, row in enumerate(near):
        for j in row:
            weights[i, j] += 1
            weights[j, i] += 1
    weights /= weights.sum()
    first, second, weight = atlas._attractions(near)
    made = np.zeros((4, 4))
    made[first, second] = weight
    assert (first < second).all() and np.allclose(made + made.T, weights)
    y = np.random.default_rng(0).normal(size=(4, 2))
    pulls = np.zeros((4, 2))
    for i in range(4):
        for j in range(4):
            pulls[i] += weights[i, j] * (y[i] - y[j]) / (1 + ((y[i] - y[j]) ** 2).sum())
    assert np.allclose(atlas._attraction(y, first, second, weight), pulls)


def test_nearest_are_the_most_similar_others(monkeypatch):
    monkeypatch.setattr(atlas, "CHUNK", 7)
    z = space(40).z[0]
    similar = (z @ z.T).fill_diagonal_(-2)
    assert (torch.from_numpy(atlas.nearest(z, 5)) == similar.topk(5).indices).all()


@pytest.mark.parametrize(("columns", "k"), [(16, 15), (48, 1), (160, 15), (1600, 15)])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_the_largest_are_those_of_a_sort(columns, k, levels):
    """With ties too: then the values are the largest, whichever of the columns."""
    values = torch.randint(0, levels, (30, columns), generator=torch.Generator().manual_seed(0)).float()
    found = atlas._largest(values, k)
    assert (values.gather(1, found) == values.sort(1, descending=True).values[:, :k]).all()
    assert all(len(set(row)) == k for row in found.tolist())


@pytest.mark.parametrize("modalities", [2, 3, 5])
def test_a_map_keeps_neighbours_and_says_how_many(modalities):
    embeddings = space(60, modalities, missing=0.25)
    made = atlas.make_atlas(embeddings)
    assert len(made) == int(embeddings.present.sum())
    assert embeddings.present[torch.from_numpy(made.modality).long(), torch.from_numpy(made.row).long()].all()
    assert np.abs(made.xy).max() <= 1 and np.isfinite(made.xy).all()
    z = embeddings.z.numpy()[made.modality, made.row]
    kept = []
    for i in range(len(made)):
        similarity, distance = z @ z[i], ((made.xy - made.xy[i]) ** 2).sum(1).astype(np.float64)
        similarity[i], distance[i] = -9, np.inf
        kept.append(len(set(np.argsort(-similarity)[:10]) & set(np.argsort(distance)[:10])))
    assert np.abs(made.kept - np.array(kept)).mean() < 0.1  # float32 frames may swap two that are equally far
    assert made.share_kept == pytest.approx(np.mean(kept) / 10, abs=0.01)
    assert made.share_kept > 0.55 > 5 * 10 / len(made) * 0.5  # far from what chance keeps


def test_equal_embeddings_give_equal_maps(few_steps):
    one, two = atlas.make_atlas(space(40)), atlas.make_atlas(space(40))
    assert (one.xy == two.xy).all() and (one.kept == two.kept).all()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_and_equal_points(count, few_steps):
    for z in (torch.randn(count, 4), torch.ones(count, 4)):
        made = atlas.make_atlas(Embeddings.of({"a": z}))
        assert made.xy.shape == (count, 2) and np.isfinite(made.xy).all()
    assert np.isnan(made.share_kept) == (count == 1)


def test_more_points_than_are_shown_are_picked_evenly(few_steps):
    made = atlas.make_atlas(space(60, 3), most=90)
    assert len(made) == 90 and sorted(set(made.row))[:3] == [0, 2, 4] and made.row.max() == 59


def test_a_map_is_drawn_once(tmp_path, monkeypatch, few_steps):
    embeddings = space(30)
    first = atlas.cached_atlas(tmp_path, embeddings)
    (file,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(atlas, "make_atlas", lambda *_, **__: pytest.fail("drawn again"))
        assert (atlas.cached_atlas(tmp_path, embeddings).xy == first.xy).all()
    content = bytearray(file.read_bytes())
    content[6] |= 1  # encrypted, as both headers say
    content[content.find(b"PK\x01\x02") + 8] |= 1
    for damaged in (bytes(content), file.read_bytes()[:100]):
        file.write_bytes(damaged)
        assert (atlas.cached_atlas(tmp_path, embeddings).xy == first.xy).all()
    assert (atlas.cached_atlas(tmp_path, embeddings).xy == first.xy).all()
    atlas.cached_atlas(tmp_path, space(30, seed=1))
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(CentrobindError, match="--cache"):
        atlas.cached_atlas(file / "below", embeddings)
