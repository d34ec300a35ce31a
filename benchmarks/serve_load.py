"""64 clients at once for a minute against `centrobind serve`: errors, answers a second, how long they take, memory.

    python benchmarks/serve_load.py --run runs/demo --store glyphs

Clients ask with words, pictures and samples, fetch values and the map, and a tenth of what they send is wrong on
purpose and has to be refused. Server and clients share the machine. Writes benchmarks/results/serve_load.json.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import pages
from PIL import Image

PAGE = Path(__file__).parents[1] / "docs" / "serve.md"
Request = tuple[str, bytes, int]  # what it is, its bytes, the status that it has to get


def requests(about: dict, points: dict) -> list[Request]:
    """One of each kind that the space allows, as often as it should come."""
    names = {one["shows"]: one["name"] for one in about["modalities"]}
    ids, made = points["ids"][:: max(1, len(points["ids"]) // 40)], []
    for number, one in enumerate(ids):
        made.append(("search by id", _post({"query": [{"id": one}]}), 200))
        if "text" in names:
            text = {"modality": names["text"], "text": f"black thing number {number}"}
            made += [("search by words", _post({"query": [text]}), 200)] * 3
            made.append(("embed", _post({"query": [text, {"id": one}]}, "/api/embed"), 200))
        if "image" in names:
            pixels = np.random.default_rng(number).integers(0, 255, (200, 160), dtype=np.uint8)
            made.append(("search by picture", _upload(names["image"], pixels), 200))
            made += [("picture", _get(f"/api/value/{names['image']}/{quote(one)}"), 200)] * 2
        made.append(("mistake", _post({"query": [{"modality": "none", "text": "x"}]}), 400))
    return [*made, ("map", _get("/api/points"), 200)]


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def _post(query: dict, path: str = "/api/search", kind: str = "application/json", body: bytes | None = None) -> bytes:
    body = json.dumps(query).encode() if body is None else body
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _upload(modality: str, pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    query = json.dumps({"query": [{"modality": modality, "file": "f"}]})
    parts = [
        f'--e\r\nContent-Disposition: form-data; name="query"\r\n\r\n{query}\r\n'.encode(),
        b'--e\r\nContent-Disposition: form-data; name="f"; filename="f.png"\r\n\r\n'
        + buffer.getvalue()
        + b"\r\n--e--\r\n",
    ]
    return _post({}, kind="multipart/form-data; boundary=e", body=b"".join(parts))


async def client(host: str, port: int, asked: list[Request], start: int, until: float, log: list) -> None:
    reader = writer = None
    number = start * 7
    while time.monotonic() < until:
        what, content, expected = asked[number % len(asked)]
        number += 1
        began = time.monotonic()
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection(host, port)
            writer.write(content)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.split("content-length: ")[1].split("\r\n")[0])
            await reader.readexactly(length)
            status = int(head.split()[1])
            log.append((what, time.monotonic() - began, None if status == expected else f"{what}: status {status}"))
        except (OSError, asyncio.IncompleteReadError, LookupError, ValueError) as error:
            log.append((what, time.monotonic() - began, f"{what}: {type(error).__name__} {error}"))
            writer = None
    if writer is not None:
        writer.close()


async def load(host: str, port: int, pid: int, clients: int, seconds: float) -> tuple[list, list[float]]:
    about, points = await fetch(host, port, "/api/about"), await fetch(host, port, "/api/points")
    asked, log, memory = requests(about, points), [], []
    until = time.monotonic() + seconds
    working = [asyncio.create_task(client(host, port, asked, n, until, log)) for n in range(clients)]
    while time.monotonic() < until:
        memory.append(megabytes(pid))
        await asyncio.sleep(1)
    await asyncio.gather(*working)
    return log, memory


async def fetch(host: str, port: int, path: str) -> dict:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(_get(path))
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    content = await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
    writer.close()
    return json.loads(content)


def megabytes(pid: int) -> float:
    """Resident memory, from Linux's /proc."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    told.add_argument("--run", default="runs/demo")
    told.add_argument("--store", default="glyphs")
    told.add_argument("--clients", type=int, default=64)
    told.add_argument("--seconds", type=float, default=60)
    told.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "serve_load.json")
    given = told.parse_args()
    command = [sys.executable, "-u", "-m", "centrobind", "serve", given.run, given.store, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = urlsplit(server.stdout.readline().split()[-1])
        place = (address.hostname, address.port)
        asyncio.run(load(*place, server.pid, 8, 5))  # memory settles first: torch and uvicorn fill their pools
        log, memory = asyncio.run(load(*place, server.pid, given.clients, given.seconds))
        server.send_signal(signal.SIGTERM)
        ended = server.wait(30)
    finally:
        server.kill()
    spent = np.array([seconds for _, seconds, _ in log])
    faults = [fault for _, _, fault in log if fault]
    third = max(1, len(memory) // 3)
    kinds = {what: sum(one[0] == what for one in log) for what in sorted({one[0] for one in log})}
    found = {
        "command": f"python benchmarks/serve_load.py --clients {given.clients} --seconds {given.seconds:g}",
        "machine": {"processor": platform.processor() or platform.machine(), "python": platform.python_version()},
        "clients": given.clients,
        "seconds": given.seconds,
        "requests": len(log),
        "kinds": kinds,
        "errors": len(faults),
        "first_errors": faults[:5],
        "per_second": round(len(log) / given.seconds, 1),
        "milliseconds": {f"p{p}": round(1000 * float(np.percentile(spent, p)), 1) for p in (50, 95, 99, 100)},
        "memory_mb": {
            "first_third": round(float(np.median(memory[:third])), 1),
            "last_third": round(float(np.median(memory[-third:])), 1),
            "most": round(max(memory), 1),
        },
        "exit_code": ended,
    }
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    if given.out.name == "serve_load.json":
        pages.fill(PAGE, {"load": sentence(found)})


def sentence(found: dict) -> str:
    spent, memory = found["milliseconds"], found["memory_mb"]
    return (
        f"`{found['command']}`: {found['clients']} clients at once for {found['seconds']:g} s, on the same machine as "
        f"the server: {found['requests']:,} requests, {found['errors']} errors, {found['per_second']:g} a second; half "
        f"of them within {spent['p50']:g} ms, 95 % within {spent['p95']:g} ms, the slowest {spent['p100']:g} ms. "
        f"Memory {memory['first_third']:g} MB in the first third, {memory['last_third']:g} MB in the last "
        "([results](../benchmarks/results/serve_load.json))."
    )


if __name__ == "__main__":
    main()
