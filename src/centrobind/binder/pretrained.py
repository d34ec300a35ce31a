"""Any transformers model as an encoder: by a local folder or its name on the hub, for text, images or waves.

Frozen and run once over a store (features.py), or a tower of a binder that is trained on. Needs neither torchvision nor
torchaudio. Nothing that a model's folder brings along as code is run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from centrobind.data import Column
from centrobind.data.sound import RATE, resampled
from centrobind.errors import ConfigError, DataError, ExtraError
from centrobind.extras import extra

PROCESSORS = {"text": "AutoTokenizer", "image": "AutoImageProcessor", "wave": "AutoFeatureExtractor"}
PROJECTIONS = {"text": "get_text_features", "image": "get_image_features", "wave": "get_audio_features"}
LONGEST = 512  # tokens of a text, where the tokenizer does not say


class Pretrained(nn.Module):
    """A transformers model that turns texts, images or waves into (n, width) features.

    Of a model with two towers, such as CLIP, the projection of the one that fits; of an encoder and a decoder, the
    encoder; else the mean of the last layer over tokens, patches or time. Always in eval mode, in training too: no
    dropout, fixed statistics, so that samples of a batch do not see each other. `weights=False` leaves them random.
    Raises ExtraError where transformers is missing or broken, ConfigError for a model that cannot be opened.
    """

    def __init__(self, model: str, kind: str, *, weights: bool = True):
        super().__init__()
        if kind not in PROCESSORS:
            raise ConfigError(f"hf:{model}: reads {', '.join(PROCESSORS)}, and this modality is {kind}")
        self.name, self.kind = model, kind
        self.processor = _opened(model, PROCESSORS[kind])
        whole = _opened(model, "AutoModel", weights=weights)
        self.projection = PROJECTIONS[kind] if hasattr(whole, PROJECTIONS[kind]) else None
        encoder = whole.config.is_encoder_decoder and self.projection is None
        self.model = (whole.get_encoder() if encoder else whole).float().eval()
        self.width = _width(whole.config, self.projection is not None)

    def train(self, mode: bool = True) -> Pretrained:
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def extract(self, values: Any) -> Tensor:
        """Values as a store holds them, list[str] or (n, ...) -> (n, width), without gradient."""
        return self(**{name: value.to(self.model.device) for name, value in self.prepare(values).items()})

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of what the processor makes of a picture."""
        return tuple(self.prepare(np.zeros((1, 8, 8, 3), np.uint8))["pixel_values"].shape[2:])

    def prepare(self, values: Any) -> dict[str, Tensor]:
        """What the model's own tokenizer or processor makes of them."""
        if self.kind == "text":
            longest = min(self.processor.model_max_length, LONGEST)
            if self.processor.pad_token is None:  # decoders have none; what is put there is not looked at
                self.processor.pad_token = self.processor.eos_token
            return dict(
                self.processor(list(values), padding=True, truncation=True, max_length=longest, return_tensors="pt")
            )
        if self.kind == "image":
            return dict(self.processor(images=[_rgb(image) for image in values], return_tensors="pt"))
        rate = self.processor.sampling_rate
        waves = [resampled(wave, RATE, to=rate) for wave in np.asarray(values, np.float32)]
        return dict(self.processor(waves, sampling_rate=rate, return_tensors="pt"))

    def forward(self, **inputs: Tensor) -> Tensor:
        """Prepared values -> (n, width), with gradient."""
        if self.projection is not None:
            out = getattr(self.model, self.projection)(**inputs)
            return out if isinstance(out, Tensor) else out.pooler_output
        hidden = self.model(**inputs).last_hidden_state
        if hidden.ndim == 4:  # (n, channels, height, width), of a convolutional model
            return hidden.mean((2, 3))
        there = inputs.get("attention_mask")
        if there is None or there.shape != hidden.shape[:2]:  # a wave's mask counts samples, not frames
            return hidden.mean(1)
        return (hidden * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp(min=1)


class PretrainedInputs(nn.Module):
    """Stored texts or images -> one tensor: token numbers plus one (0 = nothing there), or the processor's pixels."""

    def __init__(self, body: Pretrained, raw_shape: tuple[int, ...]):
        super().__init__()
        self.kind, self.raw_shape = body.kind, tuple(raw_shape)
        self.prepare = body.prepare
        self.shape = (len(body.processor) + 1,) if body.kind == "text" else (3, *body.image_size)

    def learn(self, column: Column) -> None:
        """Nothing: the model knows its inputs."""

    def forward(self, values: Any) -> Tensor:
        if len(values) == 0:
            return torch.zeros(0, 1, dtype=torch.long) if self.kind == "text" else torch.zeros(0, *self.shape)
        if self.kind == "text":
            found = self.prepare(values)
            return (found["input_ids"] + 1) * found["attention_mask"]
        if values.shape[1:] != self.raw_shape:
            raise DataError(f"expected samples of shape {self.raw_shape}, as in training, got {values.shape[1:]}")
        return self.prepare(values)["pixel_values"]


class PretrainedEncoder(nn.Module):
    """A pretrained model in a tower. Frozen unless `train`: then its weights learn at a hundredth of the rate.

    The rate that suits fresh layers would undo within a few steps what the model knows.
    """

    def __init__(self, body: Pretrained, *, train: bool = False):
        super().__init__()
        self.body, self.width = body, body.width
        for value in body.parameters():
            value.requires_grad_(train)
            value.lr_scale = 0.01

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 0:
            return x.new_zeros(0, self.width, dtype=torch.float32)
        if self.body.kind == "image":
            return self.body(pixel_values=x)
        return self.body(input_ids=(x - 1).clamp(min=0), attention_mask=(x > 0).long())


def pretrained_tower(
    kind: str, raw_shape: tuple[int, ...], model: str, *, train: bool = False, weights: bool = True
) -> tuple[PretrainedInputs, PretrainedEncoder]:
    """Inputs and encoder of a tower around a transformers model, for texts or images; errors as for `Pretrained`."""
    if kind not in ("text", "image"):
        raise ConfigError(
            f"hf:{model}: a tower reads text or images, not {kind}; make features of waves, see featurize"
        )
    body = Pretrained(model, kind, weights=weights)
    return PretrainedInputs(body, raw_shape), PretrainedEncoder(body, train=train)


def _rgb(image: np.ndarray) -> np.ndarray:
    """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8 -> (H, W, 3)."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,), (4,)):
        raise DataError(f"expected uint8 pictures (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {image.shape}")
    image = image[..., None] if image.ndim == 2 else image
    if image.shape[2] == 4:  # white where it is transparent, as decode_image has it
        alpha = image[..., 3:].astype(np.float32) / 255
        image = (image[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def _width(config: Any, projected: bool) -> int:
    names = ["projection_dim"] if projected else ["hidden_size", "d_model", "hidden_sizes", "embed_dim"]
    for name in names:
        found = getattr(config, name, None)
        if found is not None:
            return found[-1] if isinstance(found, list | tuple) else found
    raise ConfigError(f"{type(config).__name__} does not say how wide its features are, by any of {names}")


def _opened(model: str, auto: str, *, weights: bool = True) -> Any:
    """A part of a model, from a folder or from the hub."""
    check_vision()
    transformers = extra("transformers", of="hf", to=f"the model hf:{model}")
    local = Path(model).expanduser().is_dir()
    where = str(Path(model).expanduser()) if local else model
    if not local and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise ConfigError(f"hf:{model}: no such folder")
    try:
        with _quiet(transformers):
            if not weights:
                config = transformers.AutoConfig.from_pretrained(where, local_files_only=local)
                return transformers.AutoModel.from_config(config)
            return getattr(transformers, auto).from_pretrained(where, local_files_only=local)
    except ImportError as error:
        raise ExtraError(f"hf:{model} needs a package that is not there ({_short(error)})") from None
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        what = "" if local else ", and no such folder: without a net a model is opened from where it was saved"
        raise ConfigError(f"hf:{model}: {auto} cannot open it{what} ({_short(error)})") from None


def check_vision() -> None:
    """ExtraError if there is a torchvision that cannot be imported: transformers fails beside it, for text as well."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # its operators are registered with another torch: any error there is
        raise ExtraError(
            f"torchvision is installed but broken ({_short(error)}), and transformers cannot work beside it: "
            "pip uninstall torchvision (it is not needed here)"
        ) from None


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without its bars and remarks: a missing pooler, which is not used, is no news."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _short(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
