"""The binder: one tower per modality, all ending in one space. Batch -> Embeddings."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from centrobind.binder.drift import adapted
from centrobind.binder.encoders import ENCODERS, KIND_ENCODERS, Residual
from centrobind.binder.inputs import INPUTS, Words, described_inputs, refuse_nonfinite, warn_of_long_texts
from centrobind.binder.linear import LinearPath
from centrobind.binder.pretrained import pretrained_tower
from centrobind.closed_form.kinds import rebuilt_features
from centrobind.data import MISSING, Nan, Samples, as_samples, digests, same_things
from centrobind.devices import choose_device
from centrobind.distributed import placed
from centrobind.errors import ConfigError, DataError
from centrobind.seeds import seeded
from centrobind.types import Batch, Embeddings, unit


class Tower(nn.Module):
    """One modality's way into the space: inputs -> encoder -> head -> unit length.

    With a linear path, unit(linear(features) + head(encoder(inputs))), the head zero at first: the tower starts as the
    linear path alone, whatever the encoder is.
    """

    def __init__(
        self,
        inputs: nn.Module,
        encoder: nn.Module,
        dim: int,
        description: Mapping[str, Any],
        linear: LinearPath | None = None,
    ):
        super().__init__()
        self.inputs = inputs
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, dim, bias=False)
        self.linear = linear
        self.apart = False  # inside Binder.apart
        if linear is not None:
            nn.init.zeros_(self.head.weight)
        self.description = dict(description)  # what it takes to build the encoder again; "custom" if we cannot

    def forward(self, prepared: Tensor, features: Tensor | None = None) -> Tensor:
        """(n, ...) -> (n, dim), unit vectors in float32. `features`: (n, width), for towers with a linear path."""
        if self.linear is None:
            return unit(self.head(self.encoder(prepared)))
        assert features is not None
        given = self.linear.scaled(features) if isinstance(self.encoder, Residual) else prepared
        linear, learned = self.linear(features), self.head(self.encoder(given)).float()
        return torch.cat([linear, learned], -1) if self.apart else unit(linear + learned)

    def before_head(self, prepared: Tensor, features: Tensor | None = None) -> Tensor:
        """(n, ...) -> (n, width): what a head can use, the encoder's outputs and the features of a linear path."""
        if self.linear is None:
            return self.encoder(prepared)
        assert features is not None
        scaled = self.linear.scaled(features)
        return torch.cat([self.encoder(scaled if isinstance(self.encoder, Residual) else prepared).float(), scaled], -1)


