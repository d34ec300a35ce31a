"""The command line. Each command says what it does with --help, and a user's mistake ends with exit code 2."""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from centrobind.cli import search
from centrobind.cli.serve import serve, serve_run
from centrobind.cli.terminal import say
from centrobind.errors import CentrobindError, CentrobindWarning, Stopped

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Bind any number of modalities into one embedding space without choosing an anchor modality.",
)

Store = Annotated[str, typer.Argument(help="a store, or a built-in set: glyphs, synthetic, xor")]
RunPath = Annotated[Path, typer.Argument(help="a run's folder, or a binder's .safetensors file")]
Force = Annotated[bool, typer.Option("--force", help="overwrite what is there")]
Split = Annotated[Optional[str], typer.Option(help="train, valid or test; default: test if there is one, else all")]  # noqa: UP045


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="where results.json, report.html and the binder go")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="a tenth of the steps, to see that everything works")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    force: Force = False,
    serve_it: Annotated[bool, typer.Option("--serve", help="then look at the space in a browser")] = False,
) -> None:
    """Bind pictures, outlines and names of 5,570 characters with every kind of anchor, and compare them.

    Takes some minutes on 2 cores. Needs no download.
    """
    from centrobind.arena.demo import SETTINGS, run_demo
    from centrobind.progress import progress
    from centrobind.report.tables import terminal_table

    with progress("starting", 3 + len(SETTINGS)) as watch:  # the start, cb.fit and the closed form besides
        results = run_demo(out, quick=quick, seed=seed, replace=force, watch=watch)
    say("\nTest split, in %: recall@1/recall@10 of each direction, then accuracy of linear probes\n")
    say(terminal_table(results["rows"]))
    say(f"\n{results['sentence']}")
    for verdict in results["verdicts"]:
        say(f"  - {verdict}")
    say(f"\nIn brackets: 95 % intervals over test samples, one seed. Look at {out / 'report.html'}")
    say(f"Ask it in words and pictures: centrobind serve {out} glyphs")
    if serve_it:
        serve_run(out, "glyphs", browse=True)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help=".npz, .csv, .tsv, .jsonl or .parquet file, or a built-in set")],
    store: Annotated[Path, typer.Argument(help="folder of the new store")],
    modalities: Annotated[Optional[str], typer.Option(help="only these columns: image,audio")] = None,  # noqa: UP045
    kind: Annotated[list[str], typer.Option(help="what a modality is, where the guess is wrong: photo=image")] = [],  # noqa: B006
    nan_as_missing: Annotated[
        bool, typer.Option("--nan-as-missing", help="rows of NaN throughout are missing, not wrong")
    ] = False,
    read: Annotated[
        list[str],
        typer.Option(help="what files become: photo=image:64x64x3, clip=sound:400x64, walk=series:128"),
    ] = [],  # noqa: B006
    limit: Annotated[list[str], typer.Option(help="how much is decoded of a file: pixels=100000000")] = [],  # noqa: B006
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="files that cannot be read are missing, and listed in STORE/skipped.csv")
    ] = False,
    columns: Annotated[
        list[str], typer.Option(help="columns of numbers that are one modality: acc=ax,ay,az or genes=ENSG*")
    ] = [],  # noqa: B006
    encoding: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="of a CSV or JSONL file that is not UTF-8: cp1252 (Excel), latin-1"),
    ] = None,
    force: Force = False,
) -> None:
    """Turn a file into a store that can be trained on.

    A table has a row per sample and a column per modality, besides id, label, split and group (all optional). A
    cell is text, a list of numbers such as [0.1, 0.2], or the path of a picture, a sound, a text, a .npy or a .csv
    file beside or below the table; an empty cell means missing (docs/media.md). An npz holds x_<modality> arrays with
    one row per sample and, where there are gaps, present_<modality>.
    """
    from centrobind.cli.show import print_inspection
    from centrobind.data import Limits, inspect_samples, open_store, read_chunks, write_store
    from centrobind.data.builtin import DATASETS
    from centrobind.data.importing import first_of, in_words, list_skipped

    kinds = dict(_key_value(pair, "--kind") for pair in kind)
    skipped: list[Any] | None = [] if skip_bad else None
    picked = None if modalities is None else [name.strip() for name in modalities.split(",")]
    if source in DATASETS and not Path(source).exists():
        samples = DATASETS[source]()
        chunks: Any = samples if picked is None else samples.only(picked)
    else:
        chunks = read_chunks(
            source,
            modalities=picked,
            kinds=kinds,
            nan_as_missing=nan_as_missing,
            readings=dict(_key_value(pair, "--read") for pair in read),
            limits=Limits.of(dict(_key_value(pair, "--limit") for pair in limit)),
            skipped=skipped,
            columns={name: names.split(",") for name, names in (_key_value(pair, "--columns") for pair in columns)},
            encoding=encoding,
        )
    write_store(store, chunks, replace=force)
    if skipped:
        list_skipped(skipped, store / "skipped.csv")
        say(f"{in_words(skipped)} and were left out: {store / 'skipped.csv'}\n  {first_of(skipped)}\n", err=True)
    print_inspection(store, inspect_samples(open_store(store)))


