"""The API and its guard, asked without a browser: the right answers, the right refusals, and an end without loss."""

import asyncio
import http.client
import io
import json
import os
import signal
import socket
import string
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from centrobind.arena import demo
from centrobind.binder.binder import build_binder
from centrobind.binder.checkpoint import save
from centrobind.cli.main import app as command_line
from centrobind.data import write_store
from centrobind.errors import CentrobindError, DataError, ExtraError, RunError, StoreError
from centrobind.evaluation.metrics import retrieval
from centrobind.serve import opening
from centrobind.serve.access import is_loopback
from centrobind.serve.app import listen, make_app
from centrobind.serve.connection import Deadlines
from centrobind.serve.gallery import Part
from centrobind.serve.guard import Bounds, Guard
from centrobind.serve.opening import open_gallery
from centrobind.training.config import check_config
from centrobind.training.fit import run_config
from conftest import mixed_samples
from scene import ask, form, text_gallery

TOKEN = "0123456789abcdef"

for package in ("starlette", "uvicorn", "python_multipart"):
    pytest.importorskip(package, reason="needs the extra: pip install 'centrobind[serve]'")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Four modalities with gaps, one of each kind, in a binder that learned nothing."""
    folder = tmp_path_factory.mktemp("serve")
    samples = mixed_samples()
    write_store(folder / "store", [samples])
    save(build_binder(samples, dim=8), folder / "binder")
    gallery = open_gallery(folder / "binder.safetensors", folder / "store")
    return folder, gallery, make_app(gallery)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def first_with(gallery, modality):
    return int(np.flatnonzero(gallery.samples.columns[modality].present)[0])


# ---- answers ------------------------------------------------------------------------------------------------------


def test_search_is_the_literal_one(world):
    _, gallery, app = world
    text = {"modality": "text", "text": "green thing"}
    found = ask(app, "POST", "/api/search", {"query": [text, {"id": "3"}], "minus": [{"id": "7"}], "k": 5}).json()
    z = gallery.binder.embed(gallery.samples)

    def has(row):
        return {name: z.z[m, row] for m, name in enumerate(z.modalities) if z.present[m, row]}

    def wanted(weights):
        asked = [("text", gallery.binder.embed({"text": ["green thing"]}).z[0, 0]), *has(3).items()]
        centre = sum(weights[name] * vector for name, vector in asked)
        # What spans the unwanted: Gram-Schmidt, one after the other.
        basis = []
        for vector in has(7).values():
            for one in basis:
                vector = vector - (vector @ one) * one
            basis.append(vector / vector.norm())
        for one in basis:
            centre = centre - (centre @ one) * one
        return centre / centre.norm()

    assert set(found["hits"]) == set(gallery.modalities)
    for m, name in enumerate(z.modalities):
        towards = wanted(gallery.index.weights(name))
        score = {str(i): float(z.z[m, i] @ towards) for i in range(60) if z.present[m, i]}
        expected = sorted(score, key=score.get, reverse=True)[:5]
        assert [hit["id"] for hit in found["hits"][name]] == expected
        assert [hit["score"] for hit in found["hits"][name]] == pytest.approx([score[i] for i in expected], abs=1e-4)
    alike = wanted(dict.fromkeys(gallery.modalities, 1.0))
    together = {}
    for i in range(60):
        centre = torch.stack([z.z[m, i] for m in range(4) if z.present[m, i]]).mean(0)
        together[str(i)] = float(centre @ alike / centre.norm())
    best = sorted((i for i in together if i != "3"), key=together.get, reverse=True)[:5]
    assert [hit["id"] for hit in found["samples"]] == best


def test_words_that_training_never_saw_are_named(world):
    _, _, app = world
    query = {
        "query": [{"modality": "text", "text": "red xyzzy"}],
        "minus": [{"modality": "text", "text": "blue plugh"}],
    }
    assert ask(app, "POST", "/api/search", query).json()["unknown"] == ["xyzzy", "plugh"]
    assert ask(app, "POST", "/api/search", {"query": [{"id": "3"}]}).json()["unknown"] == []


def test_what_is_asked_with_is_not_found_in_its_own_modality(world):
    _, gallery, app = world
    row = first_with(gallery, "vector")
    query = [{"modality": "vector", "id": str(row)}]
    found = ask(app, "POST", "/api/search", {"query": query, "k": 60}).json()["hits"]
    assert str(row) not in [hit["id"] for hit in found["vector"]] and len(found["vector"]) > 20
    for name in gallery.modalities[:-1]:
        if gallery.samples.columns[name].present[row]:
            assert str(row) in [hit["id"] for hit in found[name]]


def test_only_captions_that_are_shown_are_read(world, monkeypatch):
    """Each costs as much as scoring a thousand vectors, and candidates are many more than hits."""
    _, gallery, app = world
    read = []
    take = type(gallery.samples.columns["text"]).take

    def counted(column, rows):
        if column.values is gallery.samples.columns["text"].values:
            read.extend(np.asarray(rows).tolist())
        return take(column, rows)

    monkeypatch.setattr(type(gallery.samples.columns["text"]), "take", counted)
    found = ask(app, "POST", "/api/search", {"query": [{"modality": "text", "text": "red"}], "k": 3}).json()
    shown = [*found["samples"], *(hit for hits in found["hits"].values() for hit in hits)]
    assert len(shown) == 15 and [hit["id"] for hit in found["hits"]["text"]]
    assert sorted(read) == sorted(gallery.row_of[hit["id"]] for hit in shown)


def test_search_can_be_narrowed_and_sized(world):
    _, _, app = world
    query = {
        "query": [{"modality": "text", "text": "red thing"}],
        "where": {"label": "1", "split": ["train"]},
        "want": ["text"],
        "k": 3,
    }
    found = ask(app, "POST", "/api/search", query).json()
    assert list(found["hits"]) == ["text"] and len(found["hits"]["text"]) == 3
    assert {hit["label"] for hit in found["hits"]["text"]} == {"1"}


def test_every_kind_of_value_can_ask(world):
    """The same value as a file, as numbers and as the sample itself lies at the same place."""
    _, gallery, app = world
    uploads = {"picture": png, "series": npy, "vector": npy, "text": str.encode}
    for name, column in gallery.samples.columns.items():
        row = first_with(gallery, name)
        value = column.take(np.array([row]))[0]
        body, headers = form({"query": [{"modality": name, "file": "f"}]}, f=uploads[name](value))
        places = [ask(app, "POST", "/api/embed", body, headers=headers)]
        plain = {"text": value} if name == "text" else {"values": value.tolist()}
        places += [
            ask(app, "POST", "/api/embed", {"query": [{"modality": name, **part}]})
            for part in (plain, {"id": str(row)})
        ]
        vectors = [place.json()["vector"] for place in places]
        assert np.allclose(vectors[0], vectors[1], atol=1e-5) and np.allclose(vectors[0], vectors[2], atol=1e-5), name
        assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)


def test_values_come_as_files(world):
    _, gallery, app = world
    for name, column in gallery.samples.columns.items():
        row = first_with(gallery, name)
        value, answer = column.take(np.array([row]))[0], ask(app, "GET", f"/api/value/{name}/{row}")
        kind = answer.headers["content-type"]
        if name == "picture":
            assert kind == "image/png" and (np.asarray(Image.open(io.BytesIO(answer.body))) == value).all()
        elif name == "text":
            assert kind.startswith("text/plain") and answer.body.decode() == value
        else:
            assert kind == "application/json" and np.allclose(answer.json()["values"], value)
    missing = int(np.flatnonzero(~gallery.samples.columns["text"].present)[0])
    assert ask(app, "GET", f"/api/value/text/{missing}").status == 404
    assert ask(app, "GET", "/api/value/text/0?v=1").headers["cache-control"].startswith("private, max-age")


def test_points_are_the_map(world):
    _, gallery, app = world
    points = ask(app, "GET", "/api/points").json()
    assert len(points["x"]) == len(points["kept"]) == int(gallery.samples.present.sum())
    ids = np.array(points["ids"])[points["sample"]]
    assert (ids == np.array(gallery.samples.ids[:])[gallery.atlas.row]).all()
    assert points["label"] == gallery.samples.label.codes[np.unique(gallery.atlas.row)].tolist()


def test_the_report_measures_what_was_held_out(world):
    _, gallery, app = world
    said = ask(app, "GET", "/api/report").json()
    test = gallery.samples.part("test")
    assert said["split"] == "test" and said["samples"] == len(test)
    for (query, target), row in retrieval(gallery.binder.embed(test)).pairs.items():
        assert said["matrix"][query][target] == pytest.approx(row.flat())
    assert said["objective"] is None and ask(app, "GET", "/report").status == 404


def test_a_run_says_what_it_was_trained_with_and_shows_its_own_page(tmp_path):
    """A run's folder, and a demo's, whose binder is that of the run it chose."""
    samples = mixed_samples()
    chosen = {
        "data": "-",
        "out": str(tmp_path / "demo" / "all_pairs"),
        "objective": {"name": "all_pairs", "temperature": 0.3},
    }
    run_config(check_config({**chosen, "dim": 8, "train": {"steps": 1, "tensorboard": False}}, "test"), samples)
    binder = tmp_path / "demo" / "all_pairs" / "binder.safetensors"
    (tmp_path / "demo" / "binder.safetensors").write_bytes(binder.read_bytes())
    (tmp_path / "demo" / "report.html").write_text("<h1>its own</h1>")
    results = {"chosen": "all pairs", "rows": [{"label": "other"}, {"label": "all pairs", "config": chosen}]}
    (tmp_path / "demo" / "results.json").write_text(json.dumps(results))
    write_store(tmp_path / "store", [samples])
    for run in (tmp_path / "demo", binder.parent):
        gallery = open_gallery(run, tmp_path / "store", cache=tmp_path / "cache")
        assert gallery.report()["objective"] == {"name": "all_pairs", "temperature": pytest.approx(0.3)}
    page = ask(
        make_app(open_gallery(tmp_path / "demo", tmp_path / "store", cache=tmp_path / "cache")), "GET", "/report"
    )
    assert page.body == b"<h1>its own</h1>" and "sandbox" in page.headers["content-security-policy"]


def test_the_page_and_its_files(world):
    _, _, app = world
    page = ask(app, "GET", "/")
    assert (
        page.status == 200
        and "style=" not in page.body.decode()
        and "http" not in page.body.decode().replace("/api", "")
    )
    import re

    for name in re.findall(r'(?:src|href)="(/static/[^"]+)"', page.body.decode()):
        found = ask(app, "GET", name)
        assert found.status == 200 and found.body, name
        for other in re.findall(r'from "\./([a-z]+\.js)"', found.body.decode()):
            assert ask(app, "GET", f"/static/{other}").status == 200, other
        assert "innerHTML" not in found.body.decode() and "://" not in found.body.decode().replace(
            "http://www.w3.org/2000/svg", ""
        )


def check_schema(value, schema, schemas, where="answer"):
    """Enough of JSON Schema for ours."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rsplit("/", 1)[1]]
    if "const" in schema:
        assert value == schema["const"], where
    if "oneOf" in schema or "anyOf" in schema:
        failures = []
        for one in schema.get("oneOf") or schema["anyOf"]:
            try:
                return check_schema(value, one, schemas, where)
            except AssertionError as error:
                failures.append(error)
        raise AssertionError(f"{where}: {failures}")
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
        "null": type(None),
    }
    if "type" in schema:
        assert isinstance(value, kinds[schema["type"]]), (where, schema["type"], value)
    if schema.get("type") in ("integer", "number"):
        assert not isinstance(value, bool) and schema.get("minimum", value) <= value <= schema.get("maximum", value), (
            where
        )
    if "enum" in schema:
        assert value in schema["enum"], where
    if isinstance(value, list):
        assert schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9), where
        for n, one in enumerate(value):
            check_schema(one, schema.get("items", {}), schemas, f"{where}[{n}]")
    if isinstance(value, dict) and "type" in schema:
        known = schema.get("properties", {})
        assert set(schema.get("required", [])) <= value.keys(), where
        more = schema.get("additionalProperties", {})
        assert more is not False or value.keys() <= known.keys(), (where, value.keys() - known.keys())
        for key, one in value.items():
            check_schema(one, known.get(key, more if isinstance(more, dict) else {}), schemas, f"{where}.{key}")
    return None


