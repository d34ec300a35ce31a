"""The commands `index` and `search`: what the words of a command line ask for, and how hits are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from centrobind.cli.terminal import plain, say
from centrobind.errors import DataError

Texts = list[str]
RunPath = Annotated[Path, typer.Argument(help="a run's folder, or a binder's .safetensors file")]


def index(
    run: RunPath,
    store: Annotated[str, typer.Argument(help="a store, or a built-in set: glyphs, synthetic, xor")],
    out: Annotated[Optional[str], typer.Option(help="where it goes; default: RUN/index")] = None,  # noqa: UP045
    engine: Annotated[str, typer.Option(help="exact; or lancedb, an embedded database (an extra)")] = "exact",
    split: Annotated[Optional[str], typer.Option(help="only this split; default: all samples")] = None,  # noqa: UP045
    force: Annotated[bool, typer.Option("--force", help="overwrite the index that is there")] = False,
) -> None:
    """Embed every sample in every modality it has, for `search`."""
    from centrobind.binder.checkpoint import load
    from centrobind.index import build_index
    from centrobind.progress import progress
    from centrobind.training.fit import open_data

    binder, samples = load(run), open_data(store)
    samples = samples if split is None else samples.part(split)
    with progress("indexing", len(samples)) as watch:
        made = build_index(
            binder, samples, place_of(run) if out is None else out, engine=engine, replace=force, watch=watch
        )
    say(f"{len(made)} samples, {', '.join(made.modalities)}: {made.path}")


def search(
    run: RunPath,
    text: Annotated[Texts, typer.Option(help="words, or name=words to say the modality")] = [],  # noqa: B006
    file: Annotated[Texts, typer.Option(help="a picture, sound, series or text, or name=path")] = [],  # noqa: B006
    id: Annotated[Texts, typer.Option(help="a sample of the index, or name=id for one modality of it")] = [],  # noqa: B006
    unwanted: Annotated[
        Texts, typer.Option("--not", help="words, file:path or id:id that hits should not be like")
    ] = [],  # noqa: B006
    want: Annotated[Optional[str], typer.Option(help="the modality to find; default: each of them")] = None,  # noqa: UP045
    k: Annotated[int, typer.Option("-k", min=1, help="how many")] = 5,
    where: Annotated[Texts, typer.Option(help="only these: label=chess, split=test, group=a")] = [],  # noqa: B006
    index: Annotated[Optional[str], typer.Option(help="the index; default: RUN/index")] = None,  # noqa: UP045
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Find the samples nearest to all that is given, across modalities: words, files and samples, in any number."""
    from centrobind.binder.checkpoint import load
    from centrobind.index import open_index
    from centrobind.index.asking import Question

    binder = load(run)
    opened = open_index(place_of(run) if index is None else index, binder)
    asked = Question(binder, opened)
    for way, values in (("text", text), ("file", file), ("id", id)):
        for value in values:
            asked.add(way, value)
    for value in unwanted:
        way, colon, rest = value.partition(":")
        asked.add(*((way, rest) if colon and way in ("file", "id") else ("text", value)), wanted=False)
    limits = narrowed(where)
    found = {
        name: opened.search(asked.vector(name), name, k, limits) for name in ([want] if want else opened.modalities)
    }
    labels = opened.category("label")
    hits = [
        {
            "modality": name,
            "rank": rank,
            "id": one,
            "score": round(score, 4),
            "label": None if labels is None or labels.codes[row] < 0 else labels.names[labels.codes[row]],
            "caption": caption,
        }
        for name, each in found.items()
        for rank, (one, score, row, caption) in enumerate(
            zip(each.ids[0], each.scores[0], each.rows[0], opened.captions(each.rows[0])), start=1
        )
    ]
    if as_json:
        say(json.dumps({"binder": binder.fingerprint, "unknown": asked.unknown, "hits": hits}, indent=1))
        return
    say(shown(hits))
    if asked.unknown:
        words = ", ".join(repr(word) for word in asked.unknown)
        say(f"centrobind: never seen in training, and of no effect on these hits: {words}", err=True)


def place_of(run: Path) -> Path:
    """Where the index of a run is, if nothing else is said."""
    return run / "index" if run.is_dir() else run.with_suffix(".index")


def narrowed(where: Texts) -> dict[str, list[str]]:
    """["label=a", "label=b"] -> {"label": ["a", "b"]}: either of them."""
    limits: dict[str, list[str]] = {}
    for pair in where:
        what, equals, name = pair.partition("=")
        if not equals:
            raise DataError(f"--where {pair}: expected label=name, split=name or group=name")
        limits.setdefault(what, []).append(name)
    return limits


def shown(hits: list[dict[str, Any]]) -> str:
    """A line per hit, under the name of its modality: rank, cosine, id, label, and what it is in words."""
    if not hits:
        return "nothing found"
    ids = [plain(hit["id"]) for hit in hits]
    labels = [plain(hit["label"] or "") for hit in hits]
    wide, wider = max(map(len, ids)), max(map(len, labels))
    lines = []
    for hit, name, label in zip(hits, ids, labels):
        if hit["rank"] == 1:
            lines.append(hit["modality"])
        caption = plain(hit["caption"] or "")
        lines.append(f"  {hit['rank']:>2}  {hit['score']:+.3f}  {name:<{wide}}  {label:<{wider}}  {caption}".rstrip())
    return "\n".join(lines)
