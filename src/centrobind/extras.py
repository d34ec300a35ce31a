"""Code from outside: optional packages, imported when first needed, and functions from a user's own file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from centrobind.errors import ConfigError, ExtraError


def extra(module: str, *, of: str, to: str) -> Any:
    """A module of the extra `of`, needed `to` do something; ExtraError with the pip command if there is none."""
    try:
        return import_module(module)
    except ImportError as error:
        if error.name == module.partition(".")[0]:
            raise ExtraError(f"{to} needs {error.name}: pip install 'centrobind[{of}]'") from None
        raise ExtraError(_broken(module, of, to, error)) from None
    except (OSError, RuntimeError) as error:  # a package that is there without its library, or beside another torch
        raise ExtraError(_broken(module, of, to, error)) from None


def _broken(module: str, of: str, to: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:150]
    return f"{to} needs {module}, which is there but broken ({said}): pip install --force-reinstall 'centrobind[{of}]'"


def own_function(place: str, *, called: str) -> Callable[..., Any]:
    """The function at `path/to/file.py:name`; ConfigError, which begins with `called`, if there is none."""
    path, _, name = place.rpartition(":")
    spec = importlib.util.spec_from_file_location("centrobind_own_code", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ConfigError(f"{called}: no Python file {path!r}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{called}: {path} has no function {name!r}")
    return function
