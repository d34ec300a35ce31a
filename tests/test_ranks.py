"""Several ranks give what one process gives: gradients, weights, resumed runs, errors. Gloo on this machine."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn

import centrobind
import ranks_jobs
from centrobind.binder.checkpoint import load
from centrobind.binder.encoders import Dropout
from centrobind.data import write_store
from centrobind.distributed import ALONE, Team, bytes_per_step, gather, joined, placed
from centrobind.errors import RunError
from centrobind.objectives.table import OBJECTIVES
from centrobind.seeds import seeded
from centrobind.training.config import load_config
from centrobind.training.fit import run_config
from centrobind.training.run_folder import RunFolder
from centrobind.types import Embeddings

SIZES = (2, 3)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder):
    """What each rank of a group of two, then of three, brings home."""
    path = folder / "interrupted on 2"
    divided, shard = folder / "divided", ranks_jobs.SETTINGS.model_copy(update={"shard": True})
    jobs = [("gradients",), ("counted",), ("own_loop",), ("agreement",), ("shares",), ("unsound",)]
    on_two = [("trained", folder / "on 2"), ("interrupted", path), ("mistakes", folder / "mistakes")]
    on_two.append(("in_chunks", folder / "in chunks on 2"))
    on_two.append(("interrupted_divided", divided, shard))
    on_two.append(("gradients_in_tiles",))  # the last: it makes tiles small
    made = {2: sound(ranks_jobs.start(2, jobs + on_two, folder))}
    for name in (path, divided):
        shutil.copytree(name, f"{name}, resumed alone")
    on_three = [("trained", path, "random", ranks_jobs.SETTINGS, True)]
    on_three.append(("trained_divided", divided, "random", shard, True))
    made[3] = sound(ranks_jobs.start(3, jobs + on_three, folder))
    return made


def sound(ranks):
    """What ranks found, unless one of them failed."""
    for jobs in ranks:
        assert jobs, "a rank died"
        for result in jobs.values():
            assert not isinstance(result, str), result
    return ranks


@pytest.fixture(scope="module")
def alone(folder):
    """The same run in this process, uninterrupted; its best weights are not its last."""
    made = ranks_jobs.trained(ALONE, folder / "alone")
    scores = [record["valid/mean/mrr"] for record in RunFolder(folder / "alone", resume=True).read_log()]
    assert max(scores) > scores[-1]
    return made


def apart(one, other):
    """The largest difference of two lists of tensors, relative to the largest number in the second."""
    return max((a - b).abs().max() for a, b in zip(one, other)) / max(b.abs().max() for b in other)


def together(parts):
    """The rows of each step, over all ranks."""
    return [list(chain(*step)) for step in zip(*parts)]


@pytest.mark.parametrize("case", ranks_jobs.CASES, ids=str)
def test_gradients_are_those_of_one_process(case, found):
    loss, expected, parts = ranks_jobs.gradient(ALONE, *case)
    assert any(value.abs().max() > 1e-4 for value in expected.values())
    for size in SIZES:
        for rank in range(size):
            total, gradients, _ = found[size][rank]["gradients"][case]
            assert total == pytest.approx(loss, rel=1e-10)
            assert gradients.keys() == expected.keys()
            assert apart(gradients.values(), expected.values()) < 1e-9
        assert found[size][0]["gradients"][case][2] == pytest.approx(parts)


def test_ranks_in_tiles_agree_with_one_process_in_one_product(found):
    for name, count, layout in ranks_jobs.TILED:
        loss, expected, _ = ranks_jobs.gradient(ALONE, name, count, layout)
        for ranks in found[2]:
            for memory in (0, 2**20):
                total, gradients, _ = ranks["gradients_in_tiles"][name, count, layout, memory]
                assert total == pytest.approx(loss, rel=1e-10)
                assert apart(gradients.values(), expected.values()) < 1e-9


def test_a_loop_of_ones_own_needs_gather_and_nothing_else(found):
    expected = ranks_jobs.own_loop(ALONE)
    for size in SIZES:
        for rank in range(size):
            assert apart(found[size][rank]["own_loop"], expected) < 1e-10


def test_whatever_ranks_did_before_they_draw_and_start_alike(found):
    with seeded(0):
        torch.rand(1)
        expected = torch.rand(3)
    for size in SIZES:
        for rank in range(size):
            drawn, weights = found[size][rank]["agreement"]
            assert torch.equal(drawn, expected) and not weights.any()


def test_a_run_ends_with_the_weights_of_one_process(found, alone):
    weights, rows = alone
    for rank in range(2):
        same, part = found[2][rank]["trained"]
        assert apart(same.values(), weights.values()) < 1e-8
        assert all(torch.equal(same[name], found[2][0]["trained"][0][name]) for name in same), "ranks drifted apart"
        assert all(len(few) in (len(all_) // 2, len(all_) - len(all_) // 2) for few, all_ in zip(part, rows))
    assert together(ranks["trained"][1] for ranks in found[2]) == rows


def test_chunks_of_a_ranks_part_change_nothing(found, folder):
    expected = ranks_jobs.in_chunks(ALONE, folder / "in one chunk")
    for ranks in found[2]:
        assert apart(ranks["in_chunks"].values(), expected.values()) < 1e-8


def test_a_signal_to_one_rank_stops_all_after_the_same_step(found, folder):
    for rank, (said, said_already, rows) in enumerate(ranks["interrupted"] for ranks in found[2]):
        assert said.startswith("stopped after step 5 of 12") and len(rows) == 5
        assert said_already == (rank > 0) and ("continue with --resume" in said) == (rank == 0)


def test_another_number_of_ranks_goes_on_with_every_sample_once(found, alone, folder):
    weights, rows = alone
    before = together(ranks["interrupted"][2] for ranks in found[2])
    one = ranks_jobs.trained(ALONE, folder / "interrupted on 2, resumed alone", resume=True)
    three = [ranks["trained"] for ranks in found[3]]
    for after in ([one], three):
        seen = before + together(part for _, part in after)
        assert seen == rows
        for epoch in range(0, 12, 3):
            assert sorted(chain(*seen[epoch : epoch + 3])) == list(range(42))
        for same, _ in after:
            assert apart(same.values(), weights.values()) < 1e-8


def test_divided_towers_train_as_whole_ones_and_take_a_part_of_the_memory(found):
    weights, bytes_ = ranks_jobs.shares(ALONE)
    for size in SIZES:
        for same, held in (ranks["shares"] for ranks in found[size]):
            assert same.keys() == weights.keys() and apart(same.values(), weights.values()) < 1e-8
            assert bytes_ / size * 0.9 < held < bytes_ / size * 1.1
        assert sum(ranks["shares"][1] for ranks in found[size]) == bytes_


def test_a_divided_run_goes_on_whole_and_on_more_ranks(found, alone, folder):
    weights, _ = alone
    for said, _, before in (ranks["interrupted_divided"] for ranks in found[2]):
        assert said.startswith("stopped after step 5 of 12") and len(before) == 5
    one = ranks_jobs.trained(ALONE, folder / "divided, resumed alone", resume=True)
    for same, _ in [one, *(ranks["trained_divided"] for ranks in found[3])]:
        assert apart(same.values(), weights.values()) < 1e-8


def test_a_step_of_divided_towers_that_is_not_finite_is_told_on_all(found):
    for size in SIZES:
        for (told,) in (ranks["unsound"] for ranks in found[size]):
            assert told.startswith("RunError: step 1 is not finite: loss nan") and "weights of vector" in told


def test_what_one_rank_finds_wrong_is_said_on_all(found):
    first, second = (ranks["mistakes"] for ranks in found[2])
    assert first == second
    assert first["another seed"].endswith(
        "the ranks do not run the same: rank 0 has {'seed': 0}, rank 1 has {'seed': 1}"
    )
    assert first["a taken folder"].startswith("RunError") and "already holds a run" in first["a taken folder"]
    assert "DataError: nothing to learn from in this batch" in first["no positive"]
    assert first["fine"] is None and first["few pairs"] is None


def test_a_rank_that_dies_does_not_leave_the_others_waiting(folder):
    began = time.monotonic()
    (folder / "dies").mkdir()
    jobs = ranks_jobs.start(2, [("one_dies", folder / "dies" / "run")], folder / "dies")
    assert time.monotonic() - began < 60
    assert jobs[1] == {} and "RunError: another rank stopped, so this one cannot go on" in jobs[0]["one_dies"]


@pytest.mark.parametrize("size", SIZES)
def test_the_bytes_of_a_step_are_those_that_were_counted(size, found):
    ring = {
        "all_reduce": lambda n: 2 * n * (size - 1) / size,
        "all_gather": lambda n: n * (size - 1),
        "reduce_scatter": lambda n: n * (size - 1) / size,
        "broadcast": lambda n: n,
    }
    for rank in range(size):
        for (name, augment), (calls, numbers, tensors) in found[size][rank]["counted"].items():
            about = {"modalities": 4, "samples": 14, "dim": 8, "texts": 1, "parameters": numbers, "tensors": tensors}
            *comparisons, sums = ranks_jobs.COUNTED[name]
            about |= {"comparisons": comparisons[augment], "sums": sums, "views": augment > 0}
            expected = bytes_per_step(ranks=size, **about)
            assert sum(ring[how](sent) for how, sent in calls) == pytest.approx(sum(expected.values()), rel=1e-9)
            assert all(value > 0 for value in expected.values())


# ---- the command line -------------------------------------------------------------------------------------------


def torchrun(folder, *command):
    """Two processes, as a user starts them; what they say."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *command]
    source = str(Path(centrobind.__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": source}
    return subprocess.run(start, capture_output=True, text=True, timeout=120, cwd=folder, env=environment)


@pytest.fixture
def config(tmp_path, mixed):
    write_store(tmp_path / "store", mixed)
    settings = "{steps: 4, batch_size: 16, keep: last, tensorboard: false, log_every: 1}"
    text = f"data: store\nout: OUT\ndim: 8\nobjective: {{name: leave_one_out}}\ntrain: {settings}\n"
    for out in ("one", "two"):
        (tmp_path / f"{out}.yaml").write_text(text.replace("OUT", out))
    return tmp_path


@pytest.mark.parametrize("start", ["scratch", "closed_form", "auto"])
def test_torchrun_trains_what_one_process_trains(config, monkeypatch, start):
    for path in config.glob("*.yaml"):
        text = path.read_text().replace("dim: 8", f"dim: 8\nstart: {start}")
        path.write_text(text.replace("steps: 4", "steps: null, lr: 0.01") if start == "auto" else text)
    done = torchrun(config, "-m", "centrobind", "train", "two.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("binder: two/binder.safetensors") == 1
    monkeypatch.chdir(config)
    expected = run_config(load_config("one.yaml")).state_dict()
    assert apart(load(config / "two").state_dict().values(), expected.values()) < 1e-4
    folder = "looks" if start == "auto" else "."
    one, two = (RunFolder(config / out / folder, resume=True).read_log() for out in ("one", "two"))
    steps = [r["step"] for r in two]
    assert steps == [r["step"] for r in one] and steps[-4:] == [*range(steps[-1] - 3, steps[-1] + 1)]
    losses, theirs = ([r["loss"] for r in log if r["step"]][:5] for log in (two, one))  # later, rounding has grown
    assert losses == pytest.approx(theirs, rel=1e-3)


def test_an_error_on_one_rank_is_told_by_its_name_and_ends_the_run(config):
    (config / "break.py").write_text(
        """import os
from centrobind.cli.main import main
from centrobind.data import Samples
from centrobind.errors import DataError

plain, steps = Samples.batch, []

def batch(self, rows, part=slice(None)):
    steps.append(1)
    if os.environ["RANK"] == "1" and len(steps) == 3:
        raise DataError("this node has a bad disk")
    return plain(self, rows, part)

Samples.batch = batch
main()
"""
    )
    done = torchrun(config, "break.py", "train", "two.yaml")
    assert done.returncode != 0
    assert "centrobind: rank 1 of 2: this node has a bad disk" in done.stderr
    assert "Traceback" not in done.stderr.split("rank 1 of 2")[0]


def test_without_torchrun_there_is_nobody_to_join(monkeypatch):
    with joined() as team:
        assert team is ALONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match=r"could not join the other ranks .*RANK.*; start them with torchrun"), joined():
        pass


# ---- the pieces -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 30])
def test_parts_cover_a_batch_once_and_evenly(size, count):
    parts = [Team(rank, size).part(count) for rank in range(size)]
    assert [row for part in parts for row in range(count)[part]] == list(range(count))
    assert Team(0, size).parts(count) == [part.stop - part.start for part in parts]
    assert max(Team(0, size).parts(count)) - min(Team(0, size).parts(count)) <= 1


def test_alone_nothing_happens():
    z = Embeddings(torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), ("a", "b"))
    layer = nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    gradient = layer.weight.grad
    ALONE.average(layer.parameters())
    assert ALONE.gather(z, None) == (z, None) and gather(z) is z and layer.weight.grad is gradient
    assert ALONE.sum(z.z) is z.z and ALONE.max(z.z) is z.z and ALONE.any(True) and not ALONE.any(False)
    assert ALONE.from_leader(lambda: z) is z


def test_dropout_is_torchs_and_the_same_for_a_sample_on_any_rank():
    x = torch.randn(7, 5)
    torch.manual_seed(0)
    expected = nn.Dropout(0.4)(x)
    torch.manual_seed(0)
    assert torch.equal(Dropout(0.4)(x), expected)
    for first, stop in ((0, 3), (3, 3), (3, 7)):
        torch.manual_seed(0)
        with placed((first, 7)):
            assert torch.equal(Dropout(0.4)(x[first:stop]), expected[first:stop])
    assert torch.equal(Dropout(0.4).eval()(x), x)


# ---- docs/scale.md ----------------------------------------------------------------------------------------------

SCALE = ROOT / "docs" / "scale.md"


def test_the_tables_come_from_the_results_file():
    spec = importlib.util.spec_from_file_location("ranks_benchmark", ROOT / "benchmarks" / "ranks.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = json.loads(benchmark.RESULTS.read_text())
    assert found["parity"].keys() == OBJECTIVES.keys()
    for sizes in found["parity"].values():
        for forms in sizes.values():
            assert forms["ours"]["difference"] < 1e-5 and forms["ours"]["cosine"] > 0.99999
    for name, table in benchmark.tables(found).items():
        assert f"<!-- {name} table -->\n{table}<!-- /{name} table -->" in SCALE.read_text()


def test_the_loop_in_the_docs_runs():
    (code,) = re.findall(r"```python\n(.*?)```", SCALE.read_text(), flags=re.DOTALL)
    z1, z2 = torch.randn(2, 6, 4, requires_grad=True)
    z1.retain_grad()
    exec(compile(code, "docs/scale.md", "exec"), {"z1": z1, "z2": z2, "has_audio": torch.arange(6) > 0})
    assert z1.grad.any()
