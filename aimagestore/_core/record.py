"""A record: one element of images.json, with its spelling."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec
from msgspec import Raw

from .._format import gojson
from .._format.godecode import fold
from .digest import MANIFEST, is_digest
from .image import Image
from .names import is_id

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Fields(msgspec.Struct, rename="kebab"):
    """The fields that containers/storage knows. Go reads a null as a missing field."""

    id: str
    digest: str | None = None
    names: list[str] | None = None
    names_history: list[str] | None = None
    layer: str | None = None
    mapped_layers: list[str] | None = None
    metadata: str | None = None
    big_data_names: list[str] | None = None
    big_data_sizes: dict[str, _Int64] | None = None
    big_data_digests: dict[str, str] | None = None
    created: str | None = None
    flags: dict[str, Any] | None = None


class _KnownFields(Fields, forbid_unknown_fields=True, rename="kebab"):
    """A record without unknown fields, which is the usual one."""


class _ImageFields(Fields, rename="kebab"):
    """The same fields, with the spelling of flags, because decoding rounds large numbers."""

    flags: dict[str, Raw] | None = None


class _KnownImageFields(_ImageFields, forbid_unknown_fields=True, rename="kebab"):
    """The same without unknown fields."""


class _Items(msgspec.Struct, rename="kebab"):
    """The sizes and digests of an image's items."""

    big_data_sizes: dict[str, _Int64] | None = None
    big_data_digests: dict[str, str] | None = None


class _Sizes(msgspec.Struct, rename="kebab"):
    """The sizes of an image's items."""

    big_data_sizes: dict[str, _Int64] | None = None


_ORDER: Final = Fields.__struct_encode_fields__
_decode_known: Final = msgspec.json.Decoder(_KnownFields).decode
_decode_any: Final = msgspec.json.Decoder(Fields).decode
_decode_image: Final = msgspec.json.Decoder(_ImageFields).decode
_decode_items: Final = msgspec.json.Decoder(_Items).decode
_decode_known_image: Final = msgspec.json.Decoder(_KnownImageFields).decode
_decode_sizes: Final = msgspec.json.Decoder(_Sizes).decode
_decode_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode

RawJSON = Raw | bytes

NO_BLOCK: Final = -1
"""The ``block_id`` of a record that is not in a block."""

MAX_DEPTH: Final = 9_999 if sys.version_info >= (3, 12) else 500
"""The levels to which a record may nest; one that nests deeper is damaged.

Go reads 10,000 levels, of which one is the array around the records. Before Python 3.12, the
decoder's recursion limit is the interpreter's, shared with the callers.
"""

_NO_FLAGS: Final[dict[str, bytes]] = {}


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
        """The image, decoded on the first access."""
        image = self._image
        if image is None:
            image = self._image = _decode(self)
        return image

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
    if len(raw) > 2 * MAX_DEPTH and gojson.nests_deeper(bytes(raw), MAX_DEPTH):
        return None
    try:
        fields: Fields = _decode_known(raw)
    except msgspec.ValidationError:
        unusual = _read_unusual(bytes(raw))
        if unusual is None:
            return None
        fields = unusual
    except (ValueError, RecursionError):
        return None
    try:
        if fields.created is not None and not gojson.is_usual_time(fields.created):
            gojson.parse_time(fields.created)
    except ValueError:
        return None
    if not is_id(fields.id) or (fields.flags and not gojson.fits_go(fields.flags)):
        return None
    return Record(raw, block_id, fields.id, tuple(fields.names or ()), _digests(fields))


def read_image(raw: RawJSON) -> Image | None:
    """Read an element of images.json as an image; ``None`` when it is damaged.

    Faster than :func:`read` and then ``image``, which decode the element twice.
    """
    try:
        fields: _ImageFields = _decode_known_image(raw)
    except (ValueError, RecursionError):
        pass
    else:
        is_usual = fields.created is None or gojson.is_usual_time(fields.created)
        if is_usual and not fields.flags and is_id(fields.id):
            return _image(fields, tuple(fields.names or ()), _digests(fields))
    record = read(raw)
    return None if record is None else record.image


def _read_unusual(raw: bytes) -> Fields | None:
    """Read a record that has unknown fields, or known ones of the wrong type."""
    try:
        raw.decode()
        if any(_shadows_known_field(name) for name in _decode_members(raw)):
            return None
        return _decode_any(raw)
    except (ValueError, RecursionError):
        return None


def _members(raw: RawJSON) -> dict[str, RawJSON]:
    """Return the members of an object, with their spelling, in their order."""
    return {} if bytes(raw) == b"null" else dict(_decode_members(raw))


def _shadows_known_field(name: str) -> bool:
    """Return whether Go takes this name for another spelling of a known field."""
    return name not in _ORDER and fold(name) in _ORDER


def _digests(fields: Fields) -> tuple[str, ...]:
    """Return the image's digest, then those of its manifests, without malformed ones."""
    digest = fields.digest
    known = {digest: None} if digest and is_digest(digest) else {}
    recorded = fields.big_data_digests or {}
    for key in fields.big_data_names or ():
        if key.startswith(MANIFEST):
            found = recorded.get(key, "")
            if found not in known and is_digest(found):
                known[found] = None
    return tuple(known)


def _decode(record: Record) -> Image:
    return _image(_decode_image(record.raw), record.names, record.digests, record.read_only)