QUERY = {"query": [{"modality": "text", "text": "red"}], "k": 2, "where": {"split": ["test"], "label": "1"}}
BODIES = {"/api/search": QUERY, "/api/embed": {"query": QUERY["query"], "minus": [{"id": "7"}]}}


def test_every_route_is_described_and_answers_as_described(world):
    _, _, app = world
    said = ask(app, "GET", "/api/openapi.json").json()
    routes = {route.path.replace(":path", "") for route in app.app.routes}
    assert set(said["paths"]) == routes - {"/", "/static/{name}", "/report"}
    schemas = said["components"]["schemas"]
    for path, operations in said["paths"].items():
        (method,) = operations
        schema = operations[method]["responses"]["200"]["content"].get("application/json", {}).get("schema")
        body = BODIES.get(path, b"")
        if method == "post":
            taken = operations[method]["requestBody"]["content"]["application/json"]["schema"]
            check_schema(body, taken, schemas)
        answer = ask(app, method.upper(), path.format(id="1", modality="text"), body)
        assert answer.status == 200, path
        if schema:
            check_schema(answer.json(), schema, schemas, path)
        refused = ask(app, "POST", path, [] if method == "post" else b"")
        assert 400 <= refused.status < 500
        check_schema(refused.json(), {"$ref": "#/Error"}, schemas)