class Binder(nn.Module):
    """Towers for any number of modalities; what `fit` returns, what `load` opens."""

    def __init__(self, towers: Mapping[str, Tower], dim: int, readings: Mapping[str, str] | None = None):
        super().__init__()
        # x_: a ModuleDict refuses keys such as "type" or "pop", which are fair names for a modality.
        self._towers = nn.ModuleDict({f"x_{name}": tower for name, tower in towers.items()})
        self.dim = dim
        self.readings = dict(readings or {})  # how files became values, where they did: a query has to be decoded alike
        self._fingerprint: tuple[object, str] | None = None  # of which weights it is, and what it is

    @property
    def towers(self) -> dict[str, Tower]:
        return {name.removeprefix("x_"): tower for name, tower in self._towers.items()}

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.towers)

    @property
    def kinds(self) -> dict[str, str]:
        return {name: tower.inputs.kind for name, tower in self.towers.items()}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def prepare(self, batch: Batch) -> Batch:
        """Stored values -> tensors on the binder's device, standardised or numbered; `present` stays where it is.

        The features of linear paths are taken from the batch if it has any.
        """
        towers, features = self.towers, batch.features
        if features is None:
            features = {name: towers[name].linear.read(batch.inputs[name]) for name in self.linear_paths(batch)}
        features = {name: values.to(self.device) for name, values in features.items()}
        prepared = {name: towers[name].inputs(values).to(self.device) for name, values in batch.inputs.items()}
        return replace(batch, inputs=prepared, features=features)

    def linear_paths(self, batch: Batch) -> list[str]:
        """The modalities of a batch whose towers have a linear path."""
        return [name for name in batch.modalities if self.towers[name].linear is not None]

    def forward(self, prepared: Batch) -> Embeddings:
        """A prepared batch -> its embeddings, zeros where a modality is missing."""
        rows, known = [], prepared.present.cpu().numpy()
        for name, here in zip(prepared.modalities, known):
            given, place = [prepared.inputs[name]], prepared.place and prepared.place[name]
            if self.towers[name].linear is not None:
                given.append((prepared.features or {})[name])
            count = len(given[0])
            if count == 0:  # a row of zeros stands in: attention refuses none, and divided towers need all their layers
                given = [values.new_zeros(1, *values.shape[1:]) for values in given]
                place = place and (min(place[0], max(place[1] - 1, 0)), max(place[1], 1))
            with placed(place):  # dropout draws for the whole batch
                z = self._towers[f"x_{name}"](*given)[:count]
            if not here.all():  # known in main memory: asking a GPU which rows there are would wait for it
                places = torch.from_numpy(np.flatnonzero(here)).to(z.device, non_blocking=True)
                z = z.new_zeros(len(here), z.shape[1]).index_copy(0, places, z)
            rows.append(z)
        present = prepared.present.to(rows[0].device, non_blocking=True)
        z = Embeddings(torch.stack(rows), present, prepared.modalities, prepared.ids)
        return z.knowing(complete=bool(known.all()))

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside, towers with a linear path return it and what was learned side by side: (n, 2 dim), of any length."""
        for tower in self.towers.values():
            tower.apart = tower.linear is not None
        try:
            yield
        finally:
            for tower in self.towers.values():
                tower.apart = False

    @torch.no_grad()
    def embed(
        self,
        data: Samples | Mapping[str, Any],
        *,
        present: Mapping[str, Any] | None = None,
        nan: Nan = "error",
        batch_size: int = 1024,
        device: str | None = None,
        each: Callable[[int], None] | None = None,
    ) -> Embeddings:
        """Embeddings of samples, or of a dict of arrays, in any subset of the binder's modalities.

        Gaps as in `Samples.of`. `device` moves the binder there first ("auto": a GPU if there is one); the embeddings
        are in main memory in any case. `each(n)` is called with the number of samples done. Raises DataError for a
        modality the binder does not know, values of another shape than in training, or embeddings that come out NaN or
        infinite; ConfigError for a device that is not there.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise DataError(f"batch_size: expected a whole number from 1 on, got {batch_size!r}")
        data = self._in_modalities(data, present, nan)
        if device is not None and (chosen := choose_device(device)) != self.device:
            self.to(chosen)
        z = torch.zeros(len(data.columns), len(data), self.dim)
        values = np.full((len(data.columns), len(data)), MISSING, np.int64)
        adapts = {name: adapted(name, self.towers[name].inputs, each) for name, each in data.columns.items()}
        was_training = self.training
        self.eval()
        try:
            for start in range(0, len(data), batch_size):
                rows = np.arange(start, min(start + batch_size, len(data)))
                batch = data.batch(rows)
                given = {
                    name: values if (adapt := adapts[name]) is None else adapt(values)
                    for name, values in batch.inputs.items()
                }
                batch = replace(batch, inputs=given)
                for row, name, here in zip(values, batch.modalities, batch.present.numpy()):
                    row[rows[here]] = digests(batch.inputs[name])
                z[:, rows] = self(self.prepare(batch)).z.float().cpu()
                if each is not None:
                    each(int(rows[-1]) + 1)
        finally:
            self.train(was_training)
        here, things = torch.from_numpy(data.present), same_things(data.group, values)
        embeddings = Embeddings(z, here, data.modalities, np.array(data.ids[:]), things, values)
        return embeddings.checked("the binder's embeddings")

    def _in_modalities(self, data: Samples | Mapping[str, Any], present: Mapping[str, Any] | None, nan: Nan) -> Samples:
        """What is handed in, as samples in the binder's modalities and their order."""
        if isinstance(data, Mapping):
            if unknown := [name for name in data if name not in self.towers]:
                raise DataError(f"the binder has no modality {unknown}, expected some of {list(self.modalities)}")
            data = Samples.of(
                data, present=present, kinds={name: self.kinds[name] for name in data}, nan=nan, exact=True
            )
        else:
            data = as_samples(data, present=present, nan=nan)
        names = [name for name in self.modalities if name in data.columns]
        if not names:
            known, got = list(self.modalities), list(data.modalities)
            raise DataError(f"none of {got} is a modality of the binder, expected some of {known}")
        return data.only(names)

    def describe(self) -> dict[str, Any]:
        """Everything but the weights, as JSON: enough to build the same binder again."""
        towers = {}
        for name, tower in self.towers.items():
            inputs = tower.inputs
            towers[name] = {"kind": inputs.kind, "shape": list(inputs.raw_shape), **tower.description}
            if isinstance(inputs, Words):
                towers[name]["words"] = inputs.words()
            if getattr(inputs, "seen", None):
                towers[name]["seen"] = inputs.seen
            if tower.linear is not None:
                towers[name]["linear"] = tower.linear.features.describe()
        return {"dim": self.dim, "towers": towers} | ({"readings": self.readings} if self.readings else {})

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any weight: embeddings of different binders must not be mixed.

        Computed once and kept until weights change, because hashing 27 million takes half a second. torch counts the
        changes of a tensor, but not those of fused optimizers, numpy and `.data`: a few numbers of each tensor are
        compared too. A single number changed in such a way is noticed after `train()` only.
        """
        weights = tuple(
            (value.data_ptr(), value._version, *value.detach().flatten()[:: value.numel() // 8 + 1].tolist())
            for value in self.state_dict(keep_vars=True).values()
        )
        if self._fingerprint is None or self._fingerprint[0] != weights:
            self._fingerprint = weights, self._digest()
        return self._fingerprint[1]

    def _digest(self) -> str:
        digest = hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy())
        return digest.hexdigest()[:16]

    def train(self, mode: bool = True) -> Self:
        if mode or self.training:  # embedding asks for eval() each time
            self._fingerprint = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # .to(), .double(), ...
        self._fingerprint = None
        return super()._apply(fn, recurse)


def build_binder(
    samples: Samples,
    *,
    dim: int = 64,
    encoders: Mapping[str, str | Mapping[str, Any] | nn.Module] | None = None,
    seed: int = 0,
    linear: Mapping[str, LinearPath] | None = None,
) -> Binder:
    """A binder with fresh weights for these samples, its inputs fitted to them.

    `linear`: what each tower is to start from (see Tower); its encoder is then by default one of the same features,
    and for pictures a convolutional one.

    `encoders[m]` is a name ("mlp"), a name with options ({"encoder": "mlp", "depth": 3}, or {"encoder": "hf", "model":
    "./folder", "train": True}) or an nn.Module with a `width`; the default follows the kind of the modality. Raises
    ConfigError or DataError.
    """
    if dim < 2:
        raise ConfigError(f"dim must be at least 2, got {dim}")
    if unknown := set(encoders or {}) - set(samples.columns):
        raise DataError(f"encoders= names {sorted(unknown)}, but the modalities are {list(samples.modalities)}")
    for name, column in samples.columns.items():
        if not column.present.any():
            raise DataError(f"modality {name!r} is missing from all {len(samples)} training samples; leave it out")
    towers = {}
    for number, (name, column) in enumerate(samples.columns.items()):
        inputs = INPUTS[column.kind](column.kind, column.shape)
        refuse_nonfinite(name, column, samples.ids)
        inputs.learn(column)
        path = None if linear is None else linear[name]
        with seeded(seed, number):
            towers[name] = _tower(name, inputs, (encoders or {}).get(name), dim, linear=path)
        if path is None:  # a linear path reads all of a text
            warn_of_long_texts(name, towers[name].inputs, column)
    return Binder(towers, dim, {name: column.reading for name, column in samples.columns.items() if column.reading})


def rebuild_binder(description: Mapping[str, Any], encoders: Mapping[str, nn.Module] | None = None) -> Binder:
    """A binder of the described shape, weights still to be loaded; custom encoders must be handed in again."""
    towers = {}
    for name, about in description["towers"].items():
        inputs = described_inputs(about)
        wanted = {key: value for key, value in about.items() if key not in ("kind", "shape", "words", "seen", "linear")}
        linear = None
        if "linear" in about:
            linear = LinearPath(rebuilt_features(about["linear"]), description["dim"])
        if wanted["encoder"] == "custom":
            wanted = (encoders or {}).get(name)
            if wanted is None:
                raise ConfigError(
                    f"modality {name!r} was trained with an encoder of your own; load with encoders={{{name!r}: ...}}"
                )
        towers[name] = _tower(name, inputs, wanted, description["dim"], linear=linear, weights=False)
    readings = {str(name): str(reading) for name, reading in description.get("readings", {}).items()}
    return Binder(towers, description["dim"], readings)


def _tower(
    name: str,
    inputs: nn.Module,
    wanted: str | Mapping[str, Any] | nn.Module | None,
    dim: int,
    *,
    linear: LinearPath | None = None,
    weights: bool = True,
) -> Tower:
    if isinstance(wanted, nn.Module):
        if not isinstance(getattr(wanted, "width", None), int):
            raise ConfigError(f"encoder of {name!r}: expected an int attribute `width`, the number of its outputs")
        return Tower(inputs, wanted, dim, {"encoder": "custom"}, linear)
    wanted = {"encoder": wanted} if isinstance(wanted, str) else dict(wanted or {})
    kind = wanted.pop("encoder", None) or default_encoder(inputs.kind, linear)
    if kind == "hf":
        if set(wanted) - {"model", "train"} or "model" not in wanted:
            raise ConfigError(f"encoder 'hf' of {name!r}: takes model, a folder or a name, and train; got {wanted}")
        made = pretrained_tower(inputs.kind, inputs.raw_shape, **wanted, weights=weights)
        return Tower(*made, dim, {"encoder": kind, **wanted}, linear)
    fitting = KIND_ENCODERS[inputs.kind]
    if kind not in fitting and kind != "residual":
        raise ConfigError(f"modality {name!r} is {inputs.kind}: expected an encoder of {list(fitting)}, got {kind!r}")
    make, shape = ENCODERS[kind], inputs.shape
    if make is Residual:
        if linear is None:
            raise ConfigError(f"encoder {kind!r} of {name!r} needs start: closed_form, whose features it reads")
        shape = (linear.width,)
    try:
        inspect.signature(make).bind(shape, **wanted)
    except TypeError as error:
        takes = list(inspect.signature(make).parameters)[1:]
        raise ConfigError(f"encoder {kind!r} of {name!r}: {error}; it takes {takes}") from None
    encoder = make(shape, **wanted)
    if isinstance(inputs, Words) and "longest" in wanted and (inputs.seen or wanted["longest"] < inputs.longest):
        inputs.longest = wanted["longest"]  # of earlier binders' texts 64 words were read, whatever the encoder holds
    return Tower(inputs, encoder, dim, {"encoder": kind, **wanted}, linear)


def default_encoder(kind: str, linear: LinearPath | None) -> str:
    """The name of the encoder that a modality gets when nobody asks for one."""
    return KIND_ENCODERS[kind][0] if linear is None or kind == "image" else "residual"
