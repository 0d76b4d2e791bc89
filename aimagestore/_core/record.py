"""A record: one element of images.json, with its spelling."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from .._format import gojson
from .fields import Fields, Int64, KnownFields, KnownFlatFields, fold
from .image import Image, digests_of, images_of
from .names import are_ids, is_id


class _Items(msgspec.Struct, rename="kebab"):
    """The sizes and digests of an image's items."""

    big_data_sizes: dict[str, Int64] | None = None
    big_data_digests: dict[str, str] | None = None


class _Sizes(msgspec.Struct, rename="kebab"):
    """The sizes of an image's items."""

    big_data_sizes: dict[str, Int64] | None = None


_ORDER: Final = Fields.__struct_encode_fields__
_decode_known: Final = msgspec.json.Decoder(KnownFields).decode
_decode_any: Final = msgspec.json.Decoder(Fields).decode
_decode_items: Final = msgspec.json.Decoder(_Items).decode
_decode_flat: Final = msgspec.json.Decoder(KnownFlatFields).decode
_decode_flat_elements: Final = msgspec.json.Decoder(list[KnownFlatFields]).decode
_decode_elements: Final = msgspec.json.Decoder(list[Raw]).decode
_decode_sizes: Final = msgspec.json.Decoder(_Sizes).decode
_decode_members: Final = msgspec.json.Decoder(dict[str, Raw] | None).decode

RawJSON = Raw | bytes

NO_BLOCK: Final = -1
"""The ``block_id`` of a record that is not in a block."""

_GO_DEPTH: Final = 9_999

MAX_DEPTH: Final = _GO_DEPTH if sys.version_info >= (3, 12) else 500
"""The levels to which a record may nest; one that nests deeper is damaged.

Go reads 10,000 levels, of which one is the array around the records. Before Python 3.12, the
decoder's recursion limit is the interpreter's, shared with the callers.
"""

# Each level takes an opening and a closing bracket.
_SHORTEST_TOO_DEEP_FOR_GO: Final = 2 * (_GO_DEPTH + 1)


# An image keeps the array that it was decoded from. That of an index that is not compact is all of
# the index.
_LONGEST_SHARED: Final = 512 * 1024


class Record(msgspec.Struct, gc=False, eq=False):
    """One image's record: its spelling, and what it is found by. Immutable.

    The garbage collector ignores records: they are in no reference cycles, and traversing a large
    index would block every thread.

    :ivar raw: the element as it is spelled in images.json
    :ivar block_id: the ID of the block that holds it, or ``NO_BLOCK``
    :ivar read_only: whether it is seen in an additional store
    """

    raw: RawJSON
    block_id: int
    id: str
    names: tuple[str, ...]
    digests: tuple[str, ...]
    _image: Image | None = None
    read_only: bool = False

    @property
    def image(self) -> Image:
        """The image, made on the first access."""
        image = self._image
        if image is None:
            # A copy of the text: the image may outlive the block of which the text is a part.
            image = self._image = self._make_image(bytes(self.raw))
        return image

    def listed_image(self) -> Image:
        """Return the image as one of many, without keeping it for the next call.

        Until it is looked at, the image shares the text of the record, and so keeps its block in
        memory. Copying the text of all images would take as much memory as the index.
        """
        return self._image or self._make_image(self.raw)

    def _make_image(self, text: RawJSON) -> Image:
        return Image(self.id, self.names, self.read_only, text, self.digests)

    @property
    def size(self) -> int:
        """The sum of its items' recorded sizes in bytes, found without decoding the image."""
        return sum((_decode_sizes(self.raw).big_data_sizes or {}).values())

    def keys_with_digest(self, digest: str, size: int | None) -> Iterator[str]:
        """Iterate over the keys of the items with a digest, found without decoding the image.

        :param size: their recorded size in bytes; ``None`` for any
        """
        if digest.encode() not in bytes(self.raw):
            return
        items = _decode_items(self.raw)
        sizes = items.big_data_sizes or {}
        for key, found in (items.big_data_digests or {}).items():
            if found == digest and (size is None or sizes.get(key) == size):
                yield key

    def in_block(self, block_id: int) -> Record:
        """Return the same record in another block."""
        if block_id == self.block_id:
            return self
        moved = Record(self.raw, block_id, self.id, self.names, self.digests)
        moved._image = self._image
        return moved

    def as_read_only(self) -> Record:
        """Return the same record as one that is seen in an additional store."""
        return Record(self.raw, NO_BLOCK, self.id, self.names, self.digests, None, read_only=True)

    def as_own(self) -> Record:
        """Return the same record as one of the store itself."""
        if not self.read_only:
            return self
        return Record(self.raw, NO_BLOCK, self.id, self.names, self.digests)