def test_what_the_description_forbids_is_refused_and_what_it_allows_is_not(world):
    """The limits are stated once: a program that keeps to the description is never refused for its form."""
    _, gallery, app = world
    document = ask(app, "GET", "/api/openapi.json").json()
    schemas = document["components"]["schemas"]
    part = {"modality": "text", "text": "red"}
    said = json.dumps(document)
    assert '"maximum": 200' in said and f'"minItems": {gallery.binder.dim}' in said and "x-of" not in said
    bodies = {
        "/api/search": [
            *({**QUERY, "k": k} for k in (0, 1, 200, 201, -1, True, 2.5, "3", None)),
            *({**QUERY, "query": [part] * n} for n in (0, 1, 16, 17)),
            *({**QUERY, "want": want} for want in ([], ["text"], ["smell"], "text", None, [3])),
            *({**QUERY, "where": where} for where in ({}, {"label": ["1"]}, {"label": 3}, {"size": "1"}, [], None)),
            *({**QUERY, "query": [one]} for one in ({}, "red", {**part, "more": 1}, {"text": 3, "modality": "text"})),
            {**QUERY, "limit": 3},
            {"k": 3},
        ],
        "/api/embed": [
            *({"queries": [{"query": [part]}] * n} for n in (0, 1, 256, 257)),
            {"query": [part], "queries": [{"query": [part]}]},
            {"query": [part], "k": 3},
            {"queries": [{"query": [part], "k": 3}]},
            {"queries": [[part]]},
        ],
    }
    verdicts = set()
    for path, several in bodies.items():
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for body in several:
            try:
                check_schema(body, schema, schemas)
                allowed = True
            except AssertionError:
                allowed = False
            # That exactly one way is given is said in words: OpenAPI would need a model for each way.
            allowed = allowed and body.get("query") != [{}]
            assert (ask(app, "POST", path, body).status == 200) == allowed, (path, str(body)[:200])
            verdicts.add(allowed)
    assert verdicts == {True, False}


def test_several_queries_are_embedded_as_each_alone(world):
    _, gallery, app = world
    row = first_with(gallery, "vector")
    values = gallery.samples.columns["vector"].take(np.array([row]))[0].tolist()
    queries = [
        {"query": [{"modality": "text", "text": "green thing"}]},
        {"query": [{"id": "3"}, {"modality": "vector", "values": values}], "minus": [{"id": "7"}]},
        {"query": [{"text": "red"}]},
    ]
    found = ask(app, "POST", "/api/embed", {"queries": queries}).json()
    alone = [ask(app, "POST", "/api/embed", query).json() for query in queries]
    assert found["vectors"] == [one["vector"] for one in alone]
    assert found["fingerprint"] == alone[0]["fingerprint"] == gallery.binder.fingerprint
    wrong = [*queries, {"query": [{"modality": "text", "text": 3}]}]
    refused = ask(app, "POST", "/api/embed", {"queries": wrong})
    assert refused.status == 400 and "queries[3].query[0].text" in refused.json()["error"]


def test_its_health_can_be_asked_by_anybody_and_says_no_more(world):
    _, gallery, _ = world
    app = make_app(gallery, host="0.0.0.0", token=TOKEN, allow=["mine.example"])
    for headers in ({}, {"host": "10.1.2.3:8000"}, {"host": ""}):
        answer = ask(app, "GET", "/healthz", headers=headers)
        assert answer.status == 200 and answer.json() == {"status": "ok"}
    for path in ("/healthz/", "/healthz/../api/about", "//healthz", "/api/about"):
        assert ask(app, "GET", path).status in (401, 421), path


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    gallery = text_gallery(tmp_path_factory.mktemp("library"))
    return gallery, make_app(gallery), {name: gallery.samples.columns[name].present for name in ("body", "title")}


def test_captions_are_in_the_modality_that_was_asked_for(library):
    gallery, app, here = library
    texts = {"title": lambda i: f"brief heading {i}", "body": lambda i: f"long story number {i}"}
    found = ask(app, "POST", "/api/search", {"query": [{"id": "7"}], "k": 30}).json()["hits"]
    for want in ("title", "body"):
        assert len(found[want]) > 15
        assert all(hit["caption"] == texts[want](int(hit["id"])) for hit in found[want]), want
    for hit in found["vector"]:  # the first text that each has
        i = int(hit["id"])
        has = [name for name in gallery.modalities if name in here and here[name][i]]
        assert hit["caption"] == (texts[has[0]](i) if has else None), hit
        assert hit["split"] == ("test" if i % 4 == 0 else "train")
    for want in ("title", "body"):
        query = {"query": [{"modality": "vector", "values": [1.0, 2, 3]}], "want": [want], "k": 5}
        together = ask(app, "POST", "/api/search", query).json()["samples"]
        assert all(hit["caption"] == texts[want](int(hit["id"])) for hit in together)
    seven = ask(app, "GET", "/api/sample/7").json()
    assert seven["texts"] == {name: texts[name](7) for name in texts}


def test_a_text_can_be_looked_for_in_every_modality_of_texts(library):
    gallery, app, _ = library

    def embedded(words):
        return np.array(ask(app, "POST", "/api/embed", {"query": [{"text": words}]}).json()["vector"])

    centre = sum(gallery.binder.embed({name: ["number 4"]}).z[0, 0] for name in ("body", "title"))
    assert np.allclose(embedded("number 4"), (centre / centre.norm()).numpy(), atol=1e-6)
    body = gallery.binder.embed({"body": ["long story"]}).z[0, 0].numpy()
    assert np.allclose(embedded("long story"), body, atol=1e-6), "titles know none of these words"
    said = ask(app, "POST", "/api/search", {"query": [{"text": "long heading xyzzy"}]}).json()
    assert said["unknown"] == ["xyzzy"], "a word that one modality knows is known"
    refused = ask(app, "POST", "/api/search", {"query": [{"text": "xyzzy plugh"}]})
    assert refused.status == 400 and "none of its words" in refused.json()["error"]


