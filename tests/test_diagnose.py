"""Every finding, on embeddings or a binder with that fault planted; a healthy one gives none."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import centrobind as cb
from centrobind.binder.augment import augment
from centrobind.binder.embedding import embed_views
from centrobind.cli.show import diagnosis_text
from centrobind.errors import DataError
from centrobind.evaluation import bounds
from centrobind.evaluation.diagnose import examine
from centrobind.evaluation.findings import CHECKS, Finding
from centrobind.evaluation.realignment import realigned
from centrobind.training.fit import run_objective
from centrobind.types import Embeddings, unit
from test_bounds import loop_information
from test_cli import fails, run, world  # noqa: F401 (a fixture)

COUNTS = (2, 3, 5)


def paired(count=3, samples=256, dim=16, *, seed=0, noise=0.5, view=0.3, gaps=False):
    """(z, views) of a healthy binder: modalities near each other, views nearer, all over the sphere."""
    draw = torch.Generator().manual_seed(seed)
    present = torch.rand(count, samples, generator=draw) > (0.25 if gaps else -1)
    here = torch.randn(1, samples, dim, generator=draw) + noise * torch.randn(count, samples, dim, generator=draw)
    seen = here + view * torch.randn(count, samples, dim, generator=draw)
    return tuple(Embeddings(unit(x) * present[..., None], present, tuple("abcde"[:count])) for x in (here, seen))


def examined(z, views, objective=None, **options):
    return examine(z, views, objective=objective, resamples=50, **options)


def names_of(found):
    return [(finding.name, *finding.where) for finding in found.findings]


def moved(change, z, views):
    """The same change on embeddings and views, brought back to unit length."""
    return [x.with_z(unit(change(x.z.clone())) * x.present[..., None]) for x in (z, views)]


# --- the numbers, against loops ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS)
def test_spread_rank_and_gap_equal_the_loop(count):
    z, views = paired(count, 30, 4, gaps=True)
    found = examined(z, views)
    centres = []
    for m, name in enumerate(z.modalities):
        rows = [z.z[m, i].double().numpy() for i in range(30) if z.present[m, i]]
        centre = sum(rows) / len(rows)
        centres.append(centre)
        variance = sum(float((row - centre) @ (row - centre)) for row in rows) / len(rows)
        assert found.spread[name] == pytest.approx(variance, abs=1e-6)
        cosines = [float(x @ y) for x in rows for y in rows]
        assert found.spread[name] == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-6)
        singular = np.linalg.svd(np.stack(rows) - centre, compute_uv=False) ** 2
        share = singular / singular.sum()
        assert found.rank[name] == pytest.approx(math.exp(-sum(p * math.log(p) for p in share if p > 0)), rel=1e-5)
    for (a, b), value in found.gap.items():
        x, y = (centres[z.index(name)] for name in (a, b))
        assert value == pytest.approx(math.dist(x, y), abs=1e-6)
    assert len(found.gap) == count * (count - 1) / 2


def test_seen_is_what_the_loss_sees_at_its_own_temperature():
    z, views = paired(3, 40, 6)
    half = np.random.default_rng(0).permutation(40) % 2
    for objective, kind in ((cb.LeaveOneOut(temperature=0.3), "anchor"), (cb.AllPairs(temperature=0.3), "inter")):
        found = examined(z, views, objective)
        assert found.trained_on == kind and found.temperature == pytest.approx(0.3)
        values = []
        for m in range(3):
            for k in range(3):
                if kind == "inter" and k > m:
                    pairs = [(z.z[m], z.z[k])]
                elif kind == "anchor" and k == 0:
                    pairs = [(z.z[m], (views.z.sum(0) - views.z[m]) / 2)]
                else:
                    continue
                for u, v in pairs:
                    rows = [loop_information(u[half == part], v[half == part], 0.3) for part in (0, 1)]
                    values.append(sum(map(sum, rows)) / 40)
        assert found.seen.nats == pytest.approx(sum(values) / 3, abs=1e-5)
    assert examined(z, views, cb.Unimodal()).trained_on == "intra"
    assert examined(z, views, cb.RandomAnchor()).trained_on == "inter"
    assert examined(z, views, cb.OBJECTIVES["gram"]()).seen is None
    assert examined(z, views, cb.FABind(anchor="b")).anchor_modality == "b"


# --- healthy ones --------------------------------------------------------------------------------------------------

HEALTHY = {
    "none": None,
    "centrobind": cb.CentroBind(temperature=0.2),
    "leave_one_out": cb.LeaveOneOut(temperature=0.07),
    "all_pairs": cb.AllPairs(temperature=0.1),
    "fabind": cb.FABind(anchor="b", temperature=0.1),
}


@pytest.mark.parametrize(("count", "gaps"), [(2, True), (3, False), (3, True), (5, True)])
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_embeddings_give_no_finding(name, count, gaps):
    z, views = paired(count, gaps=gaps)
    found = examined(z, views, HEALTHY[name], reachable=z)
    assert found.findings == []
    assert "nothing looks wrong" in diagnosis_text(found)


@pytest.mark.parametrize(
    ("objective", "count", "seed"), [("centrobind", 3, 0), ("leave_one_out", 2, 1), ("all_pairs", 5, 2)]
)
def test_a_healthy_binder_gives_no_finding(objective, count, seed):
    data = cb.synthetic(800, count, missing=0.2, seed=seed)
    made = cb.OBJECTIVES[objective]()
    binder = cb.fit(data, objective=made, steps=40, dim=16, seed=seed, show_progress=False)
    train = data.part("train") if count < 5 else None  # new heads for ten pairs take a while
    found = cb.diagnose(binder, data.part("test"), objective=made, train=train, resamples=100)
    assert found.findings == [] and found.samples == 160
    assert found.bounds.mean["intra"].nats > found.bounds.mean["inter"].nats > 2
    assert set(found.reachable) == (set() if train is None else set(found.bounds.inter))


# --- planted faults ------------------------------------------------------------------------------------------------


def only(found, name, where, severity):
    """The one finding there is."""
    assert names_of(found) == [(name, *where)], found.findings
    finding = found.findings[0]
    assert finding.severity == severity and finding.advice and finding.normal
    assert str(finding) in diagnosis_text(found)
    return finding


@pytest.mark.parametrize("name", HEALTHY)
def test_a_dead_modality(name):
    z, views = paired(3)

    def dead(x):
        x[2] = x[2, :1] + 1e-3 * x[2]
        return x

    finding = only(examined(*moved(dead, z, views), HEALTHY[name]), "dead modality", ("c",), "fault")
    assert "c is dead" in finding.sentence and finding.value < 0.01


def test_a_dead_encoder_in_a_binder():
    data = cb.synthetic(600, 3)
    binder = cb.fit(data, steps=25, dim=8, show_progress=False)
    with torch.no_grad():
        tower = binder.towers["m1"]
        for weight in [*tower.encoder.parameters(), *tower.head.parameters()]:
            weight.mul_(0).add_(0.5)
        for weight in tower.linear.parameters():  # the way around the encoder
            weight.zero_()
    found = cb.diagnose(binder, data.part("test"), objective=cb.LeaveOneOut(), train=data.part("train"), resamples=50)
    assert names_of(found) == [("dead modality", "m1")]


def test_a_collapsed_space():
    z, views = paired(3)
    finding = only(examined(*moved(lambda x: x[:1, :1] + 0.01 * x, z, views)), "collapse", (), "fault")
    assert "collapsed" in finding.sentence


def test_few_directions():
    z, views = paired(3)

    def flat(x):
        x[1, :, 2:] *= 0.01
        return x

    finding = only(examined(*moved(flat, z, views)), "few directions", ("b",), "warning")
    assert finding.value == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(("temperature", "name"), [(0.01, "temperature too low"), (0.1, "narrow cone")])
def test_a_narrow_cone_is_blamed_on_a_low_temperature_if_there_is_one(temperature, name):
    z, views = paired(3)
    found = examined(*moved(lambda x: x + 1.2 * x[:1, :1], z, views), cb.AllPairs(temperature=temperature))
    assert names_of(found) == [(name, a) for a in "abc"]
    assert ("higher temperature than 0.01" in found.findings[0].advice) == (temperature == 0.01)


def test_a_modality_gap():
    z, views = paired(3)

    def apart(x):
        x[0, :, 0] += 0.6
        return x

    found = examined(*moved(apart, z, views), cb.AllPairs())
    assert names_of(found) == [("modality gap", "a", "b"), ("modality gap", "a", "c")]
    assert 0.4 < found.findings[0].value < 0.6


@pytest.mark.parametrize("count", COUNTS)
def test_a_dominated_anchor(count):
    z, views = paired(count, noise=1.0, view=1.0)
    heavy = cb.WeightedCentroid(weights={"b": 20.0}, temperature=0.15)
    found = examined(z, views, heavy)
    finding = only(found, "dominated anchor", ("b",), "warning")
    assert finding.value == found.dominance["b"].variance > 0.8
    learned = cb.OBJECTIVES["learned"](modalities=z.modalities, temperature=0.15)
    assert examined(z, views, learned).findings == []
    with torch.no_grad():
        learned.anchor.scores[0] = 4.0
    only(examined(z, views, learned), "dominated anchor", ("a",), "warning")


@pytest.mark.parametrize("count", COUNTS)
def test_self_matching(count):
    z, views = paired(count, dim=48, noise=1.5, view=0.1)
    finding = only(examined(z, views, cb.CentroBind(temperature=0.02)), "leak", (), "fault")
    assert finding.value < 0.25 and "leave_one_out" in finding.advice
    better, _ = paired(count, dim=48, noise=0.2)
    if count == 3:
        only(examined(z, views, cb.CentroBind(temperature=0.02), reachable=better), "leak", (), "fault")
    assert examined(z, views, cb.CentroBind(temperature=0.2)).findings == []
    assert examined(z, views, cb.LeaveOneOut(temperature=0.05)).findings == [], "it cannot match itself"


@pytest.mark.parametrize("name", HEALTHY)
def test_an_unbound_pair(name):
    z, views = paired(3)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(1))
    z, views = (x.with_z(torch.cat([x.z[:2], x.z[2:, order]])) for x in (z, views))
    found = examined(z, views, HEALTHY[name], reachable=z)
    assert names_of(found) == [("unbound pair", "a", "c"), ("unbound pair", "b", "c")]
    assert all(finding.severity == "fault" for finding in found.findings)


def test_a_weak_modality():
    z, views = paired(4, noise=0.3)
    draw = torch.Generator().manual_seed(9)

    def noisy(x):
        x[3] = x[3] + 0.75 * torch.randn(x[3].shape, generator=draw)
        return x

    finding = only(examined(*moved(noisy, z, views), cb.AllPairs()), "weak modality", ("d",), "warning")
    assert 0.02 < finding.value < 0.25


def test_a_lost_pair_is_said_with_its_anchor():
    """b and c each share other halves of a with it: with a as the anchor nobody asks for what only they share."""
    draw = torch.Generator().manual_seed(3)
    common, between = torch.randn(2, 400, 12, generator=draw)

    def space(asked):
        rows = [torch.cat([common, torch.zeros(400, 12)], 1)] + [torch.cat([common, asked * between], 1)] * 2
        rows = torch.stack(rows) + 1.1 * torch.randn(3, 400, 24, generator=draw)
        return Embeddings.of(dict(zip("abc", rows)))

    with_a, all_of_them = space(0.0), space(1.0)
    fixed = examined(with_a, with_a, cb.FABind(anchor="a", temperature=0.1), reachable=all_of_them)
    finding = only(fixed, "lost pair", ("b", "c"), "warning")
    assert "neither is the anchor (a)" in finding.sentence and finding.advice == "leave_one_out or all_pairs"
    expected = fixed.reachable["b", "c"].nats - fixed.bounds.inter["b", "c"].nats
    assert finding.value == expected > 0.25
    assert examined(all_of_them, all_of_them, cb.AllPairs(), reachable=all_of_them).findings == []
    assert examined(with_a, with_a, cb.FABind(anchor="a", temperature=0.1)).findings == [], "without heads, no verdict"


@pytest.mark.parametrize("make", [cb.CentroBind, cb.LeaveOneOut, cb.AllPairs])
def test_a_temperature_that_is_too_high(make):
    z, views = paired(3)
    finding = only(examined(z, views, make(temperature=1.5)), "temperature too high", (), "warning")
    assert finding.value < 0.45 and "0.5" in finding.advice


def test_every_check_has_a_name_of_its_own_and_faults_come_first():
    z, views = paired(3)

    def broken(x):
        x[0, :, 0] += 0.6
        x[2] = x[2].roll(7, 0)
        return x

    found = examined(*moved(broken, z, views), cb.AllPairs(temperature=0.1))
    assert [finding.severity for finding in found.findings] == sorted(finding.severity for finding in found.findings)
    assert names_of(found) == [("unbound pair", "a", "c"), ("unbound pair", "b", "c"), ("modality gap", "a", "b")]
    assert found.gap["a", "c"] > 0.3, "not said, because the pair is not even bound"
    assert len(CHECKS) == len({check.__name__ for check in CHECKS})
    assert all(isinstance(finding, Finding) for finding in found.findings)
    plain = json.loads(json.dumps(found.as_dict()))
    assert plain["findings"][0]["where"] == ["a", "c"] and plain["gap"]["a_with_b"] == found.gap["a", "b"]
    assert plain["slack"]["a"]["slack"] == found.slack["a"].slack and plain["seen"]["nats"] == found.seen.nats


# --- views, heads, the command line ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lost():
    """m1 and m2 share eight directions that the anchor m0 has not."""
    data = cb.synthetic(1500, 3, shared_nuisance={(1, 2): 12}, missing=0.1)
    objective = cb.FABind(anchor="m0")
    return data, cb.fit(data, objective=objective, start="scratch", steps=120, dim=24, show_progress=False), objective


def test_new_heads_find_what_a_fixed_anchor_did_not_ask_for(lost):
    data, binder, objective = lost
    test, train = data.part("test"), data.part("train")
    before = binder.fingerprint
    found = cb.diagnose(binder, test, objective=objective, train=train, resamples=100)
    assert names_of(found) == [("lost pair", "m1", "m2")] and "anchor (m0)" in found.findings[0].sentence
    assert binder.fingerprint == before, "the binder is left as it was"
    made = realigned(binder, train, test)
    again = bounds.bounds(made, resamples=100).inter
    assert again == found.reachable, "the same heads every time"
    assert torch.equal(made.present, torch.from_numpy(test.present)) and made.dim == binder.dim
    assert list(made.ids) == list(test.ids[:])
    some = realigned(binder, train.only(["m0", "m2"]), test.only(["m0", "m2"]), steps=2)
    assert some.modalities == ("m0", "m2")


def test_new_heads_read_what_a_linear_path_reads(mixed):
    """A tower with a linear path: a head may use the encoder's outputs and the features of the path."""
    binder = cb.fit(mixed, steps=2, dim=8, show_progress=False)
    batch = binder.prepare(mixed.batch(np.arange(60)))
    for name, tower in binder.towers.items():
        width = tower.before_head(batch.inputs[name], batch.features[name]).shape[1]
        assert width == tower.encoder.width + batch.features[name].shape[1]
    made = realigned(binder, mixed, mixed, steps=3)
    assert torch.isfinite(made.z).all() and made.dim == binder.dim