def read(raw: RawJSON, block_id: int = NO_BLOCK) -> Record | None:
    """Read an element of images.json; ``None`` when it is damaged."""
    try:
        fields: Fields = _decode_known(raw)
        may_nest = bool(fields.flags)
    except msgspec.ValidationError:
        unusual = _read_unusual(bytes(raw))
        if unusual is None:
            return None
        fields = unusual
        may_nest = True
    except (ValueError, RecursionError):
        return None
    # Flags that a second field of this name hides may nest as well. Go reads them too.
    may_nest = may_nest or len(raw) >= _SHORTEST_TOO_DEEP_FOR_GO
    if may_nest and gojson.nests_deeper(bytes(raw), MAX_DEPTH):
        return None
    try:
        if fields.created is not None and not gojson.is_usual_time(fields.created):
            gojson.parse_time(fields.created)
    except ValueError:
        return None
    if not is_id(fields.id) or (fields.flags and not gojson.fits_go(fields.flags)):
        return None
    return Record(raw, block_id, fields.id, tuple(fields.names or ()), digests_of(fields))


def read_images(array: bytes) -> list[Image]:
    """Read an array of elements of images.json as images, without those that are damaged.

    Faster than :func:`read` and then ``image``, which decode each element twice.

    :raises ValueError: it is not an array
    """
    if len(array) <= _LONGEST_SHARED:
        with suppress(ValueError):
            found = _decode_flat_elements(array)
            if are_ids([fields.id for fields in found]):
                return images_of(array, found)
    images = map(_read_image, _decode_elements(array))
    return [image for image in images if image is not None]


def _read_image(raw: RawJSON) -> Image | None:
    with suppress(ValueError):
        fields = _decode_flat(raw)
        if is_id(fields.id):
            return images_of(b"[%b]" % bytes(raw), [fields])[0]
    record = read(raw)
    return None if record is None else record.image


def _read_unusual(raw: bytes) -> Fields | None:
    """Read a record that has unknown fields, or known ones of the wrong type."""
    try:
        raw.decode()
        if any(_shadows_known_field(name) for name in _decode_members(raw) or ()):
            return None
        return _decode_any(raw)
    except (ValueError, RecursionError):
        return None


def _shadows_known_field(name: str) -> bool:
    """Return whether Go takes this name for another spelling of a known field."""
    return name not in _ORDER and fold(name) in _ORDER


# The members of an element with known fields only, with their spelling, in Go's order.
_Members: Final = msgspec.defstruct(
    "_Members",
    [(field, Raw | UnsetType, UNSET) for field in Fields.__struct_fields__],
    rename="kebab",
    forbid_unknown_fields=True,
    gc=False,
)
_ATTRIBUTES: Final = dict(zip(_ORDER, Fields.__struct_fields__, strict=True))
_decode_usual: Final = msgspec.json.Decoder(_Members).decode
_encode: Final = msgspec.json.Encoder().encode

# The fields that decide by which digests a record is found.
_DIGEST_FIELDS: Final = frozenset({"digest", "big-data-names", "big-data-digests"})