def test_there_are_samples_to_begin_with(world, library):
    for app in (world[2], library[1]):
        examples = ask(app, "GET", "/api/about").json()["examples"]
        assert 2 <= len({card["id"] for card in examples}) == len(examples) <= 4
        for card in examples:
            assert ask(app, "GET", f"/api/sample/{card['id']}").json()["caption"] == card["caption"]


def test_every_ending_that_is_offered_can_be_asked_with(world):
    """The page has no table of its own: it offers what the server says, and the server reads what it offers."""
    _, gallery, app = world
    offered = {one["name"]: one["files"] for one in ask(app, "GET", "/api/about").json()["modalities"]}
    assert offered["vector"] == [".npy"] and ".png" in offered["picture"] and {".csv", ".npy"} <= set(offered["series"])
    assert 'endsWith(".npy' not in (page := ask(app, "GET", "/static/query.js").body.decode()) and "wav" not in page
    pictures = {
        ".png": "PNG",
        ".jpg": "JPEG",
        ".jpeg": "JPEG",
        ".webp": "WEBP",
        ".gif": "GIF",
        ".bmp": "BMP",
        ".tif": "TIFF",
        ".tiff": "TIFF",
    }
    shape = gallery.samples.columns["series"].shape
    numbers = np.arange(float(np.prod(shape))).reshape(shape)
    for name, files in offered.items():
        for ending in files:
            if ending in pictures:
                buffer = io.BytesIO()
                Image.new("RGB", (9, 9)).save(buffer, pictures[ending])
                content = buffer.getvalue()
            elif ending == ".npy":
                content = npy(gallery.samples.columns[name].take(np.arange(9))[0])
            elif ending in (".csv", ".tsv"):
                mark = "," if ending == ".csv" else "\t"
                content = "\n".join(mark.join(map(str, row)) for row in numbers.tolist()).encode()
            else:
                content = b"red thing"
            body, headers = form({"query": [{"modality": name, "file": "f"}]}, f=content)
            assert ask(app, "POST", "/api/embed", body, headers=headers).status == 200, (name, ending)


def test_findings_of_a_kind_stand_together_with_one_advice(world):
    found = ask(world[2], "GET", "/api/report").json()["findings"]
    kinds = [(group["severity"], group["name"]) for group in found]
    assert len(set(kinds)) == len(kinds) and all(group["sentences"] and group["advice"] for group in found)
    assert [severity for severity, _ in kinds] == sorted((severity for severity, _ in kinds), key="fault warning".index)


def test_everything_but_the_map_can_be_asked_for_while_it_is_drawn(world, tmp_path, monkeypatch):
    folder, gallery, _ = world
    go, faulty = threading.Event(), threading.Event()

    def draw(folder, space, each):
        each(225)
        assert go.wait(60)
        if faulty.is_set():
            raise CentrobindError("the disk is full")
        return cached_atlas(folder, space, each)

    cached_atlas = opening.cached_atlas
    monkeypatch.setattr(opening, "cached_atlas", draw)

    def opened():
        return open_gallery(folder / "binder.safetensors", folder / "store", cache=tmp_path, wait=False)

    app = make_app(early := opened())
    points = ask(app, "GET", "/api/points").json()
    assert not points["ready"] and points["done"] == 0.5 and points["x"] == [] and points["fault"] is None
    assert ask(app, "GET", "/api/about").json()["map"] == {"points": 0, "share_kept": None}
    assert ask(app, "POST", "/api/search", {"query": [{"id": "1"}]}).json()["samples"]
    go.set()
    early.drawing.wait()
    points = ask(app, "GET", "/api/points").json()
    assert points["ready"] and points["x"] == np.round(gallery.atlas.xy[:, 0].astype(float), 5).tolist()
    assert ask(app, "GET", "/api/about").json()["map"]["points"] == len(gallery.atlas)
    assert not list(tmp_path.rglob("serve")), "nothing beside the cache"
    faulty.set()
    app = make_app(late := opened())
    with pytest.raises(CentrobindError):
        late.drawing.wait()
    points = ask(app, "GET", "/api/points").json()
    assert not points["ready"] and points["fault"] == "the disk is full"


# ---- refusals -----------------------------------------------------------------------------------------------------


def bomb():
    """36 million pixels in a few kB."""
    buffer = io.BytesIO()
    Image.new("1", (12_000, 3_000)).save(buffer, format="png")
    return buffer.getvalue()


