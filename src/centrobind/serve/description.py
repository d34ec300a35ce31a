"""The API in words that programs read: OpenAPI 3.1, generated from the models for the space that is served."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from centrobind import __version__
from centrobind.serve import models
from centrobind.serve.models import OF, REF


class Operation(NamedTuple):
    """A route: its method, what it does, what it takes in its body (either of them) and what it answers."""

    method: str
    summary: str
    answers: tuple[type[BaseModel], ...] = ()
    takes: tuple[type[BaseModel], ...] = ()


OPERATIONS = {
    "/healthz": Operation("get", "Whether the server answers; needs no token", (models.Health,)),
    "/api/about": Operation("get", "What there is: modalities, labels, numbers", (models.About,)),
    "/api/points": Operation("get", "The map, column by column", (models.Points,)),
    "/api/sample/{id}": Operation("get", "One sample", (models.Sample,)),
    "/api/value/{modality}/{id}": Operation("get", "The value of a sample in one modality"),
    "/api/search": Operation("post", "The nearest samples in each modality", (models.Found,), (models.SearchQuery,)),
    "/api/embed": Operation(
        "post",
        "Where a query lies in the space, or each of several: unit vectors",
        (models.Vector, models.Vectors),
        (models.EmbedQuery, models.EmbedQueries),
    ),
    "/api/report": Operation(
        "get", "Retrieval in every direction, geometry, findings (the first call takes seconds)", (models.Report,)
    ),
    "/api/openapi.json": Operation("get", "This description"),
}
PARAMETERS = {
    "id": {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}},
    "modality": {
        "name": "modality",
        "in": "path",
        "required": True,
        "schema": {"$ref": REF.format(model="ModalityName")},
    },
}
AS = {
    "name": "as",
    "in": "query",
    "schema": {"enum": ["value", "sketch"]},
    "description": "sketch: a sound as a picture",
}
VALUES = ("image/png", "audio/wav", "text/plain", "application/json")  # what a value comes as


def describe(about: dict[str, Any]) -> dict[str, Any]:
    """The document, with the modalities that there are as the only ones allowed, and vectors of the space's size."""
    names, dim = [one["name"] for one in about["modalities"]], about["dim"]
    used = {model: None for operation in OPERATIONS.values() for model in operation.takes}
    given = {model: None for operation in OPERATIONS.values() for model in operation.answers} | {models.Error: None}
    modes: Any = [*((model, "validation") for model in used), *((model, "serialization") for model in given)]
    _, schemas = models_json_schema(modes, ref_template=REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"centrobind: {about['name']}",
            "version": __version__,
            "description": "Search a bound space: any modality asks, any modality answers.",
        },
        "paths": {path: _operation(path, operation) for path, operation in OPERATIONS.items()},
        "components": {
            "schemas": {
                **_of_the_gallery(schemas["$defs"]),
                "ModalityName": {"type": "string", "enum": names},
                "UnitVector": {"type": "array", "items": {"type": "number"}, "minItems": dim, "maxItems": dim},
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _of_the_gallery(schema: Any) -> Any:
    """A schema with references to what only the gallery knows."""
    if isinstance(schema, list):
        return [_of_the_gallery(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _of_the_gallery(value) for key, value in schema.items() if key != OF}
    return inner | {"$ref": REF.format(model=schema[OF])} if OF in schema else inner


def _operation(path: str, operation: Operation) -> dict[str, Any]:
    parameters = [PARAMETERS[name] for name in PARAMETERS if f"{{{name}}}" in path]
    if path.startswith("/api/value"):
        parameters.append(AS)
    described: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {"200": _answer(operation), "4XX": _json("A mistake, and which", _schema((models.Error,)))},
    }
    if parameters:
        described["parameters"] = parameters
    if operation.takes:
        schema = _schema(operation.takes)
        content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": _form()}}
        described["requestBody"] = {"required": True, "content": content}
    return {operation.method: described}


def _answer(operation: Operation) -> dict[str, Any]:
    if operation.answers:
        return _json(operation.summary, _schema(operation.answers))
    if operation.summary == "This description":
        return _json(operation.summary, {"type": "object"})
    said = "The value: PNG, WAV, text, or JSON for series and vectors"
    return {"description": said, "content": {kind: {} for kind in VALUES}}


def _schema(some: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    schemas = [{"$ref": REF.format(model=model.__name__)} for model in some]
    return schemas[0] if len(schemas) == 1 else {"oneOf": schemas}


def _form() -> dict[str, Any]:
    query = {"type": "string", "description": "the same JSON as text; its parts name files of the form"}
    return {
        "type": "object",
        "required": ["query"],
        "properties": {"query": query},
        "additionalProperties": {"type": "string", "format": "binary"},
    }


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