@app.command()
def featurize(
    store: Store,
    out: Annotated[Path, typer.Argument(help="folder of the new store")],
    modality: Annotated[
        list[str], typer.Option(help="image=hf:FOLDER, name=hf:NAME/ON-HUB, or sound=file.py:function")
    ] = [],  # noqa: B006
    batch_size: Annotated[int, typer.Option(min=1, help="values in the model at a time")] = 64,
    force: Force = False,
) -> None:
    """Replace modalities by features of pretrained models, computed once; the other modalities stay as they are.

    Stop it whenever you like: the same command goes on where it was. On 8 GPUs, or 8 processes: torchrun
    --nproc-per-node 8 -m centrobind featurize ...
    """
    from centrobind.binder.features import featurize_store
    from centrobind.cli.show import print_inspection
    from centrobind.data import inspect_samples, open_store
    from centrobind.distributed import joined
    from centrobind.progress import progress, silent
    from centrobind.training.fit import open_data

    extractors = dict(_key_value(pair, "--modality") for pair in modality)
    with joined() as team:
        here = open_data(store).columns if team.leads else {}
        total = sum(int(here[name].present.sum()) for name in extractors if name in here)
        with progress("features", total) if team.leads else nullcontext(silent) as watch:
            featurize_store(store, out, extractors, batch_size=batch_size, force=force, watch=watch)
    if team.leads:
        print_inspection(out, inspect_samples(open_store(out)))