BAD = {
    "no query": ({}, 400, "something to look for"),
    "a list": ([1], 400, "JSON object"),
    "text for parts": ({"query": "knight"}, 400, "query: expected a list, got str"),
    "two ways": ({"query": [{"modality": "text", "text": "a", "id": "1"}]}, 400, "one of id, text, values or file"),
    "unknown modality": ({"query": [{"modality": "smell", "text": "a"}]}, 400, "no modality 'smell'"),
    "a list as modality": ({"query": [{"modality": ["text"], "text": "a"}]}, 400, "query[0].modality: expected a text"),
    "no modality": ({"query": [{"values": [1]}]}, 400, "no modality None"),
    "a text for no modality": ({"query": [{"text": "xyzzy"}]}, 400, "none of its words"),
    "a number in a text": (
        {"query": [{"modality": "text", "text": 3}]},
        400,
        "query[0].text: expected a text, got int",
    ),
    "no part": ({"query": [3]}, 400, "query[0]: expected an object, got int"),
    "no want": ({"query": [{"id": "1"}], "want": []}, 400, "want: expected"),
    "unknown in a part": (
        {"query": [{"id": "1", "weight": 2}]},
        400,
        "query[0]: unknown ['weight'], expected modality",
    ),
    "unknown id": ({"query": [{"id": "no"}]}, 400, "no sample 'no'"),
    "a number as id": ({"query": [{"id": 3}]}, 400, "expected a text"),
    "text of numbers": ({"query": [{"modality": "text", "values": [1]}]}, 400, "expected a text"),
    "numbers of another shape": ({"query": [{"modality": "vector", "values": [1, 2]}]}, 400, "shape [5]"),
    "ragged": ({"query": [{"modality": "vector", "values": [[1], [2, 3]]}]}, 400, "one length"),
    "words for numbers": ({"query": [{"modality": "vector", "values": ["a"] * 5}]}, 400, "expected numbers"),
    "infinite": ({"query": [{"modality": "vector", "values": [1e999] * 5}]}, 400, "finite"),
    "empty text": ({"query": [{"modality": "text", "text": "  "}]}, 400, "without a letter"),
    "words nobody knows": ({"query": [{"modality": "text", "text": "xyzzy plugh"}]}, 400, "none of its words"),
    "long text": ({"query": [{"modality": "text", "text": "a" * 10_001}]}, 400, "more than the 10,000"),
    "a path": ({"query": [{"modality": "picture", "file": "/etc/passwd"}]}, 400, "one of the form's files []"),
    "k": ({"query": [{"id": "1"}], "k": 1000}, 400, "k: expected at most 200, got 1000"),
    "true k": ({"query": [{"id": "1"}], "k": True}, 400, "k: expected a whole number, got bool"),
    "no k": ({"query": [{"id": "1"}], "k": 0}, 400, "k: expected at least 1, got 0"),
    "want": ({"query": [{"id": "1"}], "want": "text"}, 400, "want: expected a list, got str"),
    "unknown want": ({"query": [{"id": "1"}], "want": ["smell"]}, 400, "no modality 'smell'"),
    "where": (
        {"query": [{"id": "1"}], "where": {"label": 3}},
        400,
        "where.label: expected a category or a list of categories, got int",
    ),
    "where in a list": ({"query": [{"id": "1"}], "where": {"label": ["1", 3]}}, 400, "expected a category or a list"),
    "unknown category": ({"query": [{"id": "1"}], "where": {"label": "9"}}, 400, "expected some of"),
    "where what": (
        {"query": [{"id": "1"}], "where": {"size": "9"}},
        400,
        "where: unknown ['size'], expected label, split or group",
    ),
    "many": ({"query": [{"id": "1"}] * 17}, 400, "at most 16"),
    "unknown key": ({"query": [{"id": "1"}], "limit": 3}, 400, "unknown ['limit']"),
    "nothing is left": ({"query": [{"id": "1"}], "minus": [{"id": "1"}]}, 400, "nothing is left"),
    "not JSON": (b"{", 400, "not JSON"),
    "deep JSON": (b"[" * 100_000, 400, "not JSON"),
    "bytes": (b"\xff\xfe", 400, "not JSON"),
    "large JSON": (b'{"query": "' + b"a" * 2**20 + b'"}', 413, "letters"),
    "a bomb": (form({"query": [{"modality": "picture", "file": "f"}]}, f=bomb()), 400, "pixels"),
    "no picture": (form({"query": [{"modality": "picture", "file": "f"}]}, f=b"GIF89a nonsense"), 400, "picture"),
    "pickled": (form({"query": [{"modality": "vector", "file": "f"}]}, f=npy(np.array([{}]))), 400, "unpickled"),
    "empty file": (form({"query": [{"modality": "vector", "file": "f"}]}, f=b""), 400, "empty file"),
    "no form": ((b"nonsense", {"content-type": "multipart/form-data; boundary=x"}), 400, ""),
    "no boundary": ((b"nonsense", {"content-type": "multipart/form-data"}), 400, ""),
    "a form of XML": ((b"<a/>", {"content-type": "text/xml"}), 415, "expected application/json"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_said_in_words(world, name):
    _, _, app = world
    body, status, says = BAD[name]
    headers = {"content-type": "application/json"}
    if isinstance(body, tuple):
        body, headers = body
    for path in ("/api/search", "/api/embed"):
        answer = ask(app, "POST", path, body, headers=headers)
        if path == "/api/embed" and (
            "want" in name or "k" in name.split() or "where" in name or "category" in name or "unknown key" in name
        ):
            continue
        assert answer.status == status and says in answer.json()["error"], answer
        assert "Traceback" not in answer.json()["error"] and "/site-packages" not in answer.json()["error"]


def test_files_are_decoded_one_at_a_time(world, monkeypatch):
    """Each takes its memory for a moment; eight at once would take it eight times."""
    _, _, app = world
    running, most = [0], [0]

    def slow(kind, shape, *_, **__):
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.02)
        running[0] -= 1
        return np.zeros(shape, np.uint8)

    monkeypatch.setattr("centrobind.serve.values.decode_as", slow)
    body, headers = form({"query": [{"modality": "picture", "file": "f"}]}, f=png(np.zeros((9, 9), np.uint8)))
    statuses = []
    asks = [
        threading.Thread(target=lambda: statuses.append(ask(app, "POST", "/api/embed", body, headers=headers).status))
        for _ in range(8)
    ]
    for one in asks:
        one.start()
    for one in asks:
        one.join(60)
    assert most == [1] and statuses == [200] * 8


def test_no_path_is_ever_opened(world):
    _, _, app = world
    for path in (
        "/static/../api.py",
        "/static/%2e%2e/api.py",
        "/static/..%2Fapi.py",
        "/../../etc/passwd",
        "/api/value/picture/../../../etc/passwd",
        "/api/value/text//etc/passwd",
        "/api/sample/../store",
    ):
        answer = ask(app, "GET", path)
        assert answer.status == 404 and "error" in answer.json(), path
    assert ask(app, "DELETE", "/api/sample/1").status == 405


def test_every_answer_has_the_headers_that_keep_a_page_in_its_place(world):
    _, _, app = world
    for method, path in (
        ("GET", "/"),
        ("GET", "/static/page.js"),
        ("GET", "/api/about"),
        ("GET", "/nowhere"),
        ("POST", "/api/search"),
    ):
        headers = ask(app, method, path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert (
            policy["default-src"] == "'none'" and policy["script-src"] == "'self'" and policy["style-src"] == "'self'"
        )
        assert (
            headers["x-content-type-options"] == "nosniff" and headers["cross-origin-resource-policy"] == "same-origin"
        )
        assert "access-control-allow-origin" not in headers and "server" not in headers


def test_only_its_own_names_and_pages_may_ask(world):
    _, gallery, app = world
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "", "127.0.0.1.evil", "[::2]:80"):
        answer = ask(app, "GET", "/api/about", headers={"host": host})
        assert answer.status == 421 and "--allow-host" in answer.json()["error"], host
    for host in ("localhost", "LOCALHOST:9", "127.0.0.1:8000", "[::1]:8000"):
        assert ask(app, "GET", "/api/about", headers={"host": host}).status == 200, host
    assert ask(make_app(gallery, allow=["mine.local"]), "GET", "/", headers={"host": "mine.local:1"}).status == 200
    query = {"query": [{"id": "1"}]}
    for origin, status in (("http://evil.example", 403), ("null", 403), ("http://localhost:8000", 200), (None, 200)):
        assert ask(app, "POST", "/api/search", query, headers={"origin": origin}).status == status, origin


def test_beyond_loopback_a_token_is_needed(world):
    _, gallery, _ = world
    with pytest.raises(RunError, match="token"):
        make_app(gallery, host="0.0.0.0")
    app = make_app(gallery, host="0.0.0.0", token=TOKEN)
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer "},
        {"cookie": "centrobind_token=no"},
        {"cookie": "\x01=;;="},
    ):
        for path in ("/", "/static/page.js", "/api/about", "/nowhere", "/?token=wrong", f"/api/about?token={TOKEN}"):
            assert ask(app, "GET", path, headers=headers).status == 401, (headers, path)
    assert ask(app, "GET", "/api/about", headers={"authorization": f"Bearer {TOKEN}"}).status == 200
    entered = ask(app, "GET", f"/?token={TOKEN}", headers={"host": "any.name"})
    assert entered.status == 303 and entered.headers["location"] == "/"
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert ask(app, "GET", "/api/about", headers={"cookie": cookie.partition(";")[0]}).status == 200
    assert [
        is_loopback(host)
        for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "0.0.0.0", "::", "10.0.0.1", "example.org")
    ] == [True] * 4 + [False] * 4


