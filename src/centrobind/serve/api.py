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
from centrobind.serve.guard import FAULT
from centrobind.serve.values import from_json, from_upload

THREADS = 4  # that compute at a time; other requests wait, which is cheap
MOST_PARTS = 16
MOST_HITS = 200
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
    points = json.dumps(gallery.points(), separators=(",", ":")).encode()
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
        return Response(points, media_type="application/json")

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
        asked, uploads = await _asked(request)
        options = _options(asked)
        parts, minus = await compute(_parts, gallery, asked, uploads)
        return JSONResponse(await compute(gallery.search, parts, minus, **options))

    async def embed(request: Request) -> Response:
        asked, uploads = await _asked(request)
        parts, minus = await compute(_parts, gallery, asked, uploads)
        vector = await compute(lambda: gallery.query(gallery.given(parts), gallery.given(minus)))
        return JSONResponse({"vector": vector.tolist(), "fingerprint": gallery.binder.fingerprint})

    async def report(request: Request) -> Response:
        return JSONResponse(await compute(gallery.report))

    async def openapi(request: Request) -> Response:
        return JSONResponse(describe(gallery.about()))

    return Starlette(
        routes=[
            Route("/", page),
            Route("/static/{name}", file),
            Route("/report", run_report),
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


async def _asked(request: Request) -> tuple[dict[str, Any], dict[str, bytes]]:
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
        asked = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"not JSON ({error})") from None
    if not isinstance(asked, dict):
        raise HTTPException(400, f"expected a JSON object, got {type(asked).__name__}")
    return asked, uploads


def _options(asked: dict[str, Any]) -> dict[str, Any]:
    """want, k and where, of the right types; what they name is checked where it is known."""
    unknown = sorted(asked.keys() - {"query", "minus", "want", "k", "where"})
    want, k, where = asked.get("want"), asked.get("k", 12), asked.get("where") or {}
    if unknown:
        raise HTTPException(400, f"unknown {unknown}, expected query, minus, want, k or where")
    if want is not None and not (
        isinstance(want, list) and 0 < len(want) <= 64 and all(isinstance(one, str) for one in want)
    ):
        raise HTTPException(400, "want: expected a list of modalities")
    if type(k) is not int or not 1 <= k <= MOST_HITS:
        raise HTTPException(400, f"k: expected a number from 1 to {MOST_HITS}")
    names = where.values() if isinstance(where, dict) else [0]
    if not all(
        isinstance(one, str) or (isinstance(one, list) and all(isinstance(o, str) for o in one)) for one in names
    ):
        raise HTTPException(400, 'where: expected categories, such as {"label": "GREEK"} or {"split": ["test"]}')
    return {"want": want, "k": k, "where": where}


def _parts(gallery: Gallery, asked: dict[str, Any], uploads: dict[str, bytes]) -> tuple[list[Part], list[Part]]:
    """What is looked for and what is not wanted."""
    wanted, unwanted = asked.get("query", []), asked.get("minus", [])
    for name, parts in (("query", wanted), ("minus", unwanted)):
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise DataError(f'{name}: expected a list of objects, such as [{{"modality": "name", "text": "knight"}}]')
    if len(wanted) + len(unwanted) > MOST_PARTS:
        raise DataError(f"{len(wanted) + len(unwanted)} parts, expected at most {MOST_PARTS}")
    return [_part(gallery, part, uploads) for part in wanted], [_part(gallery, part, uploads) for part in unwanted]


def _part(gallery: Gallery, given: dict[str, Any], uploads: dict[str, bytes]) -> Part:
    ways = [way for way in ("id", "text", "values", "file") if way in given]
    if len(ways) != 1 or given.keys() - {"modality", *ways}:
        raise DataError(f"a part: expected a modality and one of id, text, values or file, got {sorted(given)[:8]}")
    way, said, modality = ways[0], given[ways[0]], given.get("modality")
    if modality is not None and not isinstance(modality, str):
        raise DataError(f"modality: expected a name, got {type(modality).__name__}")
    if way == "id":
        if not isinstance(said, str):
            raise DataError(f"id: expected a text, got {type(said).__name__}")
        return Part(modality, id=said)
    column = gallery.column(modality)
    try:
        if way != "file":
            return Part(modality, from_json(said, column))
        if not isinstance(said, str) or said not in uploads:
            raise DataError(
                f"file: expected the name of one of the form's files {sorted(uploads)[:8]}, got {said!r:.60}"
            )
        return Part(modality, from_upload(uploads[said], column))
    except DataError as error:
        raise DataError(f"{modality}: {error}") from None