@app.command()
def inspect(
    store: Annotated[Optional[str], typer.Argument(help="a store, or a built-in set: glyphs, synthetic, xor")] = None,  # noqa: UP045
    plan: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="instead: the memory that the run of this YAML will need, by batch size"),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="read every file against its checksum")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Show what is in a store: counts, shapes, what is missing, labels, and what looks wrong."""
    if (store is None) == (plan is None):
        raise CentrobindError("inspect: expected a store, or --plan with the YAML of a run, and not both")
    if plan is not None:
        from centrobind.cli.show import print_needs
        from centrobind.training.config import load_config
        from centrobind.training.memory import plan as needs_of

        config = load_config(plan)
        needs = [vars(need) for need in needs_of(config)]
        say(json.dumps(needs, indent=1)) if as_json else print_needs(plan, needs, config.train.chunk)
        return
    from centrobind.cli.show import print_inspection
    from centrobind.data import inspect_samples, open_store
    from centrobind.training.fit import open_data

    found = inspect_samples(open_store(store, verify=True) if verify else open_data(store))
    if as_json:
        say(json.dumps(found.as_dict(), indent=1))
    else:
        print_inspection(store, found)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="the run's YAML; see README for one")],
    settings: Annotated[list[str], typer.Option("--set", help="change one key: train.lr=1e-4")] = [],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")] = False,
    force: Force = False,
) -> None:
    """Train a binder as a YAML says; its folder gets checkpoints, metrics.jsonl and binder.safetensors.

    On 8 GPUs, or 8 processes: torchrun --nproc-per-node 8 -m centrobind train CONFIG. The result is the same.
    """
    from centrobind.distributed import joined
    from centrobind.progress import progress, silent
    from centrobind.training.config import check_config, load_config
    from centrobind.training.fit import run_config

    with joined() as team:
        checked = team.from_leader(lambda: load_config(config, settings).model_dump(mode="json"))
        checked = check_config(checked, str(config))
        title = "training" if checked.objective is None else checked.objective.name
        steps = checked.train.most_steps
        with progress(title, steps) if team.leads else nullcontext(silent) as watch:
            run_config(checked, resume=resume, replace_run=force, watch=watch, say=say if team.leads else silent)
    if team.leads:
        say(f"binder: {Path(checked.out) / 'binder.safetensors'}")


@app.command()
def replay(run: Annotated[Path, typer.Argument(help="the folder of a run that stopped at such a step")]) -> None:
    """Do the step again at which a run stopped because its loss or gradient was not finite, and say what was not."""
    from centrobind.training.replay import replay

    again = replay(run)
    say(f"step {again.step}: loss {again.loss}, gradient {again.gradient}")
    say("\n".join(f"  not finite: {what}" for what in again.found) or "  everything is finite")


@app.command()
def evaluate(
    run: RunPath,
    store: Store,
    split: Split = None,
    out: Annotated[Optional[Path], typer.Option(help="also write all numbers to this JSON file")] = None,  # noqa: UP045
) -> None:
    """Measure retrieval in every direction, probes, transfer and geometry of a trained binder."""
    from centrobind.binder.checkpoint import load
    from centrobind.evaluation.evaluate import evaluate
    from centrobind.files import write_atomically
    from centrobind.training.fit import open_data

    binder, samples = load(run), open_data(store)
    part, learn = _parts(samples, split)
    options: dict[str, Any] = {}
    if part.label is not None and learn is not None:
        options = {"train": binder.embed(learn), "train_labels": learn.label}
    scores = evaluate(binder.embed(part), part.label, resamples=1000, **options)
    say(scores.table())
    if out is not None:
        write_atomically(out, (json.dumps(scores.to_dict(), indent=1) + "\n").encode())


@app.command()
def diagnose(
    run: RunPath,
    store: Store,
    split: Split = None,
    as_json: Annotated[Optional[Path], typer.Option("--json", help="also write all numbers to this JSON file")] = None,  # noqa: UP045
) -> None:
    """Say what a binder's embeddings share, in nats, what is wrong with it, and what to try.

    Three numbers for the three claims of CentroBind (docs/theory.md), how the anchor is made up, then findings in
    words. Takes seconds; new heads are trained on the train split to see whether a pair was lost.
    """
    from centrobind.binder.checkpoint import load
    from centrobind.cli.show import diagnosis_text
    from centrobind.evaluation.diagnose import diagnose
    from centrobind.evaluation.realignment import STEPS
    from centrobind.files import write_atomically
    from centrobind.progress import progress
    from centrobind.training.fit import open_data, run_objective

    binder, samples = load(run), open_data(store)
    part, learn = _parts(samples, split)
    with progress("diagnosing", STEPS) as watch:
        found = diagnose(binder, part, objective=run_objective(run, binder), train=learn, watch=watch)
    say(diagnosis_text(found))
    if learn is None:
        say("\nNot held out, as far as is known: bounds on samples that were trained on can be too high.")
    if as_json is not None:
        write_atomically(as_json, (json.dumps(found.as_dict(), indent=1) + "\n").encode())


@app.command()
def embed(
    run: RunPath,
    store: Store,
    out: Annotated[Path, typer.Argument(help="an .npz, or a folder for a store of any size")],
    split: Annotated[Optional[str], typer.Option(help="only this split; default: all samples")] = None,  # noqa: UP045
    force: Force = False,
) -> None:
    """Embed every sample in every modality it has."""
    from centrobind.binder.checkpoint import load
    from centrobind.binder.embedding import embed_to
    from centrobind.progress import progress
    from centrobind.training.fit import open_data

    binder, samples = load(run), open_data(store)
    samples = samples if split is None else samples.part(split)
    with progress("embedding", len(samples)) as watch:
        embed_to(binder, samples, out, force=force, watch=watch)
    say(f"{len(samples)} samples, {binder.dim} dimensions: {out}")


app.command()(search.index)
app.command()(search.search)
app.command()(serve)


@app.command()
def compare(
    data: Annotated[list[str], typer.Argument(help="stores, files, built-in sets; or one arena.yaml with everything")],
    objectives: Annotated[
        str, typer.Option(help="all, or names: centrobind,all_pairs,fabind; file.py:function is one of your own")
    ] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="final runs of each")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="optimizer steps of every run")] = 300,
    out: Annotated[
        Path, typer.Option(help="rows, results.json, tables and report go here; also where to go on")
    ] = Path("runs/arena"),
    budget: Annotated[Optional[str], typer.Option(help="a time to fit into: 30m, 2h")] = None,  # noqa: UP045
    jobs: Annotated[int, typer.Option(min=0, help="runs at a time; 0 = one per core")] = 0,
    ours: Annotated[Optional[str], typer.Option(help="whose duels to show; default: the best dynamic anchor")] = None,  # noqa: UP045
    tables: Annotated[bool, typer.Option("--tables", help="train nothing, only make the tables again")] = False,
) -> None:
    """Compare objectives on data sets: tuned alike on validation, then tested over seeds, with intervals.

    Stop it whenever you like: the same command goes on where it was.
    """
    from centrobind.arena.pages import markdown, write_results
    from centrobind.arena.plan import ArenaConfig
    from centrobind.arena.schedule import Arena, planned
    from centrobind.progress import progress
    from centrobind.training.config import load_checked

    if len(data) == 1 and data[0].endswith((".yaml", ".yml")):
        config = load_checked(ArenaConfig, Path(data[0]))
    else:
        named: Any = "all" if objectives == "all" else objectives.split(",")
        config = ArenaConfig(data=data, out=str(out), objectives=named, seeds=seeds, steps=steps)
    config, cuts = planned(config, None if budget is None else _seconds(budget), jobs=jobs)
    if budget is not None:
        say(f"to fit {budget}: " + (", ".join(cuts) or "nothing had to be cut"))
    arena = Arena(config)
    if not tables:
        with progress("arena", sum(arena.count())) as watch:
            arena.run(jobs=jobs, watch=watch)
    say(markdown(write_results(arena, ours=ours)))
    say(f"Look at {arena.out / 'report.html'}")


def _seconds(text: str) -> float:
    """ "30m", "2h", "90s" or plain seconds."""
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        return float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        raise CentrobindError(f"--budget {text}: expected a time such as 90s, 30m or 2h") from None


def _parts(samples: Any, split: str | None) -> tuple[Any, Any]:
    """What to test on, and what probes may learn from (None if that would be the same)."""
    if split is None:
        split = "test" if samples.has("test") else None
    if split is None:
        return samples, None
    return samples.part(split), samples.part("train") if samples.has("train") and split != "train" else None


def _key_value(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise CentrobindError(f"{option} {text}: expected modality=value, such as photo=image")
    return key, value


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Ours without the line of code they come from; it means nothing to a user."""
    ours = issubclass(category, CentrobindWarning)
    say(f"centrobind: {message}" if ours else warnings.formatwarning(message, category, *where[:2]), err=True)


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 2, never a traceback."""
    warnings.showwarning = _show_warning
    try:
        app(standalone_mode=True)
    except (CentrobindError, Stopped) as error:
        ranks = int(os.environ.get("WORLD_SIZE", "1"))  # told by torchrun
        who = f"rank {os.environ.get('RANK')} of {ranks}: " if ranks > 1 else ""
        if not error.said:
            say(f"centrobind: {who}{error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