CAN_BE_IN_A_COOKIE = string.ascii_letters + string.digits + "!#$%&'()*+-./:<=>?@[]^_`{|}~"  # RFC 6265, cookie-octet


def test_a_token_that_protects_nothing_is_refused_however_it_is_given(world):
    _, gallery, app = world
    broken = ["", " ", "a", "0123456789abcde", *(f"{TOKEN}{c}" for c in '\r\n\0 ;,\\"é☃\x7f\t\ud800')]
    for token in broken:
        for give in (
            lambda: Guard(app, None, token),
            lambda: make_app(gallery, token=token),
            lambda: make_app(gallery, host="0.0.0.0", token=token),
            lambda: listen(gallery, port=0, token=token),
            lambda: listen(gallery, host="::1", port=0, token=token),
        ):
            with pytest.raises(RunError, match="^token: ") as refused:
                give()
            assert len(token) < 3 or token not in str(refused.value), "a log must not learn it"


@pytest.mark.parametrize("option", ["--token", "CENTROBIND_TOKEN"])
def test_the_command_line_refuses_a_token_that_protects_nothing(world, option, monkeypatch):
    folder, _, _ = world
    monkeypatch.chdir(folder)
    command = ["serve", "binder.safetensors", "store", "--host", "0.0.0.0", "--port", "0"]
    given = {"env": {option: "secret"}} if option.isupper() else {}
    said = CliRunner().invoke(command_line, [*command, *([] if option.isupper() else [option, ""])], **given)
    assert isinstance(said.exception, RunError) and "at least 16 characters" in str(said.exception)


def test_every_token_that_is_taken_opens_the_page(world):
    """Through the printed address, the cookie it sets, and the header for programs."""
    _, gallery, _ = world
    for character in map(chr, range(33, 127)):
        token = f"{TOKEN}{character}{TOKEN}"
        if character not in CAN_BE_IN_A_COOKIE:
            with pytest.raises(RunError, match=f"U\\+00{ord(character):02X}"):
                make_app(gallery, token=token)
            continue
        listening = listen(gallery, port=0, token=token)
        listening.listener.close()
        app = listening.server.config.app
        entered = ask(app, "GET", listening.address[listening.address.index("/", 8) :])
        assert entered.status == 303, character
        cookie = entered.headers["set-cookie"].partition(";")[0]
        assert ask(app, "GET", "/api/about", headers={"cookie": f"a=b; {cookie}"}).status == 200, character
        assert ask(app, "GET", "/api/about", headers={"authorization": f"bearer {token}"}).status == 200, character
        assert ask(app, "GET", "/api/about", headers={"authorization": token}).status == 401, character


