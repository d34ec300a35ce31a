"""Small galleries for the tests of the page, and an application that is asked without a network."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from centrobind.binder.binder import build_binder
from centrobind.binder.checkpoint import save
from centrobind.data import Samples, open_store, read_chunks, write_store
from centrobind.data.builtin import glyphs
from centrobind.serve.gallery import Gallery
from centrobind.serve.opening import open_gallery
from centrobind.training.fit import fit

KNIGHT = "U+265E"


def glyph_gallery(folder: Path) -> Gallery:
    """120 symbols around the chess pieces, learned by heart."""
    everything = glyphs()
    ids = everything.ids[:]
    middle = ids.index(KNIGHT)
    few = everything.take(np.arange(middle - 60, middle + 60))
    few = Samples(few.columns, few.ids, few.label, None, None)
    encoders = {"image": {"encoder": "cnn", "channels": 8, "depth": 2}, "name": "bag"}
    encoders["outline"] = {"encoder": "sequence", "channels": 8, "depth": 2}
    binder = fit(few, valid=few, encoders=encoders, dim=24, steps=90, lr=1e-2, augment=0.3, show_progress=False)
    write_store(folder / "store", [few])
    save(binder, folder / "binder")
    return open_gallery(folder / "binder.safetensors", folder / "store")


def tone_gallery(folder: Path) -> Gallery:
    """84 notes and their names, learned by heart."""
    from tones import write_tones

    write_store(folder / "store", read_chunks(write_tones(folder), readings={"sound": "sound:40x48"}))
    samples = open_store(folder / "store")
    encoders = {"sound": {"encoder": "sequence", "channels": 24, "depth": 2}, "name": "bag"}
    binder = fit(
        samples, valid=samples, encoders=encoders, dim=24, steps=120, lr=1e-2, augment=0.3, show_progress=False
    )
    save(binder, folder / "binder")
    return open_gallery(folder / "binder.safetensors", folder / "store")


def text_gallery(folder: Path, *, wait: bool = True) -> Gallery:
    """Two modalities of texts and one of numbers, with gaps, in a binder that learned nothing."""
    count = 30
    samples = Samples.of(
        {
            "body": [f"long story number {i}" for i in range(count)],
            "title": [f"brief heading {i}" for i in range(count)],
            "vector": np.random.default_rng(0).normal(size=(count, 3)),
        },
        present={"title": np.arange(count) % 3 != 0, "body": np.arange(count) % 5 != 0},
        split=["test" if i % 4 == 0 else "train" for i in range(count)],
    )
    write_store(folder / "store", [samples])
    save(build_binder(samples, dim=8), folder / "binder")
    return open_gallery(folder / "binder.safetensors", folder / "store", wait=wait)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)


def ask(app, method, path, body=b"", *, headers=None, more=(), pieces=None, wait=0.0) -> Answer:
    """One request through an ASGI application; `pieces` send the body bit by bit, `wait` seconds before each.

    `more` are headers beside those that there are already, of the same name too.
    """
    if not isinstance(body, bytes):
        body, headers = json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})}
    path, _, query = path.partition("?")
    given = {"host": "localhost:8000", "content-length": str(len(body)), **(headers or {})}
    from urllib.parse import unquote

    scope = {
        "type": "http",
        "method": method,
        "path": unquote(path),
        "raw_path": path.encode(),
        "http_version": "1.1",
        "query_string": query.encode(),
        "root_path": "",
        "scheme": "http",
        "server": ("localhost", 8000),
        "headers": [
            (name.lower().encode(), value.encode()) for name, value in [*given.items(), *more] if value is not None
        ],
    }
    pending = list(pieces) if pieces is not None else [body]
    said = []

    async def receive():
        if not pending:
            await asyncio.sleep(3600)
        await asyncio.sleep(wait)
        return {"type": "http.request", "body": pending.pop(0), "more_body": bool(pending)}

    async def send(message):
        said.append(message)

    asyncio.run(app(scope, receive, send))
    assert said[0]["type"] == "http.response.start", said
    content = b"".join(message.get("body", b"") for message in said[1:])
    return Answer(said[0]["status"], {k.decode().lower(): v.decode() for k, v in said[0]["headers"]}, content)


def form(query, **files):
    """A multipart body and its header."""
    edge, parts = "----edge7", []
    parts.append(f'--{edge}\r\nContent-Disposition: form-data; name="query"\r\n\r\n{json.dumps(query)}\r\n'.encode())
    for name, content in files.items():
        head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="../../etc/passwd"\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    return b"".join(parts) + f"--{edge}--\r\n".encode(), {"content-type": f"multipart/form-data; boundary={edge}"}
