"""One YAML, checked whole: every mistake at once, with file, line and the nearest known key."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from centrobind.binder.encoders import ENCODERS
from centrobind.binder.pretrained import pretrained_tower
from centrobind.errors import ConfigError
from centrobind.objectives.base import HIGHEST, LOWEST, Objective
from centrobind.objectives.table import OBJECTIVES

Checked = TypeVar("Checked", bound=BaseModel)

MOST_BYTES = 2**20  # of a configuration
MOST_VALUES = 100_000  # in it, with every alias written out


class Strict(BaseModel):
    """Unknown keys are errors, and nothing changes after it was checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModalityConfig(BaseModel):
    """How one modality is read and encoded; other keys are options of the encoder."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Literal["vector", "sequence", "image", "text"] | None = None
    encoder: Literal[(*ENCODERS, "hf")] | None = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _options_fit_the_encoder(self) -> ModalityConfig:
        options = self.__pydantic_extra__ or {}
        if options and self.encoder is None:
            raise ValueError(f"unknown keys {sorted(options)}; options of an encoder need encoder: to be named")
        if self.encoder is not None:
            made_by = pretrained_tower if self.encoder == "hf" else ENCODERS[self.encoder]
            given = ("kind", "raw_shape", "shape", "weights")  # not from the file
            takes = [name for name in inspect.signature(made_by).parameters if name not in given]
            if self.encoder == "hf" and "model" not in options:
                raise ValueError("encoder hf needs model:, a folder or a name on the hub")
            for key in options:
                if key not in takes:
                    raise ValueError(f"encoder {self.encoder} has no option {key!r}{did_you_mean(key, takes)}")
        return self

    def encoder_spec(self) -> dict[str, Any] | None:
        """What build_binder takes for this modality."""
        return None if self.encoder is None else {"encoder": self.encoder, **(self.__pydantic_extra__ or {})}


FROM_SCRATCH = 1000  # steps of a training that has no linear path to start from
MOST_STEPS = 400  # of a training that stops by itself: 60 seconds on two cores, with the refit
EARLY, LATER = (5, 10, 20), 40  # when it looks at the validation samples
PATIENCE = 80
Start = Literal["auto", "closed_form", "scratch", "unimodal"]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Dim = Annotated[int, Field(ge=2, le=65536, description="of the common space")]


class TrainConfig(Strict):
    """How long, how fast, and what is kept."""

    steps: int | None = Field(None, ge=1, description="optimizer steps; default: stops by itself")
    batch_size: int | None = Field(
        None, ge=2, description="samples a step, over all ranks; default 256 or all there are"
    )
    chunk: int | None = Field(
        None, ge=1, description="samples in a tower at a time: less memory, same gradient, a second forward pass"
    )
    shard: bool = Field(False, description="large towers: each rank holds a part of them and of the optimizer's state")
    lr: float = Field(2e-3, gt=0, le=10, description="highest learning rate")
    warmup: float = Field(
        0.05, ge=0, le=1, description="share of the steps in which lr rises; then it falls as a cosine"
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW, on matrices only")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are shortened to this")
    augment: float | None = Field(
        None,
        ge=0,
        le=3,
        description="strength of the augmented views, 0 = none; default 0 from the closed form, else 1",
    )
    average: float = Field(0.0, ge=0, lt=1, description="decay of averaged weights, which are then kept; 0 = none")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="where to compute; auto = a GPU if there is one"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="of the towers; auto = bf16 on a GPU")
    validate_every: int | None = Field(None, ge=1, description="steps; default a tenth of all")
    checkpoint_every: int | None = Field(None, ge=1, description="steps; default a tenth of all")
    log_every: int = Field(10, ge=1, description="steps between lines in metrics.jsonl")
    keep: Literal["best", "last"] = Field("best", description="which weights the run ends with: best by validation MRR")
    valid: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="part of train to validate on without a valid split; default a tenth, a sixth without steps",
    )
    tensorboard: bool = Field(True, description="also log there, if it is installed")

    @property
    def share(self) -> float:
        """The part of train to validate on."""
        return self.valid or (1 / 6 if self.steps is None else 0.1)

    @property
    def most_steps(self) -> int:
        """The number of steps, or where training stops by itself the most there can be."""
        return MOST_STEPS if self.steps is None else self.steps

    def is_due(self, what: Literal["log", "validate", "checkpoint"], step: int) -> bool:
        """Whether it is time for it after `step` steps; after the last one it always is."""
        every = {"log": self.log_every, "validate": self.validate_every, "checkpoint": self.checkpoint_every}[what]
        if step == self.most_steps:
            return True
        if every is None and what == "validate" and self.steps is None:
            return step in EARLY or step % LATER == 0
        return step % (max(1, self.most_steps // 10) if every is None else every) == 0

    def stops(self, step: int, best: int | None) -> bool:
        """Whether training is over: after all steps, or by itself where the best was less than half as long ago."""
        return step >= self.most_steps or (self.steps is None and best is not None and step >= PATIENCE + 2 * best)


def _objective_models() -> tuple[type[BaseModel], ...]:
    """One model per row of OBJECTIVES, read off the signature of its constructor: the table is the schema."""
    models = []
    for name, construct in OBJECTIVES.items():
        fields: dict[str, Any] = {"name": (Literal[name], ...)}
        for parameter in inspect.signature(construct, eval_str=True).parameters.values():
            if parameter.name == "modalities":  # known from the data, not from the file
                continue
            default = ... if parameter.default is parameter.empty else parameter.default
            bounds = {"ge": LOWEST, "le": HIGHEST} if parameter.name == "temperature" else {}
            fields[parameter.name] = (parameter.annotation, Field(default, **bounds))
        models.append(create_model(f"{name}_objective", __base__=Strict, **fields))
    return tuple(models)


ObjectiveConfig = Annotated[Union[_objective_models()], Field(discriminator="name")]  # noqa: UP007


class FitConfig(Strict):
    """What `fit` takes beside the data and the settings of training."""

    seed: Seed = 0
    dim: Dim | None = None
    start: Start = "auto"
    objective: ObjectiveConfig | None = Field(None, description="None: the default, or a module of the caller's own")


class RunConfig(Strict):
    """A whole run: data, what to bind, how, and where the result goes."""

    data: str = Field(description="a store, or one of the built-in sets: glyphs, synthetic, xor")
    out: str = Field(description="the run's folder; made by the run")
    seed: Seed = 0
    dim: Dim | None = Field(None, description="of the common space; default as the closed form chooses, else 64")
    start: Start = Field("auto", description="auto: the closed form, unless init names a binder")
    modalities: dict[str, ModalityConfig] | None = Field(None, description="default: all in the data")
    objective: ObjectiveConfig | None = Field(None, description="default: see docs/default.md")
    train: TrainConfig = TrainConfig()
    init: str | None = Field(None, description="a run or binder whose towers training starts from")


def make_objective(config: BaseModel, modalities: Sequence[str]) -> Objective:
    """The objective that a config names; ConfigError if it names a modality that is not there."""
    options = {key: value for key, value in config.model_dump().items() if key != "name"}
    construct = OBJECTIVES[config.name]
    named = [options["anchor"]] if "anchor" in options else list(options.get("weights") or {})
    if unknown := [name for name in named if name not in modalities]:
        raise ConfigError(f"objective {config.name}: no modality {unknown} in the data, expected of {list(modalities)}")
    if "modalities" in inspect.signature(construct).parameters:
        options["modalities"] = tuple(modalities)
    return construct(**options)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a run's YAML; `overrides` are "train.lr=1e-4". ConfigError lists every mistake at once."""
    return load_checked(RunConfig, Path(path), overrides)


