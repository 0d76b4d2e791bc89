"""An image, as the public API shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

import msgspec
from msgspec import Raw

from .._format import gojson
from .digest import MANIFEST, is_digest
from .fields import FlatFields, ImageFields
from .plain import PlainStruct

_decode: Final = msgspec.json.Decoder(ImageFields).decode
_decode_elements: Final = msgspec.json.Decoder(list[Raw]).decode

_ATTRIBUTES: Final = (
    "id",
    "digest",
    "digests",
    "names",
    "names_history",
    "top_layer",
    "mapped_top_layers",
    "metadata",
    "big_data_names",
    "big_data_sizes",
    "big_data_digests",
    "created",
    "flags",
    "read_only",
)


class _Elements(msgspec.Struct, gc=False):
    """An array of elements of images.json, which is split when one of them is looked at."""

    array: bytes
    _elements: list[Raw] | None = None

    def __getitem__(self, index: int) -> Raw:
        elements = self._elements
        if elements is None:
            elements = self._elements = _decode_elements(self.array)
        return elements[index]


class _Summary(msgspec.Struct, frozen=True, eq=False, order=False, gc=False):
    """The attributes that a list of images shows.

    :ivar elements: what has the record's element; ``None`` if everything in that was decoded
    :ivar index: where it is in there
    """

    top_layer: str
    mapped_top_layers: tuple[str, ...]
    created: datetime | None
    size: int
    elements: _Elements | None
    index: int


class _Details(_Summary, frozen=True, eq=False, order=False, gc=False):
    """The attributes of an image that are decoded when one of them is first looked at."""

    digest: str
    digests: tuple[str, ...]
    names_history: tuple[str, ...]
    metadata: str
    big_data_names: tuple[str, ...]
    # Dicts, and proxies on access only: the garbage collector, which stops all threads, traverses
    # proxies, but no dicts of texts and numbers.
    big_data_sizes: dict[str, int]
    big_data_digests: dict[str, str]
    flags: dict[str, bytes]


class Image(msgspec.Struct, metaclass=PlainStruct, frozen=True, eq=False, order=False, gc=False):
    """One image's record, as it was when it was read. Immutable.

    Images come from a store; they are not made by hand. Two images are equal when all of their
    attributes are, however their records are spelled in images.json.

    :ivar id: the ID, which also names the image's directory
    :ivar names: its names, unique among images
    :ivar read_only: whether it comes from an additional store
    """

    id: str
    names: tuple[str, ...]
    read_only: bool
    # Its record's element of images.json, until an attribute that is in there is looked at: most
    # callers of a change do not look, and decoding takes longer than the rest of it.
    _content: Raw | bytes | _Summary
    # Known without decoding that, or ``None``.
    _digests: tuple[str, ...] | None

    @property
    def _details(self) -> _Details:
        content = self._content
        if not isinstance(content, _Details):
            if isinstance(content, _Summary):
                assert content.elements is not None, "the details are not decoded yet"
                text: Raw | bytes = content.elements[content.index]
            else:
                text = content
            content = _details_of(_decode(text), self.names, self._digests)
            msgspec.structs.force_setattr(self, "_content", content)
        return content

    @property
    def digest(self) -> str:
        """The digest given at creation, else that of its first manifest, else ``""``."""
        return self._details.digest

    @property
    def digests(self) -> tuple[str, ...]:
        """All digests by which it is found: ``digest``, then those of its manifests."""
        return self._details.digests if self._digests is None else self._digests

    @property
    def names_history(self) -> tuple[str, ...]:
        """The names that it has or had, the newest first."""
        return self._details.names_history

    @property
    def top_layer(self) -> str:
        """The ID of its topmost layer, or ``""``."""
        content = self._content
        return (content if isinstance(content, _Summary) else self._details).top_layer

    @property
    def mapped_top_layers(self) -> tuple[str, ...]:
        """Versions of that layer with other ID mappings."""
        content = self._content
        return (content if isinstance(content, _Summary) else self._details).mapped_top_layers

    @property
    def metadata(self) -> str:
        """Free text of the application."""
        return self._details.metadata

    @property
    def big_data_names(self) -> tuple[str, ...]:
        """The keys of its big-data items, in the order in which they were added."""
        return self._details.big_data_names

    @property
    def big_data_sizes(self) -> Mapping[str, int]:
        """Key to size in bytes, where recorded."""
        return MappingProxyType(self._details.big_data_sizes)

    @property
    def big_data_digests(self) -> Mapping[str, str]:
        """Key to digest, where recorded."""
        return MappingProxyType(self._details.big_data_digests)

    @property
    def created(self) -> datetime | None:
        """When it was created, in UTC; ``None`` when that is not known."""
        content = self._content
        return (content if isinstance(content, _Summary) else self._details).created

    @property
    def flags(self) -> Mapping[str, Any]:
        """The flags: JSON values, decoded on each access, so changing one changes no image."""
        flags = self._details.flags
        return MappingProxyType({f: msgspec.json.decode(raw) for f, raw in flags.items()})

    @property
    def size(self) -> int:
        """The sum of its items' recorded sizes, in bytes."""
        content = self._content
        return (content if isinstance(content, _Summary) else self._details).size

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
        values = ((name, getattr(self, name)) for name in _ATTRIBUTES)
        plain = ((n, dict(v) if isinstance(v, Mapping) else v) for n, v in values)
        return f"Image({', '.join(f'{name}={value!r}' for name, value in plain)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image):
            return NotImplemented
        *mine, my_flags = self._values()
        *others, other_flags = other._values()
        return mine == others and (my_flags == other_flags or self.flags == other.flags)

    def __ne__(self, other: object) -> bool:
        # The one of the base class does not use the method above.
        return not self == other

    def __reduce__(self) -> tuple[type[Image], tuple[Any, ...]]:
        # Without the elements beside its own, which are other images' records.
        return Image, (self.id, self.names, self.read_only, self._details, self.digests)

    def __hash__(self) -> int:
        return hash((self.id, self.names, self.digests))

    def _values(self) -> tuple[Any, ...]:
        values: tuple[Any, ...] = msgspec.structs.astuple(self._details)
        return (self.id, self.names, self.read_only, *values)


