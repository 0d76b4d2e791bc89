"""One element of images.json: the bytes somebody wrote, and what they say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Final

import msgspec
from msgspec import Raw

from . import gojson
from .digest import MANIFEST, is_digest
from .image import Image
from .names import is_id

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Fields(msgspec.Struct, rename="kebab"):
    """The fields that containers/storage knows, of its types. Go reads a null as left out."""

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
    """The usual record: Go's, with nothing in it that needs a closer look."""


class _ImageFields(Fields, rename="kebab"):
    """The same with the flags as they are spelled: they may be deep, and their numbers large."""

    flags: dict[str, Raw] | None = None


class _Sizes(msgspec.Struct, rename="kebab"):
    """What tells how much an image's items take."""

    big_data_sizes: dict[str, _Int64] | None = None


_ORDER: Final = Fields.__struct_encode_fields__
_decode_known: Final = msgspec.json.Decoder(_KnownFields).decode
_decode_any: Final = msgspec.json.Decoder(Fields).decode
_decode_image: Final = msgspec.json.Decoder(_ImageFields).decode
_decode_sizes: Final = msgspec.json.Decoder(_Sizes).decode
_decode_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode

# Go matches a field's name without regard to case; these two fold to ASCII letters as well.
_GO_FOLDS: Final = str.maketrans({"\u017f": "s", "\u212a": "k"})

RawJSON = Raw | bytes

_NO_FLAGS: Final[Mapping[str, bytes]] = MappingProxyType({})


class Record(msgspec.Struct, gc=False, eq=False):
    """One image's element: its bytes, where it is kept, and what it is found by. Immutable.

    The garbage collector passes records over: nothing in them refers back, and a look at all of
    a large index would hold up every thread.

    :ivar raw: the element as it stands in images.json
    :ivar home: the number of the block that holds it
    """

    raw: RawJSON
    home: int
    id: str
    names: tuple[str, ...]
    digests: tuple[str, ...]
    _image: Image | None = None

    @property
    def image(self) -> Image:
        """The whole record, decoded at the first look."""
        image = self._image
        if image is None:
            image = self._image = _decode(self)
        return image

    @property
    def size(self) -> int:
        """What its items take in bytes, as recorded; found without decoding all of it."""
        try:
            sizes: Mapping[str, int] = _decode_sizes(self.raw).big_data_sizes or {}
        except RecursionError:
            sizes = self.image.big_data_sizes
        return sum(sizes.values())

    def at(self, home: int) -> Record:
        """The same record in this block."""
        if home == self.home:
            return self
        moved = Record(self.raw, home, self.id, self.names, self.digests)
        moved._image = self._image
        return moved

    @property
    def is_decoded(self) -> bool:
        """Whether a look at the image costs nothing more."""
        return self._image is not None


def read(raw: RawJSON, home: int) -> Record | None:
    """Read an element of the index; ``None`` when it is damaged."""
    try:
        fields: Fields = _decode_known(raw)
    except (msgspec.ValidationError, RecursionError):
        unusual = _read_unusual(bytes(raw))
        if unusual is None:
            return None
        fields = unusual
    except ValueError:
        return None
    try:
        if fields.created is not None and not gojson.is_usual_time(fields.created):
            gojson.parse_time(fields.created)
    except ValueError:
        return None
    if not is_id(fields.id) or (fields.flags and not gojson.fits_go(fields.flags)):
        return None
    return Record(raw, home, fields.id, tuple(fields.names or ()), _digests(fields))


def _read_unusual(raw: bytes) -> Fields | None:
    """Read a record with fields nobody knows, or with flags that nest deep."""
    try:
        raw.decode()
        members = _members(raw)
        if any(_shadows_known_field(name) for name in members):
            return None
        # What may nest deep is looked at apart: it would not pass the decoder.
        for unknown in members.keys() - set(_ORDER):
            gojson.check_syntax(bytes(members.pop(unknown)), gojson.GO_MAX_DEPTH)
        _check_flags(bytes(members.pop("flags", b"null")))
        with suppress(RecursionError):
            _decode_image(raw)  # of a field that is given twice, both have to be of its type
        return _decode_any(_join_members(members))
    except (ValueError, RecursionError):
        return None


def _members(raw: RawJSON) -> dict[str, RawJSON]:
    """The members of an object as they are spelled, in their order."""
    if bytes(raw) == b"null":
        return {}
    try:
        return dict(_decode_members(raw))
    except RecursionError:
        return dict(_member(text) for text in gojson.split(bytes(raw)))


