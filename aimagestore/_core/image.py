"""What the store knows of one image."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

import msgspec

from . import gojson


class Image(msgspec.Struct, frozen=True, eq=False, order=False, gc=False):
    """One image's record, as it was when it was read. Immutable.

    Images come from a store; they are not made by hand. Two are equal when everything in them is,
    however it is spelled in images.json.

    :ivar id: the ID, which also names the image's directory
    :ivar digest: the digest given at creation, else that of its first manifest, else ``""``
    :ivar digests: every digest that it is found by: ``digest``, then those of its manifests
    :ivar names: its names, unique among images
    :ivar names_history: the names it has or had, the newest first
    :ivar top_layer: the ID of its topmost layer, or ``""``
    :ivar mapped_top_layers: versions of that layer with other ID mappings
    :ivar metadata: free text of the application
    :ivar big_data_names: the keys of its big-data items, in the order they were added
    :ivar big_data_sizes: key to size in bytes, where recorded
    :ivar big_data_digests: key to digest, where recorded
    :ivar created: when it was created, in UTC; ``None`` where that is not known
    """

    id: str
    digest: str
    digests: tuple[str, ...]
    names: tuple[str, ...]
    names_history: tuple[str, ...]
    top_layer: str
    mapped_top_layers: tuple[str, ...]
    metadata: str
    big_data_names: tuple[str, ...]
    big_data_sizes: Mapping[str, int]
    big_data_digests: Mapping[str, str]
    created: datetime | None
    _flags: Mapping[str, bytes]

    @property
    def flags(self) -> Mapping[str, Any]:
        """The flags: JSON values, made anew for each look, so changing one changes nothing."""
        return MappingProxyType({flag: gojson.loads(raw) for flag, raw in self._flags.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image):
            return NotImplemented
        mine, others = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return mine[:-1] == others[:-1] and (mine[-1] == others[-1] or self.flags == other.flags)

    def __ne__(self, other: object) -> bool:
        # The base class has one of its own, which would not ask the method above.
        return not self == other

    def __hash__(self) -> int:
        return hash((self.id, self.names, self.digests))

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (dict(f) if isinstance(f, Mapping) else f for f in msgspec.structs.astuple(self))
        return _rebuild, tuple(fields)


def _rebuild(*fields: Any) -> Image:
    """Make an image of what pickle has kept: it takes no proxies."""
    values: list[Any] = [MappingProxyType(f) if isinstance(f, dict) else f for f in fields]
    return Image(*values)
