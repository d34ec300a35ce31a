"""What clients send and get, each as a pydantic model: limits, checks and the OpenAPI document have this one source."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, field_validator, model_validator

from centrobind.errors import DataError

MOST_PARTS = 16  # of one query
MOST_QUERIES = 256  # embedded by one request
MOST_HITS = 200
MOST_MODALITIES = 64

REF = "#/components/schemas/{model}"
# Known only once a gallery is opened: description.py puts references to them there.
OF = "x-of"
Modality = Annotated[str, WithJsonSchema({OF: "ModalityName"})]
Direction = Annotated[list[float], WithJsonSchema({OF: "UnitVector"})]


class Sent(BaseModel):
    """What clients send: nothing beyond what is named, and no text that looks like a number taken for one."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PartSent(Sent):
    """A piece of a query: a modality and one of id, text, values or file."""

    modality: Modality | None = Field(
        default=None,
        description="which the value belongs to; absent, an id means all that the sample has, and a text any text",
    )
    id: str | None = Field(default=None, description="a sample that is there")
    text: str | None = None
    values: list[Any] | None = Field(default=None, description="nested lists of numbers of the modality's shape")
    file: str | None = Field(default=None, description="the name of a file of the form")

    @model_validator(mode="after")
    def _one_way(self) -> PartSent:
        if len(self.ways) != 1:
            raise ValueError(f"expected a modality and one of id, text, values or file, got {sorted(self.ways)}")
        return self

    @property
    def ways(self) -> set[str]:
        """Which of id, text, values and file are given."""
        return self.model_fields_set - {"modality"}


Parts = Annotated[list[PartSent], Field(max_length=MOST_PARTS)]


class EmbedQuery(Sent):
    """What is asked for, and what hits should not be like."""

    query: Parts = Field(description="what is asked for: the centre of its parts", min_length=1)
    minus: Parts = Field(default=[], description="directions that count for nothing")

    @model_validator(mode="after")
    def _few_parts(self) -> EmbedQuery:
        if (count := len(self.query) + len(self.minus)) > MOST_PARTS:
            raise ValueError(f"{count} parts, expected at most {MOST_PARTS}")
        return self


class EmbedQueries(Sent):
    """Several queries at once."""

    queries: list[EmbedQuery] = Field(min_length=1, max_length=MOST_QUERIES)


Categories = str | list[str]


class Where(Sent):
    """Categories that hits are narrowed to; of the same kind several: any of them."""

    label: Categories | None = None
    split: Categories | None = None
    group: Categories | None = None


class SearchQuery(EmbedQuery):
    """The same, with what to find and how much of it."""

    want: list[Modality] | None = Field(
        default=None, min_length=1, max_length=MOST_MODALITIES, description="a list of modalities; default: all"
    )
    k: int = Field(default=12, ge=1, le=MOST_HITS)
    where: Where = Where()

    @field_validator("want")
    @classmethod
    def _each_once(cls, want: list[str] | None) -> list[str] | None:
        return None if want is None else list(dict.fromkeys(want))


class Answer(BaseModel):
    """What clients get: all of it, always."""

    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)


class Health(Answer):
    """That the server answers. No more: who asks needs no token."""

    status: Literal["ok"]


class Card(Answer):
    """What a sample is called."""

    id: str
    label: str | None
    caption: str | None
    split: str | None


class ModalityShown(Answer):
    """One modality of the gallery."""

    name: Modality
    shows: Literal["image", "sound", "series", "text", "numbers"]
    kind: str
    shape: list[int]
    present: int = Field(description="samples that have it")
    files: list[str] = Field(description="endings of files that can be asked with")


class MapShown(Answer):
    """How large the map is, and how much of it is true."""

    points: int
    share_kept: float | None = Field(description="of the ten nearest neighbours, on the map; null while it is drawn")


class About(Answer):
    """What there is: modalities, labels, numbers."""

    name: str
    fingerprint: str
    dim: int
    samples: int
    modalities: list[ModalityShown]
    labels: list[str]
    splits: list[str]
    map: MapShown
    page: bool = Field(description="whether the run has a report of its own, at /report")
    examples: list[Card] = Field(description="samples to begin with")


