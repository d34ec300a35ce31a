"""A function of the user's own, by `path/to/file.py:name`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from centrobind.errors import ConfigError


def own_function(place: str, *, called: str) -> Callable[..., Any]:
    """The function at `path/to/file.py:name`; ConfigError, which begins with `called`, if there is none."""
    path, _, name = place.rpartition(":")
    spec = importlib.util.spec_from_file_location("centrobind_own_code", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ConfigError(f"{called}: no Python file {path!r}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(f"{called}: {path} has no function {name!r}")
    return found