def _written_out(node: yaml.Node | None, known: dict[int, int]) -> int:
    """The values in a tree with every alias written out, without writing it out."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 1  # one that holds itself counts once, and is refused where it is checked
        inner = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_written_out(part, known) for part in inner)
    return known[id(node)]


def load_checked(model: type[Checked], path: Path, overrides: Sequence[str] = ()) -> Checked:
    """The same for any model of ours."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(f"{path}: more than {MOST_BYTES:,} bytes, which is no configuration")
        text = content.decode()
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        if _written_out(tree, {}) > MOST_VALUES:
            raise ConfigError(f"{path}: its aliases (*name) stand for more than {MOST_VALUES:,} values")
        values = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ConfigError:
        raise
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where else ""
        raise ConfigError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or error})") from None
    if not isinstance(values, dict):
        wanted = ", ".join(name for name, field in model.model_fields.items() if field.is_required())
        raise ConfigError(f"{path}: expected keys such as {wanted}, got {type(values).__name__}")
    lines: dict[tuple, str] = {}
    problems = list(_walk(tree, (), str(path), lines))
    for override in overrides:
        problems += _override(values, override, lines)
    return _checked(model, values, str(path), lines, problems)


def check_config(values: Mapping[str, Any], where: str = "config") -> RunConfig:
    """The same checks for a dict."""
    return check(RunConfig, values, where)