def _image(
    fields: _ImageFields,
    names: tuple[str, ...],
    found_by: tuple[str, ...],
    read_only: bool = False,
) -> Image:
    flags = fields.flags or {}
    # The decoder makes a new string each time, and most of them occur in a record three times.
    share = {text: text for text in (*names, *found_by)}.setdefault
    digest = fields.digest or next(iter(found_by), "")
    keys = [share(key, key) for key in fields.big_data_names or ()]
    sizes = {share(key, key): size for key, size in (fields.big_data_sizes or {}).items()}
    digests = {share(k, k): share(d, d) for k, d in (fields.big_data_digests or {}).items()}
    return Image(
        fields.id,
        share(digest, digest),
        found_by,
        names,
        tuple([share(name, name) for name in fields.names_history or ()]),
        fields.layer or "",
        tuple(fields.mapped_layers or ()),
        fields.metadata or "",
        tuple(keys),
        sizes,
        digests,
        gojson.parse_time(fields.created) if fields.created is not None else None,
        {k: bytes(raw) for k, raw in flags.items()} if flags else _NO_FLAGS,
        read_only,
    )


# The fields that decide by which digests a record is found.
_DIGEST_FIELDS: Final = frozenset({"digest", "big-data-names", "big-data-digests"})


class RecordDraft:
    """A record that is being changed or made. Fields that are not set keep their spelling.

    :param record: the record to change, whose ID stays; ``None`` for a new one
    """

    def __init__(self, record: Record | None = None) -> None:
        self._record = record
        self._members: dict[str, RawJSON] = {} if record is None else _members(record.raw)
        self._names = () if record is None else record.names
        # A record that keeps its ID and its digests need not be read again.
        self._keeps_digests = record is not None
        # Usually the fields are in order, until one is added.
        self._is_ordered = record is not None and _is_ordered(tuple(self._members))
        if record is not None and record.digests and not self._has_digest():
            # The digest of an image stays when its manifests change.
            self.set("digest", record.digests[0])

    def _has_digest(self) -> bool:
        return bytes(self._members.get("digest", b"null")) not in {b"null", b'""'}

    def set(self, field: str, value: str | tuple[str, ...]) -> None:
        """Set a field. An empty value removes it, because Go leaves empty fields out."""
        self._keeps_digests &= field not in _DIGEST_FIELDS
        if field == "names":
            self._names = tuple(value)
        self._is_ordered &= field in self._members
        if not value and field != "id":
            self._members.pop(field, None)
        elif isinstance(value, str):
            self._members[field] = gojson.string(value).encode()
        else:
            self._members[field] = gojson.value(value)

    def set_entry(self, field: str, key: str, encoded: bytes | None) -> None:
        """Set one entry of a map, or remove it when ``encoded`` is ``None``."""
        self.set_entries(field, {key: encoded})

    def set_entries(self, field: str, changes: Mapping[str, bytes | None]) -> None:
        """Set entries of a map, or remove those that are ``None``."""
        self._keeps_digests &= field not in _DIGEST_FIELDS
        self._is_ordered &= field in self._members
        entries: dict[str, RawJSON | None] = {**_members(self._members.get(field, b"null"))}
        entries |= changes
        kept = {key: raw for key, raw in sorted(entries.items()) if raw is not None}
        if kept:
            self._members[field] = _join_members(kept)
        else:
            self._members.pop(field, None)

    def finish(self) -> Record:
        """Return the record as it will be written."""
        if "created" not in self._members:
            self.set("created", gojson.ZERO_TIME)
        if not self._is_ordered:
            known = {name: self._members[name] for name in _ORDER if name in self._members}
            self._members = known | self._members
        raw = _join_members(self._members)
        old = self._record
        if old is not None and self._keeps_digests:
            return Record(raw, old.block_id, old.id, self._names, old.digests)
        record = read(raw, NO_BLOCK if old is None else old.block_id)
        assert record is not None, "every value in a draft was checked"
        if record.digests and not self._has_digest():
            self.set("digest", record.digests[0])
            return self.finish()
        return record


@lru_cache(maxsize=64)  # most records have the same fields
def _is_ordered(names: tuple[str, ...]) -> bool:
    ranks = [_RANKS.get(name, len(_ORDER)) for name in names]
    return ranks == sorted(ranks)


def _label(name: str) -> bytes:
    return gojson.string(name).encode() + b":"


_RANKS: Final = {name: rank for rank, name in enumerate(_ORDER)}
_LABELS: Final = {name: _label(name) for name in _ORDER}


def _join_members(members: Mapping[str, RawJSON]) -> bytes:
    return b"{%b}" % b",".join(
        [(_LABELS.get(name) or _label(name)) + raw for name, raw in members.items()]
    )


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


_STRINGS: Final = re.compile(
    rb'("(?:[^"\\]|\\.)*+")[ \t\r\n]*:[ \t\r\n]*("(?:[^"\\]|\\.)*+")', re.DOTALL
)
_decode_text: Final = msgspec.json.Decoder(str).decode


def ids_in(element: bytes) -> frozenset[str]:
    """Return the IDs that a damaged element may be the record of: all texts called ``id`` in it."""
    found: set[str] = set()
    for match in _STRINGS.finditer(element):
        with suppress(ValueError):
            if fold(_decode_text(match[1])) == "id":
                found.add(_decode_text(match[2]))
    return frozenset(found)
