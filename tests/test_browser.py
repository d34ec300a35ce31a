"""The page in a real browser: type, click, drop, listen, combine, walk with keys, follow a link.

Needs playwright and a Chromium (CHROMIUM=path, else the one on the PATH or playwright's own).
"""

import asyncio
import io
import os
import shutil
import threading
import wave

import numpy as np
import pytest
from PIL import Image

from centrobind.serve import opening
from centrobind.serve.app import listen
from centrobind.serve.values import as_file
from scene import KNIGHT, glyph_gallery, text_gallery, tone_gallery

for package in ("starlette", "uvicorn", "python_multipart"):
    pytest.importorskip(package, reason="needs the extra: pip install 'centrobind[serve]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs a browser to drive: pip install playwright")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        try:
            # The sound goes nowhere, but it plays.
            options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--mute-audio"]
            opened = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        except playwright.Error as error:
            pytest.skip(f"no Chromium here: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


def running(gallery):
    listening = listen(gallery, port=0)
    thread = threading.Thread(target=lambda: asyncio.run(listening.run()))
    thread.start()
    yield listening.address, gallery
    listening.server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    yield from running(glyph_gallery(tmp_path_factory.mktemp("glyphs")))


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    pytest.importorskip("soundfile", reason="needs the extra: pip install 'centrobind[audio]'")
    yield from running(tone_gallery(tmp_path_factory.mktemp("tones")))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    yield from running(text_gallery(tmp_path_factory.mktemp("library")))


@pytest.fixture
def complaints():
    """What pages complained of to the console."""
    return []


@pytest.fixture
def visit(browser, complaints):
    """Opens pages, and afterwards no page may have complained or asked anything of the outside."""
    said, asked, contexts = complaints, [], []

    def open_page(address, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("html[data-ready]", timeout=20_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not said
    assert all(url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:")) for url in asked), asked


def results(page, modality):
    """The captions of one list, best first."""
    section = page.locator("#results section", has=page.locator(f"ol.{modality}"))
    section.locator(".card").first.wait_for()
    return section.locator(".caption").all_inner_texts()


def searched(page, act):
    with page.expect_response("**/api/search") as answer:
        act()
    answer.value.finished()
    page.wait_for_function("() => !document.body.classList.contains('busy')")
    return answer.value.json()


def drop(page, name, kind, content, shift=False):
    """A file let fall on the page."""
    page.evaluate(
        """([name, kind, bytes, shift]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], name, { type: kind }));
          for (const what of ["dragenter", "dragover", "drop"]) {
            document.body.dispatchEvent(new DragEvent(what, { dataTransfer: data, bubbles: true, cancelable: true, shiftKey: shift }));
          }
        }""",
        [name, kind, list(content), shift],
    )


def test_words_find_the_picture(glyphs, visit):
    address, _ = glyphs
    page = visit(address)
    page.keyboard.press("/")
    page.keyboard.type("BLACK CHESS KNIGHT")
    searched(page, lambda: page.keyboard.press("Enter"))
    for kind in ("together", "image", "series", "text"):
        assert results(page, kind)[0] == "black chess knight", kind
    assert "black chess knight" in page.inner_text("#status")
    picture = page.locator("#results ol.image img").first
    page.wait_for_function("image => image.complete && image.naturalWidth === 32", arg=picture.element_handle())
    assert page.locator("#results ol.series polyline").first.is_visible()
    assert page.url.endswith("#text=name:BLACK%20CHESS%20KNIGHT")


def test_a_crop_finds_its_name_and_a_second_part_is_combined(glyphs, visit):
    address, gallery = glyphs
    page = visit(address)
    column, row = gallery.samples.columns["image"], gallery.row_of[KNIGHT]
    pixels = np.array(Image.open(io.BytesIO(as_file(column, row)[0])))
    buffer = io.BytesIO()
    Image.fromarray(pixels[1:-1, 1:-1]).resize((90, 90)).save(buffer, format="png")
    searched(page, lambda: drop(page, "crop.png", "image/png", buffer.getvalue()))
    assert "black chess knight" in results(page, "text")[:3]
    assert page.locator("#parts li img").get_attribute("src").startswith("blob:")
    page.fill("#text", "white chess queen")
    both = searched(page, lambda: page.click("#also"))
    assert page.locator("#parts li").count() == 2
    names = [hit["caption"] for hit in both["samples"][:6]]
    assert "black chess knight" in names and "white chess queen" in names
    less = searched(page, lambda: page.locator("#parts .sign").nth(1).click())
    assert "white chess queen" not in [hit["caption"] for hit in less["hits"]["name"][:3]]
    assert page.locator("#parts li.minus").count() == 1
    searched(page, lambda: page.locator("#parts .away").first.click()) if False else page.locator(
        "#parts .away"
    ).first.click()
    page.wait_for_function("() => document.querySelector('#status').textContent.includes('Add something')")
    page.keyboard.press("Escape")
    assert page.locator("#parts li").count() == 0 and page.locator("#results .card").count() == 0


def test_clicks_on_results_and_on_the_map(glyphs, visit):
    address, gallery = glyphs
    page = visit(address + f"#id=image:{KNIGHT}")
    page.locator("#results .card").first.wait_for()
    assert page.locator("#results ol.text .card.same .caption").inner_text() == "✓ black chess knight"
    first = page.locator("#results ol.image .pick").first
    caption = first.inner_text()
    searched(page, first.click)
    assert page.locator("#parts .words").all_inner_texts() == [caption] and page.locator("#parts li").count() == 1
    searched(page, lambda: page.locator("#results ol.text .plus").first.click())
    assert page.locator("#parts li").count() == 2
    page.go_back()
    page.wait_for_function("() => document.querySelectorAll('#parts li').length === 1")
    # The middle of the map's view is made a point's own place, and then clicked.
    point = int(np.flatnonzero((gallery.atlas.row == gallery.row_of[KNIGHT]) & (gallery.atlas.modality == 0))[0])
    x, y = gallery.atlas.xy[point]
    page = visit(address + f"#at={x:.5f},{y:.5f},60")
    box = page.locator("#dots").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.wait_for_selector("#tip:not([hidden])")
    assert "black chess knight" in page.inner_text("#tip")
    asked = searched(page, lambda: page.mouse.click(*middle))
    assert KNIGHT not in [hit["id"] for hit in asked["hits"]["image"]]
    assert f"id=image:{KNIGHT}&" in page.url
    page.mouse.move(middle[0] + 40, middle[1])
    page.wait_for_selector("#things .thing")


def test_keys_alone_are_enough(glyphs, visit):
    address, _ = glyphs
    page = visit(address)
    page.focus("#dots")
    said = set()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        before = page.inner_text("#spoken")
        page.keyboard.press(key)
        page.wait_for_function("before => document.querySelector('#spoken').textContent !== before", arg=before)
        said.add(page.inner_text("#spoken"))
    assert len(said) >= 3 and all(":" in one for one in said)
    searched(page, lambda: page.keyboard.press("Enter"))
    assert page.locator("#parts li").count() == 1
    page.keyboard.press("f")
    page.wait_for_function("() => location.hash.includes('at=')")
    page.keyboard.press("0")
    page.wait_for_function("() => !location.hash.includes('at=')")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, img, canvas[tabindex], svg[role]')]
          .filter((e) => e.checkVisibility() && !(e.getAttribute('aria-label') || e.textContent.trim() || e.hasAttribute('alt') || e.closest('label')))
          .map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    page.click("#show-keys")
    assert page.locator("dialog#keys").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog#keys").is_visible() and page.locator("#parts li").count() == 1


def test_the_report_and_a_link(glyphs, visit):
    address, gallery = glyphs
    page = visit(address + "#text=name:chess queen&colour=kept&at=0.1000,0.0500,3.00")
    page.locator("#results .card").first.wait_for()
    assert page.input_value("#text") == "chess queen" and page.input_value("#colour") == "kept"
    assert f"{100 * gallery.atlas.share_kept:.0f} %" in page.inner_text("#truth")
    page.click("#show-report")
    page.wait_for_selector("#report-body .matrix", timeout=30_000)
    shown = page.locator("#report-body .matrix tbody tr").first.locator("b").first.inner_text()
    assert float(shown) == pytest.approx(100 * gallery.report()["matrix"]["image"]["name"]["recall@1"], abs=0.06)


def test_mistakes_are_shown_and_harm_nothing(glyphs, visit):
    address, _ = glyphs
    page = visit(address + "#text=name:%3Cimg src=x onerror=alert(1)%3E knight&id=nothing:3&at=a,b,c")
    page.locator("#results .card").first.wait_for()
    assert page.locator("#parts .words").inner_text() == "<img src=x onerror=alert(1)> knight"
    assert "Never seen in training" in page.inner_text("#status") and "onerror" in page.inner_text("#status")
    drop(page, "notes.zip", "application/zip", b"PK")
    page.wait_for_function("() => document.querySelector('#status').textContent.includes('nothing here is like that')")


def test_words_that_nobody_knows_are_refused_in_words(glyphs, visit, complaints):
    address, _ = glyphs
    page = visit(address)
    page.fill("#text", "<b>xyzzy</b> plugh")
    page.press("#text", "Enter")
    page.locator("#status .wrong", has_text="none of its words").wait_for()
    assert page.locator("#results .card").count() == 0
    assert [text for text in complaints if "status of 400" not in text] == []
    complaints.clear()  # Chromium says so by itself


def test_the_empty_pane_offers_a_beginning_and_says_what_scores_mean(glyphs, visit):
    address, gallery = glyphs
    page = visit(address)
    shown = page.locator("#results .example")
    assert shown.all_inner_texts() == [card["caption"] for card in gallery.examples]
    searched(page, shown.nth(1).click)
    assert page.input_value("#text") == gallery.examples[1]["caption"]
    assert results(page, "text")[0] == gallery.examples[1]["caption"] and shown.count() == 0
    assert "cosine" in page.locator("#results h2 small").first.inner_text()
    assert "1 = the same direction" in page.inner_text("#results .meaning")
    page.keyboard.press("Escape")
    shown.first.wait_for()


def test_hits_that_were_trained_on_are_marked(library, visit):
    address, _ = library
    page = visit(address)
    splits = searched(page, page.locator("#results .example").first.click)["hits"]["title"]
    marked = [card.locator(".seen").count() for card in page.locator("#results ol.text").last.locator(".card").all()]
    assert marked == [int(hit["split"] == "train") for hit in splits] and 0 < sum(marked) < len(marked)


def test_any_text_asks_all_modalities_of_texts(library, visit):
    address, _ = library
    page = visit(address)
    assert page.locator("#modality option").all_inner_texts() == ["any text", "body", "title"]
    page.fill("#text", "brief story")
    found = searched(page, lambda: page.press("#text", "Enter"))
    assert found["unknown"] == [] and page.locator("#parts .kind").inner_text() == "any text"
    assert page.url.endswith("#text=:brief%20story")
    for name, words in (("body", "long story"), ("title", "brief heading")):
        section = page.locator("#results section", has=page.locator("h2", has_text=name))
        captions = section.locator(".caption").all_inner_texts()
        assert captions and all(words in caption for caption in captions), name
    page.select_option("#modality", "title")
    page.fill("#text", "brief")
    searched(page, lambda: page.press("#text", "Enter"))
    assert page.locator("#parts .kind").inner_text() == "title"


def test_the_page_works_while_the_map_is_drawn(tmp_path, visit, monkeypatch):
    go = threading.Event()
    cached_atlas = opening.cached_atlas

    def draw(folder, space, each):
        each(90)
        assert go.wait(60)
        return cached_atlas(folder, space, each)

    monkeypatch.setattr(opening, "cached_atlas", draw)
    served = running(text_gallery(tmp_path, wait=False))
    address, _ = next(served)
    page = visit(address)
    page.locator("#truth", has_text="being drawn: 20 %").wait_for()
    assert searched(page, page.locator("#results .example").first.click)["samples"]
    go.set()
    page.locator("#truth", has_text="t-SNE").wait_for(timeout=20_000)
    assert page.locator("#results .card").count() > 5
    page.close()
    next(served, None)


def test_findings_stand_together(glyphs, visit):
    address, gallery = glyphs
    page = visit(address)
    page.click("#show-report")
    page.wait_for_selector("#report-body .matrix", timeout=30_000)
    groups = gallery.report()["findings"]
    assert page.locator("#report-body .finding h4").count() == len(groups)
    assert page.locator("#report-body .finding li").count() == sum(len(group["sentences"]) for group in groups)


def test_narrow_and_dark(glyphs, visit):
    address, _ = glyphs
    page = visit(address, viewport={"width": 360, "height": 740}, color_scheme="dark", has_touch=True)
    page.fill("#text", "chess queen")
    searched(page, lambda: page.click("#ask .strong"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    tops = [page.locator(place).bounding_box()["y"] for place in ("#ask", "#atlas", "#results")]
    assert tops == sorted(tops), "the search above the map, what it finds below"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"


def test_sounds_are_heard_and_dropped(tones, visit):
    address, gallery = tones
    page = visit(address)
    page.fill("#text", "middle a on a flute")
    searched(page, lambda: page.press("#text", "Enter"))
    assert results(page, "sound")[0] == "middle a on a flute"
    button = page.locator("#results ol.sound .play").first
    page.evaluate(
        "() => { window.heard = 0; const play = Audio.prototype.play; Audio.prototype.play = function () { this.addEventListener('timeupdate', () => { window.heard = Math.max(window.heard, this.currentTime); }); return play.call(this); }; }"
    )
    button.click()
    page.wait_for_function("() => window.heard > 0.1", timeout=10_000)
    assert button.get_attribute("aria-pressed") in ("true", "false")
    content, kind = gallery.value("sound", "middle a on a flute")
    assert kind == "audio/wav"
    with wave.open(io.BytesIO(content)) as sound:
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(float)
    loudest = np.abs(np.fft.rfft(samples)).argmax() * 16_000 / len(samples)
    assert abs(loudest - 440) < 25  # what is played is made of what the store keeps, and it keeps the pitch
    own = (gallery.index.path.parents[2] / "high-e-drone.wav").read_bytes()
    searched(page, lambda: drop(page, "unknown.wav", "audio/wav", own))
    assert results(page, "text")[0] == "high e on a drone"  # low notes are less than a mel band apart
    assert page.locator("#parts .play").count() == 1


def test_100_000_points_are_drawn_and_found(glyphs, visit):
    """The rasteriser and the grid on their own; what a frame costs is `python benchmarks/serve_frames.py`."""
    address, _ = glyphs
    page = visit(address)
    spent = page.evaluate(
        """async () => {
          const { Grid, disc, drawPoints, mixed } = await import('/static/raster.js');
          const n = 100000, x = new Float64Array(n), y = new Float64Array(n), category = new Uint8Array(n);
          for (let i = 0; i < n; i++) { x[i] = Math.sin(i * 12.9898) ; y[i] = Math.cos(i * 78.233); category[i] = i % 3; }
          const order = mixed(n), seen = new Uint8Array(n), grid = new Grid(x, y);
          order.forEach((i) => { seen[i]++; });
          let inside = 0; grid.within(-0.1, -0.1, 0.1, 0.1, () => { inside++; });
          let literal = 0; for (let i = 0; i < n; i++) if (Math.abs(x[i]) <= 0.1 && Math.abs(y[i]) <= 0.1) literal++;
          const pixels = new Uint32Array(1400 * 900), colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255]];
          const drawn = drawPoints(pixels, 1400, 900, { x, y, order }, { scale: 420, left: 700, top: 450 }, { category, colours, hidden: [false, true, false], strength: 205 }, disc(1.5));
          return { once: seen.every((c) => c === 1), inside, literal, drawn, painted: pixels.some((p) => p !== 0) };
        }"""
    )
    assert spent["once"] and spent["painted"] and spent["inside"] == spent["literal"] > 0
    assert spent["drawn"] == 66_667