class RecordDraft:
    """A record that is being changed or made. Fields that are not set keep their spelling.

    :param record: the record to change, whose ID stays; ``None`` for a new one
    """

    __slots__ = ("_keeps_digests", "_members", "_names", "_record", "_unknown")

    def __init__(self, record: Record | None = None) -> None:
        self._record = record
        self._unknown: dict[str, Raw] = {}
        self._names: tuple[str, ...] = () if record is None else record.names
        # A record that keeps its ID and its digests need not be read again.
        self._keeps_digests = record is not None
        self._members: Any = _Members() if record is None else self._read_members(record.raw)
        if record is not None and record.digests and not self._has_digest():
            # The digest of an image stays when its manifests change.
            self.set("digest", record.digests[0])

    def _read_members(self, raw: RawJSON) -> Any:
        try:
            return _decode_usual(raw)
        except msgspec.ValidationError:  # there are unknown fields
            self._unknown = _decode_members(raw)
            known = [field for field in _ORDER if field in self._unknown]
            return _Members(**{_ATTRIBUTES[field]: self._unknown.pop(field) for field in known})

    def _has_digest(self) -> bool:
        digest = self._members.digest
        return digest is not UNSET and bytes(digest) not in {b"null", b'""'}

    def set(self, field: str, value: str | tuple[str, ...]) -> None:
        """Set a field. An empty value removes it, because Go leaves empty fields out."""
        if field == "names":
            self._names = tuple(value)
        if not value and field != "id":
            self._set(field, UNSET)
        elif isinstance(value, str):
            self._set(field, Raw(gojson.string(value)))
        else:
            self._set(field, Raw(f"[{','.join(map(gojson.string, value))}]"))

    def set_entry(self, field: str, key: str, encoded: bytes | None) -> None:
        """Set one entry of a map, or remove it when ``encoded`` is ``None``."""
        self.set_entries(field, {key: encoded})

    def set_entries(self, field: str, changes: Mapping[str, bytes | None]) -> None:
        """Set entries of a map, or remove those that are ``None``."""
        raw = getattr(self._members, _ATTRIBUTES[field])
        if raw is UNSET and not changes:
            return
        present = {} if raw is UNSET else _decode_members(raw) or {}
        entries: dict[str, RawJSON | None] = {**present, **changes}
        kept = {key: raw for key, raw in sorted(entries.items()) if raw is not None}
        self._set(field, Raw(b"{%b}" % _join_members(kept)) if kept else UNSET)

    def _set(self, field: str, raw: Raw | UnsetType) -> None:
        self._keeps_digests &= field not in _DIGEST_FIELDS
        setattr(self._members, _ATTRIBUTES[field], raw)

    def finish(self) -> Record:
        """Return the record as it will be written."""
        if self._members.created is UNSET:
            self.set("created", gojson.ZERO_TIME)
        old = self._record
        if old is not None and self._keeps_digests:
            return Record(self._spell(), old.block_id, old.id, self._names, old.digests)
        record = read(self._spell(), NO_BLOCK if old is None else old.block_id)
        assert record is not None, "every value in a draft was checked"
        if record.digests and not self._has_digest():
            self.set("digest", record.digests[0])
            record.raw = self._spell()
        return record

    def _spell(self) -> bytes:
        raw = _encode(self._members)
        if self._unknown:
            raw = b"%b,%b}" % (raw[:-1], _join_members(self._unknown))
        return raw


def _join_members(members: Mapping[str, RawJSON]) -> bytes:
    """Spell the inside of an object."""
    return b",".join([gojson.string(k).encode() + b":" + raw for k, raw in members.items()])


def without_names(record: Record, lost: Collection[str]) -> Record:
    """Return the record without these names; they stay in its history."""
    draft = RecordDraft(record)
    draft.set("names", tuple(name for name in record.names if name not in lost))
    return draft.finish()


def without_item(record: Record, key: str) -> Record:
    """Return the record without one of its items."""
    draft = RecordDraft(record)
    draft.set("big-data-names", tuple(k for k in record.image.big_data_names if k != key))
    draft.set_entry("big-data-sizes", key, None)
    draft.set_entry("big-data-digests", key, None)
    return draft.finish()


_STRINGS: Final = rb'("(?:[^"\\]|\\.)*+")[ \t\r\n]*:[ \t\r\n]*("(?:[^"\\]|\\.)*+")'
_decode_text: Final = msgspec.json.Decoder(str).decode


def ids_in(element: bytes) -> frozenset[str]:
    """Return the IDs that a damaged element may be the record of: all texts called ``id`` in it."""
    found: set[str] = set()
    for match in re.finditer(_STRINGS, element, re.DOTALL):
        with suppress(ValueError):
            if fold(_decode_text(match[1])) == "id":
                found.add(_decode_text(match[2]))
    return frozenset(found)
