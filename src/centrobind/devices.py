"""Where to compute: the device that is asked for, or the best there is."""

from __future__ import annotations

import torch
from torch import Tensor

from centrobind.distributed import team
from centrobind.errors import ConfigError


def choose_device(name: str = "auto") -> torch.device:
    """Where to compute: "auto" is a GPU of this rank's own, else Apple's MPS where it can do it, else the CPU.

    ConfigError for a device that is not there, or that is not this rank's.
    """
    alone, own = team().size == 1, team().device
    here = [*dict.fromkeys([own.type, *(["mps"] if _mps_works() else []), "cpu"])] if alone else [own.type]
    if name == "auto":
        return torch.device("mps") if own.type == "cpu" and "mps" in here else own
    kind, _, number = name.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if kind not in here or (number and not (number.isdecimal() and int(number) < count)):
        raise ConfigError(f"device: expected auto or one that is there ({', '.join(here)}), got {name!r}")
    return torch.device(name) if alone else own


def moved(values: Tensor, device: torch.device) -> Tensor:
    """These values on the device. To a GPU they go as they are stored, from pinned memory: the copy runs beside what
    the GPU is doing, instead of waiting for it."""
    if values.device == device:
        return values
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.contiguous().pin_memory().to(device, non_blocking=True)


def _mps_works() -> bool:
    """Losses are summed in float64, which MPS has not had so far."""
    if not torch.backends.mps.is_available():
        return False
    try:
        torch.zeros(1, dtype=torch.float64, device="mps")
    except (TypeError, RuntimeError):
        return False
    return True
