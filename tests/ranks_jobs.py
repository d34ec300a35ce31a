"""What each rank does in the tests of ranks; test_ranks.py starts them and judges what they bring home."""

import inspect
import multiprocessing
import os
import signal
import traceback
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from centrobind.binder.augment import augment
from centrobind.binder.binder import build_binder
from centrobind.closed_form.bind import fit_closed_form
from centrobind.data import ReadAhead, Samples, train_and_valid
from centrobind.distributed import gather, joined
from centrobind.errors import CentrobindError, Stopped
from centrobind.objectives import infonce, tiled_tuples, tiles
from centrobind.objectives.anchored import AnchorInfoNCE
from centrobind.objectives.table import OBJECTIVES
from centrobind.seeds import seeded
from centrobind.training import loop as train_module
from centrobind.training import shard
from centrobind.training.config import TrainConfig
from centrobind.training.loop import train
from centrobind.training.run_folder import RunFolder
from centrobind.types import Embeddings
from conftest import mixed_samples

ROWS = 11  # 5 + 6 on two ranks, 3 + 4 + 4 on three
LAYOUTS = {2: "one rank only", 3: "gaps", 5: "a rank without a positive"}
CASES = [(name, 3 if name == "triangle" else count, layout) for name in OBJECTIVES for count, layout in LAYOUTS.items()]


# ---- one gradient -----------------------------------------------------------------------------------------------


def make_objective(name, names):
    takes = inspect.signature(OBJECTIVES[name]).parameters
    known = {"anchor": names[-1], "modalities": names, "weights": {names[0]: 2.0}}
    options = {key: value for key, value in known.items() if key in takes}
    return OBJECTIVES[name](**options, temperature=0.3, learn_temperature=True)


