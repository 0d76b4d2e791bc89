"""One element of images.json: the bytes somebody wrote, and what they say."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final

import msgspec
from msgspec import Raw

from . import gojson
from .digest import is_digest, is_manifest_key
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


_ORDER: Final = Fields.__struct_encode_fields__
_decode_known: Final = msgspec.json.Decoder(_KnownFields).decode
_decode_any: Final = msgspec.json.Decoder(Fields).decode
_decode_image: Final = msgspec.json.Decoder(_ImageFields).decode
_decode_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode

# Go matches a field's name without regard to case; these two fold to ASCII letters as well.
_GO_FOLDS: Final = str.maketrans({"\u017f": "s", "\u212a": "k"})

RawJSON = Raw | bytes


class Record:
    """One image's element: its bytes, where it is kept, and what it is found by. Immutable.

    :ivar raw: the element as it stands in images.json
    :ivar home: the number of the block that holds it
    """

    __slots__ = ("_image", "digests", "home", "id", "names", "raw")

    raw: RawJSON
    home: int
    id: str
    names: tuple[str, ...]
    digests: tuple[str, ...]

    def __init__(
        self, raw: RawJSON, home: int, id: str, names: tuple[str, ...], digests: tuple[str, ...]
    ) -> None:
        self.raw = raw
        self.home = home
        self.id = id
        self.names = names
        self.digests = digests
        self._image: Image | None = None

    @property
    def image(self) -> Image:
        """The whole record, decoded at the first look."""
        image = self._image
        if image is None:
            image = self._image = _decode(self)
        return image

    def at(self, home: int) -> Record:
        """The same record in another block."""
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
        if fields.created is not None:
            gojson.parse_time(fields.created)
    except ValueError:
        return None
    if not is_id(fields.id) or (fields.flags and not gojson.fits_go(fields.flags)):
        return None
    return Record(raw, home, fields.id, tuple(fields.names or ()), _digests(fields)[1])


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


def _digests(fields: Fields) -> tuple[str, tuple[str, ...]]:
    """The image's digest, and all that it is found by; malformed ones find nothing."""
    recorded = fields.big_data_digests or {}
    manifests = [
        recorded[key]
        for key in fields.big_data_names or ()
        if is_manifest_key(key) and is_digest(recorded.get(key, ""))
    ]
    digest = fields.digest or (manifests[0] if manifests else "")
    known = [digest] if is_digest(digest) else []
    return digest, tuple(dict.fromkeys(known + manifests))


def _decode(record: Record) -> Image:
    try:
        fields = _decode_image(record.raw)
        flags: Mapping[str, RawJSON] = fields.flags or {}
    except RecursionError:
        members = _members(record.raw)
        flags = _members(members.pop("flags", b"{}"))
        members = {name: raw for name, raw in members.items() if name in _ORDER}
        fields = _decode_image(_join_members(members))
    return Image(
        record.id,
        _digests(fields)[0],
        record.digests,
        record.names,
        tuple(fields.names_history or ()),
        fields.layer or "",
        tuple(fields.mapped_layers or ()),
        fields.metadata or "",
        tuple(fields.big_data_names or ()),
        MappingProxyType(fields.big_data_sizes or {}),
        MappingProxyType(fields.big_data_digests or {}),
        gojson.parse_time(fields.created) if fields.created is not None else None,
        MappingProxyType({flag: bytes(raw) for flag, raw in flags.items()}),
    )


class RecordDraft:
    """A record being written: fields that are not touched keep their spelling."""

    def __init__(self, record: Record | None = None) -> None:
        self._members: dict[str, RawJSON] = {} if record is None else _members(record.raw)
        self._home = -1 if record is None else record.home
        if record is not None and record.digests and not self._has_digest():
            # An image's digest, once it has one, stays when its manifests change.
            self.set("digest", record.digests[0])

    def _has_digest(self) -> bool:
        return bytes(self._members.get("digest", b"null")) not in {b"null", b'""'}

    def set(self, field: str, value: str | tuple[str, ...]) -> None:
        """Give a field another value; an empty one is left out, as Go leaves it out."""
        if not value and field != "id":
            self._members.pop(field, None)
        elif isinstance(value, str):
            self._members[field] = gojson.string(value).encode()
        else:
            self._members[field] = gojson.value(value)

    def set_entry(self, field: str, key: str, encoded: bytes | None) -> None:
        """Set one entry of a map, or with ``None`` remove it."""
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
        known = {name: self._members[name] for name in _ORDER if name in self._members}
        record = read(_join_members(known | self._members), self._home)
        assert record is not None, "a draft holds what was checked"
        if record.digests and not self._has_digest():
            self.set("digest", record.digests[0])
            return self.finish()
        return record


def _join_members(members: Mapping[str, RawJSON]) -> bytes:
    encode: Callable[[str], bytes] = lambda name: gojson.string(name).encode()  # noqa: E731
    return b"{%b}" % b",".join(encode(name) + b":" + raw for name, raw in members.items())
