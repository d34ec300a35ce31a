"""`centrobind serve`: what the command line takes, and nothing heavy before it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer


def serve(
    run: Annotated[Path, typer.Argument(help="a run's folder, or a binder's .safetensors file")],
    store: Annotated[str, typer.Argument(help="a store, or a built-in set: glyphs, synthetic, xor")],
    split: Annotated[Optional[str], typer.Option(help="only this split; default: all samples")] = None,  # noqa: UP045
    index: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="an index that is there already; default: one is made and kept beside the binder"),
    ] = None,
    cache: Annotated[Optional[Path], typer.Option(help="where index and map are kept; default: RUN/serve")] = None,  # noqa: UP045
    host: Annotated[str, typer.Option(help="address to listen on; beyond 127.0.0.1 a token is needed")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any free one")] = 8000,
    token: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(envvar="CENTROBIND_TOKEN", help="what clients have to know; default: none here, random elsewhere"),
    ] = None,
    allow_host: Annotated[list[str], typer.Option(help="another name this machine is called by")] = [],  # noqa: B006
    browse: Annotated[bool, typer.Option("--open", help="open a browser")] = False,
) -> None:
    """Look at a space in the browser: a map, search from any modality in any other, and an HTTP API.

    Ask with words, a picture, a sound, or all of them. Only this machine can reach it, unless you say --host.
    """
    serve_run(run, store, split, index, cache, host=host, port=port, token=token, allow=allow_host, browse=browse)


def serve_run(
    run: Path,
    store: str,
    split: str | None = None,
    index: Path | None = None,
    cache: Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    allow: list[str] | None = None,
    browse: bool = False,
) -> None:
    """Open what is to be seen, with a bar for the first time, and serve it."""
    from centrobind.cli.terminal import say
    from centrobind.progress import progress
    from centrobind.serve.access import checked_token
    from centrobind.serve.app import needed
    from centrobind.serve.app import serve as serve_gallery
    from centrobind.serve.opening import open_gallery

    needed()  # before the seconds that the first start takes
    if token is not None:
        checked_token(token)
    with progress("opening", 100) as watch:
        gallery = open_gallery(run, store, split=split, index=index, cache=cache, wait=False, watch=watch)
    if not gallery.drawing.ready:
        say("The map is being drawn; everything else can be asked for already.", err=True)
    serve_gallery(gallery, host=host, port=port, token=token, allow=allow or [], browse=browse, say=say)