def images_of(array: bytes, found: Sequence[FlatFields]) -> list[Image]:
    """Return the images of records that were decoded.

    What few callers look at is left to be decoded again: keeping it all would take longer than
    decoding it did.

    :param array: the array of their elements
    :raises ValueError: Go would refuse the time of a creation
    """
    elements = _Elements(array)
    return [
        Image(
            fields.id,
            tuple(fields.names) if fields.names else (),
            False,
            _Summary(*_summary_of(fields, created), elements, index),
            None,
        )
        for index, (fields, created) in enumerate(zip(found, _times_of(found), strict=True))
    ]


def _times_of(found: Sequence[FlatFields]) -> list[datetime | None]:
    texts = [fields.created for fields in found]
    usual = [text for text in texts if text is not None and gojson.is_usual_time(text)]
    if len(usual) == len(texts):
        return list(map(datetime.fromisoformat, usual))
    return [None if text is None else gojson.parse_time(text) for text in texts]


def digests_of(fields: FlatFields) -> tuple[str, ...]:
    """Return the image's digest, then those of its manifests, without malformed ones."""
    digest = fields.digest
    known = {digest: None} if digest and is_digest(digest) else {}
    recorded = fields.big_data_digests
    if recorded:
        for key in fields.big_data_names or ():
            if key.startswith(MANIFEST):
                found = recorded.get(key, "")
                if found not in known and is_digest(found):
                    known[found] = None
    return tuple(known)


def _summary_of(
    fields: FlatFields, created: datetime | None
) -> tuple[str, tuple[str, ...], datetime | None, int]:
    return (
        fields.layer or "",
        tuple(fields.mapped_layers) if fields.mapped_layers else (),
        created,
        sum(fields.big_data_sizes.values()) if fields.big_data_sizes else 0,
    )


_NO_FLAGS: Final[dict[str, bytes]] = {}


def _details_of(
    fields: ImageFields, names: tuple[str, ...], digests: tuple[str, ...] | None
) -> _Details:
    flags = fields.flags or {}
    found_by = digests_of(fields) if digests is None else digests
    # The decoder makes a new string each time, and most of them occur in a record three times.
    share = {text: text for text in (*names, *found_by)}.setdefault
    digest = fields.digest or next(iter(found_by), "")
    keys = [share(key, key) for key in fields.big_data_names or ()]
    sizes = {share(key, key): size for key, size in (fields.big_data_sizes or {}).items()}
    recorded = {share(k, k): share(d, d) for k, d in (fields.big_data_digests or {}).items()}
    return _Details(
        *_summary_of(fields, *_times_of([fields])),
        None,
        0,
        share(digest, digest),
        found_by,
        tuple([share(name, name) for name in fields.names_history or ()]),
        fields.metadata or "",
        tuple(keys),
        sizes,
        recorded,
        {k: bytes(raw) for k, raw in flags.items()} if flags else _NO_FLAGS,
    )