def make_samples(count, layout, rows=ROWS):
    draw = np.random.default_rng(count)
    names = "abcde"[:count]
    present = draw.random((count, rows)) < 0.7
    present[:, -2:] = True  # the joint objectives need complete samples
    if layout == "one rank only":
        present[-1, : -rows // 3] = False
    if layout == "a rank without a positive":
        present[:, : rows // 2] = np.arange(rows // 2) % count == np.arange(count)[:, None]
    present[0] |= ~present.any(0)
    columns = {
        name: [f"{'word ' * (i + 1)}{i}" for i in range(rows)] if name == "b" else draw.normal(size=(rows, 3 + m))
        for m, name in enumerate(names)
    }
    return Samples.of(columns, present=dict(zip(names, present)), kinds={"b": "text"})


def gradient(team, name, count, layout):
    """Loss and gradients of one objective, learned temperature, dropout, views and gaps and all, in float64."""
    samples = make_samples(count, layout)
    names = samples.modalities
    encoders = {n: {"encoder": "mlp", "width": 6, "dropout": 0.3} for n in names if n != "b"}
    binder, objective = build_binder(samples, dim=4, encoders=encoders).double(), make_objective(name, names).double()
    modules = torch.nn.ModuleDict({"towers": binder, "objective": objective})
    rows = np.random.default_rng(1).permutation(len(samples)) if layout == "gaps" else np.arange(len(samples))
    batch = team.level(binder.prepare(samples.batch(rows, team.part(len(rows)))))
    with seeded(1, 2):
        z, views = binder(batch), binder(augment(batch, binder.kinds, seed=(3, 4)))
        z, views = team.gather(z, views, ids=batch.whole)
        groups = torch.from_numpy(rows % 4) if layout == "gaps" else None
        with team.dividing():
            loss = objective(z, views=views, groups=groups)
    loss.total.backward()
    team.average(modules.parameters())
    found = {key: value.grad for key, value in modules.named_parameters() if value.grad is not None}
    return loss.total.item(), found, loss.parts if team.leads else None


def gradients(team):
    tiled_tuples.TILE = 3  # several of them, even here, and some across the border between ranks
    return {case: gradient(team, *case) for case in CASES}


TILED = [case for case in CASES if case[0] in ("centrobind", "leave_one_out", "all_pairs")]


def gradients_in_tiles(team):
    """The same where the batch is too large for one product: tiles that are kept, and tiles that are made again."""
    tiles.TILES["cpu"], infonce.WHOLE = (4, 3), 0
    made = {}
    for memory in (0, 2**20):
        infonce.MEMORY["cpu"] = memory
        made |= {(*case, memory): gradient(team, *case) for case in TILED}
    return made


def own_loop(team):
    """Gradients as in docs/scale.md: towers of one's own in DDP, all ranks' embeddings gathered, the plain loss."""
    torch.manual_seed(0)
    x, tower = torch.randn(2, 7, 3, dtype=torch.float64), torch.nn.Linear(3, 4).double()
    x = x[:, team.part(7)]
    run = DistributedDataParallel(tower) if team.size > 1 else tower
    a, b = run(x.flatten(0, 1)).unflatten(0, (2, -1))
    present = torch.arange(7)[team.part(7)] != 2
    loss = OBJECTIVES["leave_one_out"]()
    loss(gather(Embeddings.of({"a": a, "b": b}, present={"a": present}))).total.backward()
    return [value.grad for value in tower.parameters()]


def agreement(team):
    """Draws inside `dividing` after each rank drew another number of times, and weights after `spread`."""
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.fill_(team.rank)
    team.spread(layer)
    with seeded(0):
        torch.rand(team.rank + 1)
        with team.dividing():
            drawn = torch.rand(3)
    return drawn, layer.weight.detach()


# ---- whole runs -------------------------------------------------------------------------------------------------

SETTINGS = TrainConfig(
    steps=12, batch_size=16, lr=0.02, validate_every=1, checkpoint_every=12, log_every=1, tensorboard=False
)


@contextmanager
def seen_rows(at=None, then=None):
    """The rows of every batch that this process trains on; before step `at` it does `then` besides."""
    seen, plain = [], ReadAhead.__next__

    def batch(self):
        made = plain(self)
        seen.append(made.ids.tolist())
        if len(seen) == at:
            then()
        return made

    ReadAhead.__next__ = batch
    try:
        yield seen
    finally:
        ReadAhead.__next__ = plain


def trained(team, path, name="random", settings=SETTINGS, resume=False, seed=0, samples=None):
    """Weights at the end, in float64, and the rows that this rank read in each step."""
    learn, valid = train_and_valid(samples or mixed_samples())
    dropout = 0.2 if settings.chunk is None else 0.0  # in chunks a sample's draws hang on its place in the chunk
    binder = build_binder(learn, dim=8, encoders={"vector": {"encoder": "mlp", "dropout": dropout}}).double()
    objective = make_objective(name, learn.modalities).double()
    run = None
    if team.leads:
        run = RunFolder(path, resume=resume)
        run.write_config("x: 1")
    with seen_rows() as seen:
        train(binder, objective, learn, valid, settings, seed=seed, run=run)
    return binder.state_dict(), seen


def in_chunks(team, path):
    """The weights after three steps, in chunks of five samples on several ranks, in one of all on one."""
    chunk = 5 if team.size > 1 else 100
    return trained(team, path, settings=SETTINGS.model_copy(update={"steps": 3, "chunk": chunk}))[0]


def interrupted(team, path, settings=SETTINGS, at=5):
    """Ctrl-C on the last rank in a step; what every rank says then, and the rows it read."""

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # torchrun passes on what the terminal has sent already

    with seen_rows(at, twice if team.rank == team.size - 1 else int) as seen:
        try:
            trained(team, path, settings=settings)
        except Stopped as stop:
            return str(stop), stop.said, seen
    return None


SHARED = SETTINGS.model_copy(update={"steps": 3, "shard": True, "chunk": 3, "batch_size": 13})


def shares(team, broken=False):
    """Weights after three steps with divided towers, one of them frozen, and the bytes of towers and optimizer here.

    13 samples in chunks of 3 are 2 and 3 chunks on two ranks, and 2, 2 and 2 on three; hardly any has a text.
    """
    made, plain = [], train_module.make_optimizer
    draw, texts = np.random.default_rng(0), [f"{'word ' * (i % 4)}{i}" for i in range(13)]
    columns = {"text": texts, "vector": draw.normal(size=(13, 5)), "series": draw.normal(size=(13, 12, 2))}
    learn = Samples.of(columns, present={"text": np.arange(13) > 10})
    encoders = {"text": {"encoder": "transformer", "width": 8, "heads": 2}, "vector": {"encoder": "mlp", "depth": 3}}
    binder = build_binder(learn, dim=8, encoders=encoders).double()
    if broken:
        torch.nn.init.constant_(binder.towers["vector"].head.weight, torch.nan)
    objective = OBJECTIVES["fabind"](anchor="series", frozen=True).double()

    def make_optimizer(*args):
        made.append(plain(*args))
        return made[-1]

    with mock.patch.object(train_module, "make_optimizer", make_optimizer), mock.patch.object(shard, "BLOCK", 100):
        train(binder, objective, learn, learn, SHARED)
    (optimizer,) = made
    held = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    held += [value for group in optimizer.param_groups for value in group["params"]]
    return binder.state_dict(), sum(getattr(v, "to_local", lambda v=v: v)().nbytes for v in held)


def unsound(team):
    """What every rank says when a step with divided towers is not finite."""
    return [said(lambda: shares(team, broken=True))]


COUNTED = {  # comparisons without views and with them, and exchanged sums for each of their columns
    "leave_one_out": (4, 4, 1),
    "all_pairs": (6, 12, 1),
    "pmrl": (1, 2, 1),
    "gram": (4, 4, 2),
    "symile": (4, 4, 0),
}


def counted(team):
    """What one step hands to the collectives, (which, bytes), and the trained numbers and tensors."""
    return {(name, augment): exchanges(name, augment) for name in COUNTED for augment in (0, 1)}


def exchanges(name, augment):
    calls, steps, samples = [], [], Samples.of({n: np.eye(14) + m for m, n in enumerate("abcd")})
    samples = replace(samples, columns=samples.columns | {"t": Samples.of({"t": ["x y", "z"] * 7}).columns["t"]})
    samples = samples.only("abct")
    plain = {how: getattr(dist, how) for how in ("all_reduce", "all_gather", "reduce_scatter", "broadcast")}

    def counting(how):
        def call(*args, **options):
            sent = args[0] if how in ("all_reduce", "broadcast") else args[1]  # the others: (output, input)
            sent = sent if isinstance(sent, list) else [sent]
            calls.append((how, sum(value.numel() * value.element_size() for value in sent)))
            return plain[how](*args, **options)

        return call

    settings = TrainConfig(steps=3, batch_size=14, augment=augment, tensorboard=False)
    binder, objective = build_binder(samples, dim=8), make_objective(name, samples.modalities)
    trained = [v for module in (binder, objective) for v in module.parameters()]
    for how in plain:
        setattr(dist, how, counting(how))
    try:
        with seen_rows(2, lambda: steps.append(len(calls))), seen_rows(3, lambda: steps.append(len(calls))):
            train(binder, objective, samples, None, settings)
    finally:
        for how, function in plain.items():
            setattr(dist, how, function)
    return calls[steps[0] : steps[1]], sum(v.numel() for v in trained), len(trained)


# ---- mistakes ---------------------------------------------------------------------------------------------------


def said(make):
    try:
        make()
    except CentrobindError as error:
        return f"{type(error).__name__}: {error}"
    return None


def mistakes(team, folder):
    """What each rank says to mistakes that only some ranks can see."""
    rows = np.arange(60)  # the first half has a, the second b, the last two both: hardly a batch would have a positive
    present = {"a": (rows < 30) | (rows > 57), "b": rows >= 30}
    learn = Samples.of({"a": np.eye(60), "b": np.eye(60)}, present=present)

    def few_pairs(objective):
        train(build_binder(learn, dim=4), objective, learn, None, SETTINGS.model_copy(update={"batch_size": 4}))

    def nobody(views):
        """An anchor that no sample has, which is not known before the step."""
        return views.with_z(views.z, views.present & False)

    return {
        "few pairs": said(lambda: few_pairs(make_objective("leave_one_out", learn.modalities))),
        "another seed": said(lambda: trained(team, folder / "a", seed=team.rank)),
        "a taken folder": said(lambda: team.from_leader(lambda: RunFolder(folder / "a"))),
        "no positive": said(lambda: few_pairs(AnchorInfoNCE(nobody))),
        "fine": said(lambda: team.from_leader(lambda: None)),
    }


def one_dies(team, folder):
    """A rank is killed in step 3; the others must not wait for it."""
    with seen_rows(3, (lambda: os._exit(9)) if team.rank == 1 else int):
        return said(lambda: trained(team, folder))


def closed_form(team):
    """Maps that come from sums over all samples, each rank's share of them; settings from a part of them."""
    with mock.patch("centrobind.closed_form.bind.CHOSEN_ON", 40), mock.patch("centrobind.closed_form.stream.CHUNK", 7):
        form = fit_closed_form(mixed_samples(), dim=4)
    return {name: (form.matrix[name], form.bias[name]) for name in form.features}, form.choice.scores


def start(size, jobs, folder: Path) -> list[dict]:
    """Run functions of this module on so many ranks; what each rank found, by job, or the traceback of its error."""
    context = multiprocessing.get_context("forkserver")  # imports torch once, forks before it has threads
    context.set_forkserver_preload(["centrobind.training.fit", "torch._dynamo", "torch.distributed.fsdp"])
    ranks = [context.Process(target=_rank, args=(rank, size, jobs, folder)) for rank in range(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(400)
        rank.kill()
    files = [folder / f"{rank}of{size}.pt" for rank in range(size)]
    return [torch.load(file, weights_only=False) if file.exists() else {} for file in files]


def _rank(rank, size, jobs, folder):
    torch.set_num_threads(1)
    meet = f"file://{folder / f'meet{size}'}"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=size, timeout=timedelta(minutes=5))
    made = {}
    with joined() as team:
        for name, *args in jobs:
            try:
                made[name] = globals()[name.removesuffix("_divided")](team, *args)
            except Exception:
                made[name] = traceback.format_exc()
                break
    torch.save(made, folder / f"{rank}of{size}.pt")
    dist.destroy_process_group()
