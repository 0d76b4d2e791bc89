"""Where stores are: what callers give, as locations."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import msgspec

from .._core.addresses import is_address
from .._core.plain import PlainStruct
from .._directory.location import DirectoryLocation
from .._engine.protocol import Location


class AdditionalStore(msgspec.Struct, metaclass=PlainStruct, frozen=True, weakref=True):
    """A store that is read beside another one; see :class:`ImageStore`.

    :ivar where: the directory that holds its images.json, or its location
    :ivar required: whether opening fails if the store is missing or cannot be reached; otherwise
        the others are opened without it
    """

    where: str | os.PathLike[str] | Location
    required: bool = True


def location_of(where: str | os.PathLike[str] | Location) -> Location:
    """Return the location of a store.

    :raises TypeError: when it is neither a path nor a location
    :raises ValueError: when it is the address of a server, which the message does not repeat
        because it may contain a password
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
        raise TypeError(f"a store must be the path of a directory or a location, not {kind}")
    return where


def stacked_location(
    where: str | os.PathLike[str] | Location,
    additional: Iterable[str | os.PathLike[str] | Location | AdditionalStore],
) -> Location:
    """Return the location of a store with its additional stores.

    :raises TypeError: when one is neither a path nor a location
    :raises ValueError: when one is the address of a server
    """
    own = location_of(where)
    if isinstance(additional, str | bytes | os.PathLike) or not isinstance(additional, Iterable):
        raise TypeError(
            f"additional_stores must be an iterable of stores, not {type(additional).__name__}"
        )
    stores = [
        store if isinstance(store, AdditionalStore) else AdditionalStore(store)
        for store in additional
    ]
    if not stores:
        return own
    from .._stacked.location import AdditionalLocation, StackedLocation  # noqa: PLC0415 (rarely used)

    return StackedLocation(
        own, [AdditionalLocation(location_of(store.where), store.required) for store in stores]
    )