def test_hosts_are_compared_as_names_and_not_as_letters(world):
    _, gallery, _ = world
    for given, sent in (
        ("Example.COM", "example.com"),
        ("example.com", "EXAMPLE.com:8000"),
        ("example.com:8080", "example.com:8080"),
        ("example.com.", "example.com"),
        ("fd00::1", "[fd00::1]:8000"),
        ("[fd00:0:0::1]", "[FD00::0:1]"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("10.0.0.7", "10.0.0.7:80"),
    ):
        app = make_app(gallery, allow=[given])
        assert ask(app, "GET", "/api/about", headers={"host": sent}).status == 200, (given, sent)
        for other in ("evil.example", f"{sent}.evil.example", f"evil@{sent}", f"{sent}:x", f"{sent}:99999", f"{sent} "):
            assert ask(app, "GET", "/api/about", headers={"host": other}).status == 421, (given, other)
    app = make_app(gallery, host="fd00::7", token=TOKEN)
    known = {"authorization": f"Bearer {TOKEN}"}
    assert ask(app, "GET", "/api/about", headers={"host": "[fd00::7]:8000", **known}).status == 200
    for nonsense in ("", " ", "a b", "http://a", "*", "[::1", "a" * 300, "a/b", "\0"):
        with pytest.raises(RunError, match="--allow-host"):
            make_app(gallery, allow=[nonsense])
    with pytest.raises(RunError, match="--host"):
        make_app(gallery, host="", token=TOKEN)


def test_a_request_that_can_be_read_in_two_ways_is_refused(world):
    """Such as its end by its length and by its chunks, which a proxy in front may take the other way."""
    _, _, app = world
    query = json.dumps({"query": [{"id": "1"}]}).encode()
    headers = {"content-type": "application/json", "transfer-encoding": "chunked"}
    assert ask(app, "POST", "/api/search", query, headers=headers).status == 400
    for name in ("host", "Origin", "authorization", "content-length", "content-type", "transfer-encoding"):
        twice = ask(app, "GET", "/api/about", more=[(name, "localhost"), (name, "localhost")])
        assert twice.status == 400 and "twice" in twice.json()["error"] and twice.headers["connection"] == "close", name


def test_slow_bodies_take_no_place_from_others(world):
    """Many bodies that begin and do not go on, one that is large: it gets through, and they get 408."""
    _, gallery, _ = world
    guard = make_app(gallery, bounds=Bounds(uploads=2, receive=5, pace=0.1))
    large = json.dumps({"query": [{"id": "1"}]}).encode() + b" " * 300_000
    statuses = []

    async def one(pieces, pause):
        async def receive():
            piece = pieces.pop(0)
            if piece is None:
                await asyncio.sleep(3600)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

        async def send(message):
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await asyncio.sleep(pause)
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/api/search", "query_string": b"", "headers": headers}
        await guard(scope, receive, send)

    async def all_of_them():
        slow = [one([b"a" * 70_000, None], 0) for _ in range(8)]
        slower = [one([b"a", None], 0) for _ in range(8)]
        patient = asyncio.gather(*slow, *slower)
        await one([large[:100_000], large[100_000:]], 0.05)
        assert statuses[-1] == 200 and len(statuses) < 16
        await patient

    asyncio.run(all_of_them())
    assert sorted(statuses) == [200] + [408] * 16


def test_bodies_have_bounds(world):
    _, gallery, _ = world
    app = make_app(gallery, bounds=Bounds(bytes=1000, receive=0.2))
    headers = {"content-type": "application/json"}
    assert ask(app, "POST", "/api/search", b"a" * 1001, headers=headers).status == 413
    piecemeal = {**headers, "content-length": None, "transfer-encoding": "chunked"}
    assert ask(app, "POST", "/api/search", headers=piecemeal, pieces=[b"a" * 600] * 2).status == 413
    assert ask(app, "POST", "/api/search", headers=piecemeal, pieces=[b"a"] * 40, wait=0.02).status == 408
    said = json.dumps({"query": [{"id": "1"}]}).encode()
    assert ask(app, "POST", "/api/search", headers=piecemeal, pieces=[said[:9], said[9:]]).status == 200


def test_large_bodies_wait_for_each_other_and_the_place_is_given_back():
    """More uploads than are held at a time, some of them broken off: all get an answer."""
    most = held = 0

    async def slow(scope, receive, send):
        nonlocal most, held
        held += 1
        most = max(most, held)
        await asyncio.sleep(0.01)
        held -= 1
        raise RuntimeError("on purpose")

    guard = Guard(slow, frozenset({"localhost"}), bounds=Bounds(bytes=2**20, uploads=2, receive=5))
    said = []

    async def one(gone):
        async def receive():
            if gone:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": b"a" * 100_000}

        async def send(message):
            if message["type"] == "http.response.start":
                said.append(message["status"])

        headers = [(b"host", b"localhost"), (b"content-length", b"100000")]
        await guard(
            {"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": b""}, receive, send
        )

    async def all_of_them():
        await asyncio.gather(*(one(n % 3 == 0) for n in range(12)))

    asyncio.run(all_of_them())
    assert most == 2 and sorted(said) == [400] * 4 + [500] * 8


def test_a_fault_of_ours_is_not_shown(world, caplog):
    async def broken(scope, receive, send):
        raise RuntimeError("the secret plan")

    async def late(scope, receive, send):
        await asyncio.sleep(5)

    broken_inside = make_app(world[1])
    broken_inside.app.router.routes[0].app = broken
    for app in (Guard(broken, None), broken_inside):
        caplog.clear()
        answer = ask(app, "GET", "/")
        assert answer.status == 500 and "log" in answer.json()["error"]
        assert "secret" not in answer.body.decode() and "secret" in caplog.text
    answer = ask(Guard(late, None, bounds=Bounds(answer=0.05)), "GET", "/")
    assert answer.status == 503 and "no answer within" in answer.json()["error"]


# ---- opening ------------------------------------------------------------------------------------------------------


def test_index_and_map_are_made_once_and_follow_the_data(world, monkeypatch):
    folder, gallery, _ = world
    kept = sorted(path.name for path in (folder / "serve").rglob("*"))
    before = (folder / "serve").stat().st_mtime_ns
    again = open_gallery(folder / "binder.safetensors", folder / "store")
    assert (again.atlas.xy == gallery.atlas.xy).all() and (folder / "serve").stat().st_mtime_ns == before
    assert sorted(path.name for path in (folder / "serve").rglob("*")) == kept
    damaged, *_ = (folder / "serve").rglob("index.json")
    damaged.write_text("{")
    assert len(open_gallery(folder / "binder.safetensors", folder / "store").index) == 60
    part = open_gallery(folder / "binder.safetensors", folder / "store", split="test", cache=folder / "elsewhere")
    assert 0 < len(part.samples) < 60 and len(list((folder / "elsewhere").iterdir())) == 1
    own = open_gallery(folder / "binder.safetensors", folder / "store", index=part.index.path)
    assert set(own.samples.ids[:]) == set(part.samples.ids[:])
    found = own.search([Part("text", "red thing")])
    assert {hit["id"] for hit in found["samples"]} <= set(part.samples.ids[:])


def test_the_map_is_kept_where_the_server_was_started(world, tmp_path, monkeypatch):
    """With paths as a person types them, and the folder changed while the map is drawn."""
    folder, _, _ = world
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("binder.safetensors", "store"):
        (tmp_path / "a" / name).symlink_to(folder / name)
    go = threading.Event()
    cached_atlas = opening.cached_atlas
    monkeypatch.setattr(opening, "cached_atlas", lambda *given: go.wait(60) and cached_atlas(*given))
    monkeypatch.chdir(tmp_path / "a")
    gallery = open_gallery("binder.safetensors", "store", wait=False)
    monkeypatch.chdir(tmp_path / "b")
    go.set()
    gallery.drawing.wait()
    assert list((tmp_path / "a" / "serve").rglob("map-*.npz")) and not list((tmp_path / "b").iterdir())


def test_what_cannot_be_served_is_said(world, tmp_path, monkeypatch):
    folder, gallery, _ = world
    samples = mixed_samples()
    save(build_binder(samples, dim=8, seed=1), tmp_path / "other")
    with pytest.raises(StoreError, match="another binder|embeddings of binder"):
        open_gallery(tmp_path / "other.safetensors", folder / "store", index=gallery.index.path)
    with pytest.raises(DataError, match="none of its modalities"):
        open_gallery(folder / "binder.safetensors", "xor")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RunError, match="--port"):
            listen(gallery, port=taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ExtraError, match=r"pip install 'centrobind\[serve\]'"):
        listen(gallery)


def test_the_demo_says_how_to_look_at_it(monkeypatch, tmp_path):
    from centrobind.cli import main

    made, served = {"rows": [], "sentence": "", "verdicts": []}, []
    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: made)
    monkeypatch.setattr("centrobind.report.tables.terminal_table", lambda rows: "")
    monkeypatch.setattr(main, "serve_run", lambda *given, **more: served.append((given, more)))
    said = CliRunner().invoke(main.app, ["demo", "--out", str(tmp_path)])
    assert said.output.splitlines()[-1].endswith(f"centrobind serve {tmp_path} glyphs") and not served
    CliRunner().invoke(main.app, ["demo", "--out", str(tmp_path), "--serve"])
    assert served == [((tmp_path, "glyphs"), {"browse": True})]