class Points(Answer):
    """The map, column by column; `sample` counts into `ids`."""

    ready: bool = Field(description="false while the map is drawn; then there are no points yet")
    done: float = Field(description="the share of the map that is drawn")
    fault: str | None = Field(description="why there will be no map, if there will be none")
    ids: list[str]
    label: list[int]
    split: list[int]
    x: list[float]
    y: list[float]
    sample: list[int]
    modality: list[int]
    kept: list[int]


class Sample(Card):
    """A sample, the modalities that it has, and the beginnings of its texts."""

    modalities: list[Modality]
    texts: dict[str, str]


class Hit(Card):
    """A sample that was found."""

    score: float = Field(description="cosine: 1 = the same direction, 0 = unrelated")


class Found(Answer):
    """The nearest in each wanted modality, in all of these together, and words that training never saw."""

    hits: dict[str, list[Hit]]
    samples: list[Hit]
    unknown: list[str]


class Vector(Answer):
    """Where a query lies in the space of the binder with that fingerprint."""

    vector: Direction
    fingerprint: str


class Vectors(Answer):
    """Where several queries lie, in their order."""

    vectors: list[Direction]
    fingerprint: str


class Findings(Answer):
    """Findings of one kind, and what to try."""

    severity: Literal["fault", "warning"]
    name: str
    advice: str
    sentences: list[str]


class Report(Answer):
    """Retrieval in every direction, geometry and findings."""

    samples: int
    split: str | None = Field(description="what was measured; null = everything there is")
    objective: dict[str, Any] | None
    findings: list[Findings]
    matrix: dict[str, Any]
    geometry: dict[str, Any]


class Error(Answer):
    """What was expected and what came."""

    error: str


def read(model: type[Sent], asked: Any) -> Any:
    """What a client sent, as a model; DataError with the first mistake in it, as every mistake is said."""
    if not isinstance(asked, dict):
        raise DataError(f"expected a JSON object, got {type(asked).__name__}")
    try:
        return model.model_validate(asked)
    except ValidationError as error:
        raise DataError(_in_words(model, error.errors(include_url=False)[0])) from None


def _in_words(model: type[BaseModel], mistake: Any) -> str:
    """One mistake as "query[0].text: expected a text, got list"."""
    place = ""
    for step in mistake["loc"]:
        if isinstance(step, int):
            place += f"[{step}]"
        elif step not in ("str", "list[str]"):  # the branches of a union, which nobody sent
            place += f"{'.' if place else ''}{step[:60]}"
    kind, context, got = mistake["type"], mistake.get("ctx", {}), type(mistake["input"]).__name__
    if kind == "extra_forbidden":
        inner, _, name = place.rpartition(".")
        return f"{inner + ': ' if inner else ''}unknown [{name!r}], expected {_fields(model, inner)}"
    if "str" in mistake["loc"] or "list[str]" in mistake["loc"]:
        return f"{place}: expected a category or a list of categories, got {got}"
    said = {
        "missing": "expected something to look for: a list with at least one part",
        "model_type": f"expected an object, got {got}",
        "list_type": f"expected a list, got {got}",
        "string_type": f"expected a text, got {got}",
        "int_type": f"expected a whole number, got {got}",
        "too_short": "expected something to look for: a list with at least one entry",
        "too_long": f"{context.get('actual_length')} entries, expected at most {context.get('max_length')}",
        "greater_than_equal": f"expected at least {context.get('ge')}, got {mistake['input']!r:.40}",
        "less_than_equal": f"expected at most {context.get('le')}, got {mistake['input']!r:.40}",
        "value_error": str(context.get("error", "")),
    }.get(kind, mistake["msg"])
    return f"{place}: {said}" if place else said


def _fields(model: type[BaseModel], place: str) -> str:
    """The names that an object of a query may have."""
    inner = Where if place.endswith("where") else PartSent if place.endswith("]") else model
    if place.startswith("queries") and not place.rpartition("].")[2].startswith(("query", "minus")):
        inner = EmbedQuery
    names = list(inner.model_fields)
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