_MEMBER = re.compile(rb'("(?:[^"\\]|\\.)*+")[ \t\r\n]*:[ \t\r\n]*(.*)', re.DOTALL)


def _member(text: bytes) -> tuple[str, RawJSON]:
    match = _MEMBER.fullmatch(text)
    if match is None:
        raise ValueError("not a member of an object")
    return msgspec.json.decode(match[1], type=str), match[2]


def _check_flags(raw: bytes) -> None:
    flags = gojson.loads(raw)
    if not (flags is None or isinstance(flags, dict)) or not gojson.fits_go(flags):
        raise ValueError("flags must be an object, of numbers that fit a float64")


def _shadows_known_field(name: str) -> bool:
    return name not in _ORDER and name.translate(_GO_FOLDS).lower() in _ORDER


def _digests(fields: Fields) -> tuple[str, ...]:
    """What the image is found by: its digest, then its manifests'. Malformed ones find nothing."""
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
    try:
        fields = _decode_image(record.raw)
        flags: Mapping[str, RawJSON] = fields.flags or {}
    except (RecursionError, msgspec.ValidationError):  # how deep it gets depends on the caller
        members = _members(record.raw)
        flags = _members(members.pop("flags", b"{}"))
        members = {name: raw for name, raw in members.items() if name in _ORDER}
        fields = _decode_image(_join_members(members))
    # The decoder makes each string anew, and most stand in a record three times.
    share = {text: text for text in (*record.names, *record.digests)}.setdefault
    digest = fields.digest or next(iter(record.digests), "")
    keys = [share(key, key) for key in fields.big_data_names or ()]
    sizes = {share(key, key): size for key, size in (fields.big_data_sizes or {}).items()}
    digests = {share(k, k): share(d, d) for k, d in (fields.big_data_digests or {}).items()}
    return Image(
        record.id,
        share(digest, digest),
        record.digests,
        record.names,
        tuple([share(name, name) for name in fields.names_history or ()]),
        fields.layer or "",
        tuple(fields.mapped_layers or ()),
        fields.metadata or "",
        tuple(keys),
        MappingProxyType(sizes),
        MappingProxyType(digests),
        gojson.parse_time(fields.created) if fields.created is not None else None,
        MappingProxyType({k: bytes(raw) for k, raw in flags.items()}) if flags else _NO_FLAGS,
    )


# What decides how a record is found, besides its names.
_FOUND_BY: Final = frozenset({"id", "digest", "big-data-names", "big-data-digests"})


class RecordDraft:
    """A record being written: fields that are not touched keep their spelling."""

    def __init__(self, record: Record | None = None) -> None:
        self._record = record
        self._members: dict[str, RawJSON] = {} if record is None else _members(record.raw)
        self._names = () if record is None else record.names
        self._is_found_alike = record is not None
        # Those that wrote the record put its fields in order; a new one has to find its place.
        self._is_ordered = record is not None and _is_ordered(tuple(self._members))
        if record is not None and record.digests and not self._has_digest():
            # An image's digest, once it has one, stays when its manifests change.
            self.set("digest", record.digests[0])

    def _has_digest(self) -> bool:
        return bytes(self._members.get("digest", b"null")) not in {b"null", b'""'}

    def set(self, field: str, value: str | tuple[str, ...]) -> None:
        """Give a field another value; an empty one is left out, as Go leaves it out."""
        self._is_found_alike &= field not in _FOUND_BY
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
        """Set one entry of a map, or with ``None`` remove it."""
        self._is_found_alike &= field not in _FOUND_BY
        self._is_ordered &= field in self._members
        entries = _members(self._members.get(field, b"null"))
        entries.pop(key, None)
        if encoded is not None:
            entries[key] = encoded
        if entries:
            self._members[field] = _join_members(dict(sorted(entries.items())))
        else:
            self._members.pop(field, None)

    def finish(self) -> Record:
        """The record as it will be written."""
        if "created" not in self._members:
            self.set("created", gojson.ZERO_TIME)
        if not self._is_ordered:
            known = {name: self._members[name] for name in _ORDER if name in self._members}
            self._members = known | self._members
        raw = _join_members(self._members)
        old = self._record
        if old is not None and self._is_found_alike:
            return Record(raw, old.home, old.id, self._names, old.digests)
        record = read(raw, -1 if old is None else old.home)
        assert record is not None, "a draft holds what was checked"
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
