"""An image, as the public API shows it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

import msgspec

from .._format import gojson
from .plain import PlainStruct


class Image(msgspec.Struct, metaclass=PlainStruct, frozen=True, eq=False, order=False, gc=False):
    """One image's record, as it was when it was read. Immutable.

    Images come from a store; they are not made by hand. Two images are equal when all of their
    attributes are, however their records are spelled in images.json.

    :ivar id: the ID, which also names the image's directory
    :ivar digest: the digest given at creation, else that of its first manifest, else ``""``
    :ivar digests: all digests by which it is found: ``digest``, then those of its manifests
    :ivar names: its names, unique among images
    :ivar names_history: the names that it has or had, the newest first
    :ivar top_layer: the ID of its topmost layer, or ``""``
    :ivar mapped_top_layers: versions of that layer with other ID mappings
    :ivar metadata: free text of the application
    :ivar big_data_names: the keys of its big-data items, in the order in which they were added
    :ivar created: when it was created, in UTC; ``None`` when that is not known
    :ivar read_only: whether it comes from an additional store
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
    # Dicts, and proxies on access only: the garbage collector, which stops all threads, traverses
    # proxies, but no dicts of texts and numbers.
    _big_data_sizes: dict[str, int]
    _big_data_digests: dict[str, str]
    created: datetime | None
    _flags: dict[str, bytes]
    read_only: bool = False

    @property
    def big_data_sizes(self) -> Mapping[str, int]:
        """Key to size in bytes, where recorded."""
        return MappingProxyType(self._big_data_sizes)

    @property
    def big_data_digests(self) -> Mapping[str, str]:
        """Key to digest, where recorded."""
        return MappingProxyType(self._big_data_digests)

    @property
    def flags(self) -> Mapping[str, Any]:
        """The flags: JSON values, decoded on each access, so changing one changes no image."""
        return MappingProxyType({f: msgspec.json.decode(raw) for f, raw in self._flags.items()})

    @property
    def size(self) -> int:
        """The sum of its items' recorded sizes, in bytes."""
        return sum(self._big_data_sizes.values())

    def to_dict(self) -> dict[str, Any]:
        """Return everything about the image as a new ``dict`` that ``json.dumps`` can write.

        The keys are the names of the attributes, ``size`` and ``read_only`` included. Sequences
        are lists, mappings are dicts, and ``created`` is RFC 3339 text in UTC or ``None``.
        """
        return {
            "id": self.id,
            "names": list(self.names),
            "names_history": list(self.names_history),
            "digest": self.digest,
            "digests": list(self.digests),
            "created": None if self.created is None else gojson.time(self.created),
            "size": self.size,
            "top_layer": self.top_layer,
            "mapped_top_layers": list(self.mapped_top_layers),
            "metadata": self.metadata,
            "flags": dict(self.flags),
            "big_data_names": list(self.big_data_names),
            "big_data_sizes": dict(self.big_data_sizes),
            "big_data_digests": dict(self.big_data_digests),
            "read_only": self.read_only,
        }

    def __repr__(self) -> str:
        names = (name.removeprefix("_") for name in self.__struct_fields__)
        values = ((name, getattr(self, name)) for name in names)
        plain = ((n, dict(v) if isinstance(v, Mapping) else v) for n, v in values)
        return f"Image({', '.join(f'{name}={value!r}' for name, value in plain)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image):
            return NotImplemented
        *mine, my_flags, mine_only = msgspec.structs.astuple(self)
        *others, other_flags, others_only = msgspec.structs.astuple(other)
        is_same = mine == others and mine_only == others_only
        return is_same and (my_flags == other_flags or self.flags == other.flags)

    def __ne__(self, other: object) -> bool:
        # The one of the base class does not use the method above.
        return not self == other

    def __hash__(self) -> int:
        return hash((self.id, self.names, self.digests))
