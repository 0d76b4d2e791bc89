"""Errors that several tasks raise."""

from __future__ import annotations

import copy
from typing import TypeVar

E = TypeVar("E", bound=BaseException)


def copied(error: E) -> E:
    """Return a copy of an error for one more task: a shared one would collect all tracebacks."""
    try:
        copied = copy.copy(error)
    except Exception:  # noqa: BLE001 (its constructor takes other arguments than it keeps)
        return error
    copied.__cause__, copied.__suppress_context__ = error.__cause__, error.__suppress_context__
    copied.__context__ = error.__context__
    copied.__traceback__ = error.__traceback__
    if hasattr(error, "__notes__"):
        copied.__notes__ = list(error.__notes__)
    return copied