# ---- a real socket ------------------------------------------------------------------------------------------------


@contextmanager
def serving(gallery, **options):
    """A server in a thread."""
    listening = listen(gallery, port=0, **options)
    thread = threading.Thread(target=lambda: asyncio.run(listening.run()))
    thread.start()
    try:
        yield urlsplit(listening.address)
    finally:
        listening.server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


GET = b"GET /static/icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEAD = GET[:-4]  # one that goes on


def cut_off(address, before, trickle, *, read=True):
    """Whether a connection that sends `before`, then the bytes of `trickle` one by one, is cut off before they end."""
    with socket.create_connection((address.hostname, address.port), timeout=10) as line:
        line.sendall(before)
        line.settimeout(0.02)
        for _ in range(trickle):
            try:
                line.sendall(b"x")
                if read and not line.recv(65536):
                    return True
            except TimeoutError:
                continue
            except OSError:
                return True
            if not read:
                time.sleep(0.02)
    return False


def test_a_head_has_a_deadline_and_so_has_the_next_one(world):
    _, gallery, _ = world
    quick = Deadlines(head=0.3, exchange=0.6, reading=0.6)
    with serving(gallery, token=TOKEN, deadlines=quick) as address:
        known = GET[:-2] + f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()
        announced = b"Content-Type: text/plain\r\nContent-Length: 100000\r\n\r\n"
        for name, before in {
            "nothing": b"",
            "the first head": HEAD,
            "the second head": known + HEAD,
            "the second head, late": known + known + b"GE",
            "no token, then another head": GET + HEAD,
            "no token, then a body that nobody reads": b"POST / HTTP/1.1\r\nHost: localhost\r\n" + announced,
            "a body": known.replace(b"GET", b"POST")[:-2] + announced,
        }.items():
            assert cut_off(address, before, 400), name
        line = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
        line.connect()
        held = line.sock
        for _ in range(20):  # for longer than a head may take: a client that goes on asking is not cut off
            line.request("GET", "/static/icon.svg", headers={"authorization": f"Bearer {TOKEN}"})
            assert len(line.getresponse().read()) > 100 and line.sock is held
            time.sleep(0.05)
        line.close()


def test_a_request_may_take_longer_than_its_head(world):
    query = json.dumps({"query": [{"id": "1"}]}).encode()
    head = f"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(query)}"
    with (
        serving(world[1], deadlines=Deadlines(head=0.2, exchange=60)) as address,
        socket.create_connection((address.hostname, address.port), timeout=60) as line,
    ):
        line.sendall(head.encode() + b"\r\n\r\n")
        time.sleep(0.5)
        line.sendall(query)
        assert line.recv(65536).startswith(b"HTTP/1.1 200")


def test_an_answer_that_nobody_reads_is_given_up(world):
    _, gallery, _ = world
    ask_much = b"GET /api/points HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4000
    quick = Deadlines(head=0.3, exchange=0.6, reading=0.6)
    with (
        serving(gallery, deadlines=quick) as address,
        socket.create_connection((address.hostname, address.port), timeout=10) as line,
    ):
        line.setblocking(False)
        pending = ask_much
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                pending = pending[line.send(pending) :] or ask_much
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:
                return
    raise AssertionError("a client that reads nothing kept its connection")


def test_one_request_is_answered_once(world):
    """A body whose end can be read in two ways holds another request in one of them."""
    _, gallery, _ = world
    smuggled = b"0\r\n\r\n" + GET
    head = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with serving(gallery) as address:
        for both in (
            b"Content-Length: 4\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: chunked\r\nContent-Length: 6",
        ):
            with socket.create_connection((address.hostname, address.port), timeout=10) as line:
                line.sendall(head + both + b"\r\n\r\n" + smuggled)
                said = b""
                while more := line.recv(65536):
                    said += more
            assert said.startswith(b"HTTP/1.1 400") and said.count(b"HTTP/1.1 ") == 1


@pytest.fixture
def running(world):
    with serving(world[1]) as address:
        yield address


def test_64_clients_at_once(running):
    """One request of each of five kinds from everybody; the minute is `python benchmarks/serve_load.py`."""
    said, faults = [], []
    body, headers = form({"query": [{"modality": "picture", "file": "f"}]}, f=png(np.full((40, 30), 90, np.uint8)))
    asked = [
        (
            "POST",
            "/api/search",
            json.dumps({"query": [{"modality": "text", "text": "red"}]}),
            {"content-type": "application/json"},
            200,
        ),
        ("POST", "/api/search", body, headers, 200),
        ("POST", "/api/search", "{", {"content-type": "application/json"}, 400),
        ("GET", "/api/value/picture/8", None, {}, (200, 404)),
        ("GET", "/api/points", None, {}, 200),
    ]

    def client(number):
        try:
            line = http.client.HTTPConnection(running.hostname, running.port, timeout=120)
            for _ in range(len(asked)):
                method, path, content, with_headers, expected = asked[number % len(asked)]
                line.request(method, path, content, with_headers)
                answer = line.getresponse()
                answer.read()
                if answer.status not in (expected if isinstance(expected, tuple) else (expected,)):
                    faults.append((path, answer.status))
                said.append(answer.status)
                number += 1
            line.close()
        except Exception as error:
            faults.append(error)

    clients = [threading.Thread(target=client, args=(n,)) for n in range(64)]
    for one in clients:
        one.start()
    for one in clients:
        one.join(200)
    assert not faults and len(said) == 64 * len(asked)


def test_it_ends_without_losing_an_answer(world):
    """SIGTERM while a body is still arriving: the answer comes, then the program ends with 0."""
    folder, _, _ = world
    command = [sys.executable, "-m", "centrobind", "serve", "binder.safetensors", "store", "--port", "0"]
    server = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        address = urlsplit(server.stdout.readline().split()[-1])
        body = json.dumps({"query": [{"id": "1"}]}).encode()
        with socket.create_connection((address.hostname, address.port), timeout=120) as line:
            line.sendall(
                b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
            )
            line.sendall(f"Content-Length: {len(body)}\r\n\r\n".encode() + body[:5])
            time.sleep(0.3)
            server.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert server.poll() is None
            line.sendall(body[5:])
            said = b""
            while more := line.recv(65536):
                said += more
        assert said.startswith(b"HTTP/1.1 200") and b'"samples"' in said
        assert server.wait(120) == 0 and "Traceback" not in server.stderr.read()
    finally:
        server.kill()
        server.communicate()
