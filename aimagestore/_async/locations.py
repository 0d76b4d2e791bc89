"""Where a store is, as its users say it."""

from __future__ import annotations

import os
from typing import Any

from .._core.addresses import is_address
from .._directory.location import DirectoryLocation
from .._engine.protocol import Location


def location_of(where: str | os.PathLike[str] | Location) -> Location:
    """Return the location of a store.

    :raises TypeError: when it is neither a path nor a location
    :raises ValueError: when it is the address of a server; the message does not repeat it, because
        it may contain a password
    """
    if isinstance(where, str | os.PathLike):
        location = DirectoryLocation(where)
        if is_address(location.name):
            raise ValueError(
                "this is the address of a server, not the path of a directory: give "
                "aimagestore.cluster.ClusterLocation(records_url, blobs_url) for a store in "
                "PostgreSQL and S3, or begin the path with ./"
            )
        return location
    if isinstance(where, type) or not all(
        hasattr(where, name) for name in ("open", "checker", "repairer", "name")
    ):
        kind: Any = type(where).__name__
        raise TypeError(f"a store is a directory's path or a location, not {kind}")
    return where