def check(model: type[Checked], values: Mapping[str, Any], where: str) -> Checked:
    """The same for a dict and any model of ours; `where` begins each line of the ConfigError."""
    return _checked(model, dict(values), where, {}, [])


def dump_config(config: BaseModel) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _checked(
    model: type[Checked], values: dict, where: str, lines: Mapping[tuple, str], problems: list[str]
) -> Checked:
    config = None
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        problems += [_describe(model, one, where, lines) for one in error.errors()]
    except RecursionError:
        problems.append(f"{where}: nested without end")
    if problems or config is None:
        raise ConfigError("\n".join(problems))
    return config


def _walk(node: yaml.Node, at: tuple, path: str, lines: dict[tuple, str], above: tuple = ()):
    """Remember the line of every key; yield a complaint for each key that is there twice."""
    if not isinstance(node, yaml.MappingNode) or any(node is other for other in above):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.value in seen:
            yield f"{path}:{line}: {'.'.join((*at, str(key.value)))}: already set in line {seen[key.value]}"
        seen[key.value] = line
        lines[(*at, key.value)] = f"{path}:{line}"
        yield from _walk(value, (*at, key.value), path, lines, (*above, node))


def _override(values: dict, override: str, lines: dict[tuple, str]) -> list[str]:
    """Put one "a.b=value" into the values; a list of complaints, empty if it went well."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        return [f"--set {override}: expected key=value, such as train.lr=1e-4"]
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *parents, last = key.split(".")
    at = values
    for parent in parents:
        if at.get(parent) is None:
            at[parent] = {}
        at = at[parent]
        if not isinstance(at, dict):
            return [f"--set {override}: {parent} is not a group of keys"]
    at[last] = value
    lines[(*parents, last)] = f"--set {override}"
    return []


def _describe(model: type[BaseModel], error: Mapping[str, Any], where: str, lines: Mapping[tuple, str]) -> str:
    """One pydantic error as: place: key: what was expected, and what was got."""
    at = tuple(part for part in error["loc"])
    # The tag of the objective union stands in pydantic's path but not in the file.
    if len(at) > 1 and at[0] == "objective" and at[1] in OBJECTIVES:
        at = (at[0], *at[2:])
    at = tuple(map(str, at))
    place = next((lines[at[:n]] for n in range(len(at), 0, -1) if at[:n] in lines), where)
    key = ".".join(at)
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, error["loc"])
        return f"{place}: {key}: unknown key{did_you_mean(at[-1], known)}, got {error['input']!r}"
    if error["type"] == "missing":
        return f"{place}: {key}: missing, and it has no default"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        given = error["input"].get("name") if isinstance(error["input"], dict) else error["input"]
        return (
            f"{place}: {key}.name: expected one of {list(OBJECTIVES)}, got {given!r}{did_you_mean(given, OBJECTIVES)}"
        )
    message = error["msg"].removeprefix("Value error, ")
    return f"{place}: {key}: {message[0].lower()}{message[1:]}, got {error['input']!r}"


def _known_keys(model: type[BaseModel], at: tuple) -> list[str]:
    """The keys allowed beside the one that pydantic refused."""
    if at[0] == "objective" and len(at) > 2:
        return [key for key in inspect.signature(OBJECTIVES[at[1]]).parameters if key != "modalities"]
    for part in at[:-1]:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else model
    return list(model.model_fields)


def did_you_mean(key: Any, known: Iterable[str]) -> str:
    """ " (did you mean 'batch_size'?)" or nothing."""
    close = difflib.get_close_matches(str(key), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