def test_views_are_those_of_training_row_by_row(mixed):
    binder = cb.fit(mixed, start="scratch", steps=2, dim=8, show_progress=False)
    views = embed_views(binder, mixed, seed=3)
    z = binder.embed(mixed)
    assert torch.equal(views.present, z.present) and views.modalities == z.modalities
    near = torch.stack([(z.z[m] * views.z[m]).sum(-1)[z.present[m]].mean() for m in range(4)])
    far = torch.stack([(z.z[m] * views.z[m].roll(7, 0)).sum(-1)[z.present[m]].mean() for m in range(4)])
    assert (near > far).all() and (near < 0.9999).all()
    batch = augment(binder.prepare(mixed.batch(np.arange(60))), binder.kinds, seed=(3, 0))
    torch.testing.assert_close(views.z, binder(batch).z.detach())
    torch.testing.assert_close(embed_views(binder, mixed, strength=0.0).z, z.z)
    assert embed_views(binder, mixed.only(["vector", "text"])).modalities == ("text", "vector")


def test_what_does_not_fit_is_said(lost):
    data, binder, _ = lost
    with pytest.raises(DataError, match="needs two modalities"):
        cb.diagnose(binder, data.only(["m1"]))
    alone = replace(data, columns={name: data.columns[name] for name in ("m0", "m1")})
    with pytest.raises(DataError, match="new heads need two"):
        realigned(binder, alone.only(["m1"]), data)
    with pytest.raises(DataError, match="none of the modalities"):
        embed_views(binder, cb.data.xor(20))


