"""Packages that are not always there: imported when first needed, and in one line said how to get them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from centrobind.errors import ExtraError


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
