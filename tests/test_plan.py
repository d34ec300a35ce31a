from dataclasses import replace
from pathlib import Path

import pytest
import torch

from centrobind.arena.contenders import ALL, FAMILIES, Contender, contenders
from centrobind.arena.plan import ArenaConfig, finals, objective_of, searches, starts
from centrobind.errors import ConfigError
from centrobind.objectives.anchors import leave_one_out
from centrobind.objectives.table import OBJECTIVES
from centrobind.training.config import load_checked
from centrobind.types import Embeddings

ROOT = Path(__file__).parents[1]


def config(**changes):
    return ArenaConfig(data=["synthetic"], out="nowhere", **changes)


def first_final(**changes):
    one = config(**changes)
    return next(finals(one, one.datasets()[0], contenders(["centrobind"], ["a", "b"])[0], (0.1, 1e-3)))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_fixed_anchor_takes_part_trained_and_frozen(count):
    modalities = [f"m{m}" for m in range(count)]
    rows = contenders("all", modalities)
    for modality in modalities:
        trained, frozen = Contender("fabind", modality), Contender("fabind", modality, True)
        assert trained in rows and trained.objective["frozen"] is False and trained.colour != frozen.colour
        assert frozen in rows and frozen.objective == {"name": "fabind", "anchor": modality, "frozen": True}
    assert bool(Contender("triangle").unable(modalities)) == (count != 3)
    assert len(set(rows)) == len(rows) == len(ALL) - 2 + 3 * count and set(ALL) == set(FAMILIES) - {"weighted"}
    without = [Contender("default"), Contender("closed_form"), *(Contender("ridge", m) for m in modalities)]
    assert [one for one in rows if not one.tuned] == [*without, Contender("unimodal")]
    for one in rows:
        assert Contender.of(one.objective) == one == Contender(**one.describe()) and not one.hindsight


def test_every_objective_has_a_title_a_kind_and_a_colour():
    assert set(FAMILIES) == set(OBJECTIVES) | {"default", "closed_form", "ridge"}
    assert len({family.title for family in FAMILIES.values()}) == len(FAMILIES)


def test_a_contender_is_what_it_is_and_not_what_it_is_called():
    """Labels are for reading: modalities may be called like anything, an own function like a row of the table."""
    odd = contenders(["fabind", "own.py:all_pairs"], ["frozen", "x, trained"])
    assert Contender("fabind", "frozen") in odd and not Contender("fabind", "frozen").frozen
    own = odd[-1]
    assert own.kind == "own" and own != Contender("all_pairs") and own.colour != Contender("all_pairs").colour
    assert Contender("fabind").hindsight and Contender("fabind").label == "FABind, trained, best anchor in hindsight"


def test_everybody_gets_the_same_search():
    one = config(search={"temperatures": [0.1, 0.2, "learned"], "lrs": [1e-3, 3e-3], "seeds": 2})
    data = one.datasets()[0]
    budgets = {c.label: len(list(searches(one, data, c))) for c in contenders("all", ["a", "b", "c"])}
    assert {budgets.pop(one.label) for one in contenders("all", ["a", "b", "c"]) if not one.tuned} == {0}
    assert set(budgets.values()) == {12}
    assert len(list(starts(one, data))) == one.seeds


def test_a_trial_is_the_same_work_only_if_nothing_in_it_differs():
    base = first_final()
    assert base.key == first_final().key
    others = [
        *(replace(base, **{name: value}) for name, value in {
            "stage": "search", "dataset": "x", "objective": {"name": "all_pairs"}, "seed": 7,
            "temperature": 0.2, "lr": 2e-3, "steps": 9, "batch_size": 9, "dim": 9, "augment": 0.5, "valid": 0.3,
            "start": "scratch", "encoders": {"a": {"encoder": "mlp"}}, "keep": True,
        }.items()),
    ]  # fmt: skip
    assert len(others) == len(base.__dataclass_fields__)
    assert len({one.key for one in [base, *others]}) == len(others) + 1


def test_encoders_of_the_data_set_reach_the_trial():
    data = {"path": "synthetic", "modalities": {"modality_0": {"encoder": "mlp", "width": 32}}}
    one = ArenaConfig(data=[data], out="nowhere")
    trial = next(starts(one, one.datasets()[0]))
    assert trial.encoders == {"modality_0": {"encoder": "mlp", "width": 32}}


def test_a_learned_temperature_starts_at_the_usual_place():
    fixed, learned = first_final(), replace(first_final(), temperature="learned")
    assert objective_of(fixed, ["a", "b"]).temperature().item() == pytest.approx(0.1)
    made = objective_of(learned, ["a", "b"])
    assert made.temperature().item() == pytest.approx(0.07) and made.temperature.log.requires_grad


@pytest.mark.parametrize(
    "body",
    [
        "def mine(views):\n    return leave_one_out(views)\n",
        "def mine(*, temperature, learn_temperature):\n    return AnchorInfoNCE(leave_one_out, temperature=temperature)\n",
    ],
)
def test_an_objective_of_ones_own_is_a_file_and_a_name(tmp_path, body):
    path = tmp_path / "own.py"
    path.write_text(
        "from centrobind.objectives.anchors import leave_one_out\nfrom centrobind.objectives.anchored import AnchorInfoNCE\n"
        + body
    )
    one = contenders([f"{path}:mine"], ["a", "b"])[0]
    assert one.label == "mine"
    made = objective_of(replace(first_final(), objective=one.objective, temperature=0.2), ["a", "b"])
    views = Embeddings.of({name: torch.randn(4, 3) for name in ("a", "b")})
    assert (made.anchor(views).z == leave_one_out(views).z).all()
    assert made.temperature().item() == pytest.approx(0.2)


def test_mistakes_are_told(tmp_path):
    with pytest.raises(ConfigError, match="unknown 'centrbind', expected some of"):
        contenders(["centrbind"], ["a", "b"])
    for name, told in (
        (f"{tmp_path}/none.py:f", "no Python file"),
        (f"{__file__}:nothing", "has no function 'nothing'"),
    ):
        with pytest.raises(ConfigError, match=told):
            objective_of(replace(first_final(), objective={"name": name}), ["a", "b"])
    with pytest.raises(ConfigError, match="distinct names"):
        ArenaConfig(data=["a/x.npz", "b/x.npz"], out="o").datasets()


def test_the_projects_own_arena_is_a_valid_plan():
    found = load_checked(ArenaConfig, ROOT / "benchmarks" / "arena.yaml")
    assert [one.label for one in found.datasets()] == ["glyphs", "utd_mhad", "mfeat", "mosi", "rosmap", "emoji"]


def test_own_objectives_of_the_benchmarks_give_finite_losses():
    """Every candidate that docs/experiments.md reports can be run by its name."""
    from twins import some_present, unit_vectors

    path = ROOT / "benchmarks" / "candidates.py"
    names = [
        line.split("(")[0].removeprefix("def ")
        for line in path.read_text().splitlines()
        if line.startswith("def ") and not line.startswith("def _")
    ]
    names += [line.split(" =")[0] for line in path.read_text().splitlines() if " = _mixed(" in line]
    assert len(names) >= 10
    z, v = ({f"m{m}": x for m, x in enumerate(unit_vectors(3, 9, 4, seed=s, dtype=torch.float32))} for s in (0, 1))
    present = {f"m{m}": x for m, x in enumerate(some_present(3, 9))}
    for name in names:
        made = objective_of(replace(first_final(), objective={"name": f"{path}:{name}"}), list(z))
        assert torch.isfinite(made(z, views=v, present=present).total), name