def test_the_command_prints_three_numbers_and_writes_json(world, capsys):  # noqa: F811
    folder, _, _ = world
    said = run("diagnose", folder / "run", folder / "store", "--json", folder / "d.json")
    assert said.exit_code == 0, said.output
    for text in ("kept of itself (intra)", "a with b", "ceiling", "The anchor it was trained with", "Findings", "█"):
        assert text in said.output, text
    found = json.loads((folder / "d.json").read_text())
    assert found["samples"] == 30 and found["temperature"] == pytest.approx(0.2) and found["trained_on"] == "anchor"
    assert f"{found['bounds']['mean']['inter']['nats']:.2f}" in said.output
    lone = run("diagnose", folder / "run" / "binder.safetensors", folder / "store", "--split", "train")
    assert lone.exit_code == 0 and "Not held out" in lone.output and "not what it was trained with" in lone.output
    assert "the splits are" in fails(capsys, "diagnose", folder / "run", folder / "store", "--split", "dev")


def test_a_run_gives_its_objective_back_with_what_it_learned(tmp_path):
    from centrobind.training.config import check_config
    from centrobind.training.fit import run_config

    config = check_config(
        {
            "data": "-",
            "out": str(tmp_path / "run"),
            "dim": 8,
            "objective": {"name": "learned", "temperature": 0.3, "learn_temperature": True},
            "train": {"steps": 5, "batch_size": 32, "tensorboard": False},
        }
    )
    data = cb.synthetic(100, 3)
    binder = run_config(config, data)
    objective = run_objective(tmp_path / "run", binder)
    assert objective.temperature().item() != pytest.approx(0.3, abs=1e-4)
    assert objective.anchor.scores.abs().max() > 0
    assert run_objective(tmp_path / "run" / "binder.safetensors", binder) is None
    assert isinstance(bounds.bounds(binder.embed(data), anchor=objective.anchor).anchor["m0"], bounds.Bound)


# --- the page --------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "theory.md").read_text()


def test_the_code_on_the_page_runs_and_prints_what_it_says(capsys):
    code, told = re.search(r"```python\n(.*?)```\n\n((?:    [^\n]*\n)+)", PAGE, flags=re.DOTALL).groups()
    exec(code, {})
    assert capsys.readouterr().out.split() == told.split()


def test_the_page_tells_what_was_measured():
    rows = json.loads((ROOT / "benchmarks" / "results" / "diagnosis.json").read_text())
    healthy = {key: row for key, row in rows.items() if key.startswith("healthy/")}
    assert (
        f"**{len(healthy)} healthy binders, {sum(bool(row['findings']) for row in healthy.values())} findings**" in PAGE
    )
    extremes = re.findall(r"^\| (least|most|loss|seen)([\w ]*) \| ([\d.]+) \|", PAGE, flags=re.MULTILINE)
    assert len(extremes) == 8
    for first, rest, told in extremes:
        values = [row[first + rest] for row in healthy.values() if row[first + rest] is not None]
        assert f"{(max if first == 'most' else min)(values):.2f}" == told, first + rest
    for key, row in rows.items():
        if key not in healthy:
            assert f"| {key} | {', '.join(row['findings']) or 'none'} |" in PAGE, key
