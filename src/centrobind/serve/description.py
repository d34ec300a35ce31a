"""The API in words that programs read: OpenAPI 3.1, made for the space that is served."""

from __future__ import annotations

from typing import Any

from centrobind import __version__


def describe(about: dict[str, Any]) -> dict[str, Any]:
    """The description, with the modalities and categories that there are as the only values allowed."""
    names = [one["name"] for one in about["modalities"]]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"centrobind: {about['name']}",
            "version": __version__,
            "description": "Search a bound space: any modality asks, any modality answers.",
        },
        "paths": {
            "/api/about": _get("What there is: modalities, labels, numbers", _ref("About")),
            "/api/points": _get("The map, column by column", _ref("Points")),
            "/api/sample/{id}": _get("One sample", _ref("Sample"), [_id()]),
            "/api/value/{modality}/{id}": _value(names),
            "/api/search": _post("The nearest samples in each modality", _ref("Found")),
            "/api/embed": _post("Where a query lies in the space: its unit vector", _ref("Vector")),
            "/api/report": _get(
                "Retrieval in every direction, geometry, findings (the first call takes seconds)", _ref("Report")
            ),
            "/api/openapi.json": _get("This description", {"type": "object"}),
        },
        "components": {
            "schemas": _schemas(about, names),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _get(summary: str, schema: dict[str, Any], parameters: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    operation = {
        "summary": summary,
        "responses": {"200": _json(summary, schema), "4XX": _json("A mistake, and which", _ref("Error"))},
    }
    return {"get": operation | ({"parameters": parameters} if parameters else {})}


def _post(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    form = {
        "type": "object",
        "required": ["query"],
        "properties": {
            "query": {"type": "string", "description": "the same JSON as text; its parts name files of the form"}
        },
        "additionalProperties": {"type": "string", "format": "binary"},
    }
    body = {
        "required": True,
        "content": {"application/json": {"schema": _ref("Query")}, "multipart/form-data": {"schema": form}},
    }
    answers = {"200": _json(summary, schema), "4XX": _json("A mistake, and which", _ref("Error"))}
    return {"post": {"summary": summary, "requestBody": body, "responses": answers}}


def _value(names: list[str]) -> dict[str, Any]:
    modality = {"name": "modality", "in": "path", "required": True, "schema": {"enum": names}}
    sketch = {
        "name": "as",
        "in": "query",
        "schema": {"enum": ["value", "sketch"]},
        "description": "sketch: a sound as a picture",
    }
    kinds = ("image/png", "audio/wav", "text/plain", "application/json")
    found = {
        "description": "The value: PNG, WAV, text, or JSON for series and vectors",
        "content": {kind: {} for kind in kinds},
    }
    return {
        "get": {
            "summary": "The value of a sample in one modality",
            "parameters": [modality, _id(), sketch],
            "responses": {"200": found, "4XX": _json("A mistake, and which", _ref("Error"))},
        }
    }


def _schemas(about: dict[str, Any], names: list[str]) -> dict[str, Any]:
    text, number, whole = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    texts, numbers, wholes = ({"type": "array", "items": one} for one in (text, number, whole))
    modality = {"type": "string", "enum": names}
    part = _object(
        {
            "modality": modality
            | {"description": "which the value belongs to; with id, absent means all the sample has"},
            "id": text | {"description": "a sample that is there"},
            "text": text,
            "values": {"type": "array", "description": "nested lists of numbers of the modality's shape"},
            "file": text | {"description": "the name of a file of the form"},
        },
        required=[],
    )
    category = {"oneOf": [text, texts]}
    card = {"id": text, "label": _or_null(text), "caption": _or_null(text)}
    found = {"type": "array", "items": _object(card | {"score": number | {"description": "cosine"}})}
    return {
        "Query": _object(
            {
                "query": {"type": "array", "items": part, "minItems": 1},
                "minus": {"type": "array", "items": part, "description": "directions that count for nothing"},
                "want": {"type": "array", "items": modality, "description": "default: all"},
                "k": {"type": "integer", "minimum": 1, "maximum": 200, "default": 12},
                "where": _object({"label": category, "split": category, "group": category}, required=[]),
            },
            required=["query"],
        ),
        "Found": _object(
            {"hits": {"type": "object", "additionalProperties": found}, "samples": found, "unknown": texts}
        ),
        "Vector": _object(
            {"vector": numbers | {"minItems": about["dim"], "maxItems": about["dim"]}, "fingerprint": text}
        ),
        "Sample": _object(card | {"split": _or_null(text), "modalities": texts}),
        "About": _object(
            {
                "name": text,
                "fingerprint": text,
                "dim": whole,
                "samples": whole,
                "labels": texts,
                "splits": texts,
                "page": {"type": "boolean"},
                "modalities": {
                    "type": "array",
                    "items": _object(
                        {
                            "name": text,
                            "shows": {"enum": ["image", "sound", "series", "text", "numbers"]},
                            "kind": text,
                            "shape": wholes,
                            "present": whole,
                        }
                    ),
                },
                "map": _object({"points": whole, "share_kept": _or_null(number)}),
            }
        ),
        "Points": _object(
            {
                "ids": texts,
                "label": wholes,
                "split": wholes,
                "x": numbers,
                "y": numbers,
                "sample": wholes,
                "modality": wholes,
                "kept": wholes,
            }
        ),
        "Report": _object(
            {
                "samples": whole,
                "split": _or_null(text),
                "objective": _or_null({"type": "object"}),
                "findings": texts,
                "matrix": {"type": "object"},
                "geometry": {"type": "object"},
            }
        ),
        "Error": _object({"error": text}),
    }


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"oneOf": [schema, {"type": "null"}]}


def _id() -> dict[str, Any]:
    return {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
