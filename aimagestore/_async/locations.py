"""Where a store is, as its users say it."""

from __future__ import annotations

import os
from typing import Any

from .._directory.location import DirectoryLocation
from .._engine.protocol import Location


def location_of(where: str | os.PathLike[str] | Location) -> Location:
    """Return the location of a store.

    :raises TypeError: when it is neither a path nor a location
    """
    if isinstance(where, str | os.PathLike):
        return DirectoryLocation(where)
    if isinstance(where, type) or not all(
        hasattr(where, name) for name in ("open", "checker", "repairer", "name")
    ):
        kind: Any = type(where).__name__
        raise TypeError(f"a store is a directory's path or a location, not {kind}")
    return where
