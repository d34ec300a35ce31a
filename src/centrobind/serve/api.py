"""The handlers: a request in, a Gallery asked, JSON out. What a client gets wrong is 4xx with the reason."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from centrobind.errors import CentrobindError, DataError
from centrobind.serve.description import describe
from centrobind.serve.gallery import Gallery, Part
from centrobind.serve.guard import FAULT, HEALTH
from centrobind.serve.models import MOST_PARTS, EmbedQueries, EmbedQuery, PartSent, SearchQuery, read
from centrobind.serve.values import from_json, from_upload

THREADS = 4  # that compute at a time; other requests wait, which is cheap
MOST_JSON = 2**20
FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **dict.fromkeys(
        ("page.js", "map.js", "raster.js", "cards.js", "query.js", "report.js"), "text/javascript; charset=utf-8"
    ),
}
# A run's report is one file with its style inside; it has no script, and gets to run none.
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)


def make_api(gallery: Gallery) -> Starlette:
    """The application without its guard: the page, its files, and the API that it talks to."""
    static = {name: files("centrobind").joinpath("serve", "static", name).read_bytes() for name in FILES}
    points: bytes | None = None  # once the map is drawn
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="serve")

    async def compute(work: Callable[..., Any], *given: Any, **more: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(threads, partial(work, *given, **more))

    async def page(request: Request) -> Response:
        return Response(static["index.html"], media_type=FILES["index.html"])

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in FILES:  # read when the server started: no path of a client's is ever opened
            raise HTTPException(404, "no such file")
        return Response(static[name], media_type=FILES[name], headers={"cache-control": "no-cache"})

    async def run_report(request: Request) -> Response:
        if gallery.page is None:
            raise HTTPException(404, "this run has no report.html")
        content = await compute(gallery.page.read_bytes)
        return Response(content, media_type="text/html", headers={"content-security-policy": REPORT_POLICY})

    async def about(request: Request) -> Response:
        return JSONResponse(gallery.about())

    async def all_points(request: Request) -> Response:
        nonlocal points
        if points is None:
            content = await compute(lambda: json.dumps(gallery.points(), separators=(",", ":")).encode())
            if not content.startswith(b'{"ready":true'):
                return Response(content, media_type="application/json")
            points = content
        return Response(points, media_type="application/json")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def sample(request: Request) -> Response:
        return JSONResponse(_found(gallery.describe, request.path_params["id"]))

    async def value(request: Request) -> Response:
        modality, one = request.path_params["modality"], request.path_params["id"]
        shape = request.query_params.get("as", "value")
        if shape not in ("value", "sketch"):
            raise HTTPException(400, f"as: expected value or sketch, got {shape[:40]!r}")
        content, kind = await compute(_found, gallery.value, modality, one, sketch=shape == "sketch")
        # The page asks with ?v=..., which changes with the binder, so that a browser may keep what it has.
        keep = "private, max-age=86400, immutable" if "v" in request.query_params else "no-store"
        return Response(content, media_type=kind, headers={"cache-control": keep})

    async def search(request: Request) -> Response:
        sent, uploads = await _sent(request)
        asked = read(SearchQuery, sent)
        parts, minus = await compute(_parts, gallery, asked, uploads)
        where = asked.where.model_dump(exclude_none=True)
        found = await compute(gallery.search, parts, minus, want=asked.want, k=asked.k, where=where)
        return JSONResponse(found)

    async def embed(request: Request) -> Response:
        sent, uploads = await _sent(request)
        several = "queries" in sent
        queries = read(EmbedQueries, sent).queries if several else [read(EmbedQuery, sent)]
        vectors = await compute(lambda: gallery.embed([_parts(gallery, one, uploads) for one in queries]).tolist())
        found = {"vectors": vectors} if several else {"vector": vectors[0]}
        return JSONResponse({**found, "fingerprint": gallery.binder.fingerprint})

    async def report(request: Request) -> Response:
        return JSONResponse(await compute(gallery.report))

    async def openapi(request: Request) -> Response:
        return JSONResponse(describe(gallery.about()))

    return Starlette(
        routes=[
            Route("/", page),
            Route("/static/{name}", file),
            Route("/report", run_report),
            Route(HEALTH, health),
            Route("/api/about", about),
            Route("/api/points", all_points),
            Route("/api/sample/{id:path}", sample),
            Route("/api/value/{modality}/{id:path}", value),
            Route("/api/search", search, methods=["POST"]),
            Route("/api/embed", embed, methods=["POST"]),
            Route("/api/report", report),
            Route("/api/openapi.json", openapi),
        ],
        exception_handlers={
            HTTPException: _refusal,
            CentrobindError: _refusal,
            MultiPartException: _refusal,
            Exception: _fault,  # and raised again, for the guard to put into the log
        },
    )


async def _refusal(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)
    said = error.message if isinstance(error, MultiPartException) else str(error)
    return JSONResponse({"error": said}, 400)


async def _fault(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": FAULT}, 500)


def _found(ask: Callable[..., Any], *given: Any, **more: Any) -> Any:
    """What a path names, or 404."""
    try:
        return ask(*given, **more)
    except DataError as error:
        raise HTTPException(404, str(error)) from None


async def _sent(request: Request) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The JSON of a request and its files by name: a JSON body, or a form with a field `query` and files."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    uploads: dict[str, bytes] = {}
    if kind == "multipart/form-data":
        parser = MultiPartParser(request.headers, request.stream(), max_files=MOST_PARTS, max_fields=1)
        parser.spool_max_size = 2**30  # in memory: the guard has bounded it, and nothing is to be left on the disk
        form = await parser.parse()
        text = form.get("query", "{}")
        uploads = {name: await held.read() for name, held in form.items() if not isinstance(held, str)}
        await form.close()
        if not isinstance(text, str):
            raise HTTPException(400, "query: expected a field of JSON, got a file")
    elif kind == "application/json":
        text = await request.body()
    else:
        raise HTTPException(415, f"expected application/json or multipart/form-data, got {kind[:60] or 'nothing'!r}")
    if len(text) > MOST_JSON:
        raise HTTPException(413, f"JSON of {len(text):,} letters; at most {MOST_JSON:,} are read")
    try:
        sent = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"not JSON ({error})") from None
    if not isinstance(sent, dict):
        raise HTTPException(400, f"expected a JSON object, got {type(sent).__name__}")
    return sent, uploads


def _parts(gallery: Gallery, asked: EmbedQuery, uploads: dict[str, bytes]) -> tuple[list[Part], list[Part]]:
    """What is looked for and what is not wanted."""
    wanted, unwanted = ([_part(gallery, part, uploads) for part in parts] for parts in (asked.query, asked.minus))
    return wanted, unwanted


def _part(gallery: Gallery, sent: PartSent, uploads: dict[str, bytes]) -> Part:
    if sent.id is not None:
        return Part(sent.modality, id=sent.id)
    if sent.text is not None and sent.modality is None:
        return Part(None, from_json(sent.text, None))
    column = gallery.column(sent.modality)
    try:
        if sent.file is None:
            return Part(sent.modality, from_json(sent.values if sent.text is None else sent.text, column))
        if sent.file not in uploads:
            raise DataError(f"file: expected one of the form's files {sorted(uploads)[:8]}, got {sent.file!r:.60}")
        return Part(sent.modality, from_upload(uploads[sent.file], column))
    except DataError as error:
        raise DataError(f"{sent.modality}: {error}") from None
