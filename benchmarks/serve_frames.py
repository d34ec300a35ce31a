"""How smoothly 100,000 points move: frames of the map while a browser zooms and pans over it.

    python benchmarks/serve_frames.py

Needs playwright and a Chromium (CHROMIUM=path). Headless, so drawn without a graphics card, on the same cores as the
server. Writes benchmarks/results/serve_frames.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import pages
from playwright.sync_api import sync_playwright
from serve_load import PAGE  # beside this file

from centrobind.binder.binder import build_binder
from centrobind.data import Samples
from centrobind.index import build_index
from centrobind.report.atlas import Atlas
from centrobind.serve.app import listen
from centrobind.serve.drawing import Drawing
from centrobind.serve.gallery import Gallery

POINTS, MODALITIES = 100_000, 2
OUT = Path(__file__).parent / "results" / "serve_frames.json"

# Zoom in and out around a moving place, a step per frame, as a wheel would; then drag across.
MOVE = """
async () => {
  const dots = document.getElementById("dots"), box = dots.getBoundingClientRect(), spent = [], between = [];
  const frame = () => new Promise(requestAnimationFrame);
  let before = await frame();
  for (let n = 0; n < 240; n++) {
    const clientX = box.left + box.width * (0.3 + 0.4 * n / 240), clientY = box.top + box.height / 2;
    const deltaY = n % 120 < 60 ? -40 : 40;
    dots.dispatchEvent(new WheelEvent("wheel", { clientX, clientY, deltaY, bubbles: true, cancelable: true }));
    const now = await frame();
    between.push(now - before);
    before = now;
    spent.push(Number(dots.dataset.milliseconds));
  }
  return { spent, between };
}
"""


def crowd(folder: Path) -> Gallery:
    """Points where chance put them: what a frame costs does not depend on what they mean."""
    draw = np.random.default_rng(0)
    count = POINTS // MODALITIES
    arrays = {f"m{m}": draw.normal(size=(count, 4)).astype(np.float32) for m in range(MODALITIES)}
    samples = Samples.of(arrays, label=np.arange(count) % 7)
    binder = build_binder(samples, dim=8)
    index = build_index(binder, samples, folder / "index")
    xy = (draw.normal(size=(POINTS, 2)) * 0.3).clip(-1, 1).astype(np.float32)
    row = np.tile(np.arange(count, dtype=np.int32), MODALITIES)
    modality = np.repeat(np.arange(MODALITIES, dtype=np.uint8), count)
    atlas = Atlas(xy, row, modality, np.zeros(POINTS, np.uint8))
    return Gallery(binder, samples, index, Drawing.of(atlas), name="crowd")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        listening = listen(crowd(Path(folder)), port=0)
        thread = threading.Thread(target=lambda: asyncio.run(listening.run()))
        thread.start()
        browser = driver.chromium.launch(
            executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium"), args=["--no-sandbox"]
        )
        found = {
            "command": "python benchmarks/serve_frames.py",
            "machine": {"processor": platform.processor() or platform.machine(), "browser": browser.version},
            "points": POINTS,
            "screens": {},
        }
        try:
            for name, scale in (("1440 x 900", 1), ("1440 x 900, fine (2x)", 2)):
                page = browser.new_page(viewport={"width": 1440, "height": 900}, device_scale_factor=scale)
                page.goto(listening.address)
                page.wait_for_selector("html[data-ready]", timeout=60_000)
                page.evaluate(MOVE)  # once to warm the compiler up
                seen = page.evaluate(MOVE)
                found["screens"][name] = {
                    what: {f"p{p}": round(float(np.percentile(seen[key], p)), 1) for p in (50, 95)}
                    for what, key in (("drawing_ms", "spent"), ("between_frames_ms", "between"))
                }
                page.close()
        finally:
            browser.close()
            listening.server.should_exit = True
            thread.join()
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    pages.fill(PAGE, {"frames": sentence(found)})


def sentence(found: dict) -> str:
    parts = [
        f"{name}: {screen['drawing_ms']['p50']:g} ms to draw a frame ({screen['drawing_ms']['p95']:g} at the 95th "
        f"percentile), {screen['between_frames_ms']['p50']:g} ms from one to the next "
        f"({screen['between_frames_ms']['p95']:g})"
        for name, screen in found["screens"].items()
    ]
    return (
        f"`{found['command']}`: zooming over {found['points']:,} points in a headless Chromium without a graphics "
        f"card. {'; '.join(parts)} ([results](../benchmarks/results/serve_frames.json))."
    )


if __name__ == "__main__":
    main()
