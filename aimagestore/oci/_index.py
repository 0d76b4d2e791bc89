"""``index.json``: selects images in it, and adds images to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from .._core.digest import canonical_digest
from ..errors import AmbiguousImageError, ImageUnknownError, InvalidLayoutError
from ._documents import (
    DOCKER_LIST,
    INDEX,
    INDEX_FILE,
    INDEX_MAX,
    Descriptor,
    decode,
    decode_descriptor,
    identity_in,
    names_in,
    spelled,
)
from ._naming import EntryName, digest_in, name_of

_LISTED = 20
_POSITION = re.compile(r"@([0-9]{1,9})")
# Some programs write the manifest list of a Docker registry there.
_TYPES = frozenset({None, "", INDEX, DOCKER_LIST})
_EMPTY = b'{"schemaVersion":2,"manifests":[]}'


class _RawIndex(msgspec.Struct, rename="camel"):
    """The index as the JSON has it."""

    schema_version: int | None = None
    media_type: str | None = None
    config: Any = None
    layers: Any = None
    manifests: list[msgspec.Raw] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of index.json.

    :ivar problem: why it cannot be used; ``""`` if it can
    """

    descriptor: Descriptor
    name: EntryName
    problem: str = ""

    @property
    def may_be_image(self) -> bool:
        """Whether it has the type of an image, or no type, so that only the content tells."""
        descriptor = self.descriptor
        return descriptor.is_index or descriptor.is_manifest or not descriptor.media_type

    @property
    def label(self) -> str:
        """What to call it in messages."""
        return self.name.key or self.descriptor.digest or "an entry without a digest"


@dataclass(frozen=True, slots=True)
class Selected:
    """The entries of one name, or one entry without a name.

    :ivar label: what to call it in messages
    :ivar entries: different images; several if one name was given to each platform, or by mistake
    :ivar names: its names in a store
    :ivar unusable: names that no image in a store can have
    :ivar whole: the descriptor of index.json itself, if that lists nothing but the platforms of
        this image
    """

    label: str
    entries: tuple[Descriptor, ...]
    names: tuple[str, ...]
    unusable: tuple[str, ...] = ()
    whole: Descriptor | None = None


class LayoutIndex:
    """The index of a layout.

    :param positions: the position of the image that each entry belongs to, for ``@POSITION``;
        ``None`` if each entry has its own
    :ivar data: the content of index.json
    :ivar digest: its digest, which identifies the image if index.json lists only its platforms
    :raises InvalidLayoutError: when it is not an index
    """

    def __init__(self, data: bytes, place: str, positions: Sequence[int] | None = None) -> None:
        self.data = data
        self.digest = canonical_digest(data)
        self._place = place
        document = _decode(data, place)
        self._media_type = document.media_type or INDEX
        self._entries = [_entry_of(raw) for raw in document.manifests or ()]
        self._positions = positions or range(len(self._entries))

    @property
    def labels(self) -> list[str]:
        """What the images of the layout are called."""
        return _labels(entry for entry in self._entries if entry.may_be_image)

    def select(self, ref: str | None) -> list[Selected]:
        """Return the images that are called ``ref``, or all.

        :param ref: a whole name, a short one, a digest, ``name@digest``, or ``@`` and the image's
            position, as skopeo counts it
        :raises ImageUnknownError: when there is none
        :raises AmbiguousImageError: when a short name fits several
        :raises InvalidLayoutError: when an entry that is selected cannot be used
        """
        if not self._entries:
            raise ImageUnknownError(f"{self._place} lists no image", path=self._place)
        found = self._entries if ref is None else self._find(ref)
        images = [entry for entry in found if entry.may_be_image]
        if not images:
            types = sorted({entry.descriptor.media_type for entry in found})
            raise ImageUnknownError(
                f"{self._place} lists no image{'' if ref is None else f' {ref!r}'}, but entries of "
                f"the types {types}"
                if found
                else f"{self._place} has no image {ref!r}; it has {listed(self.labels)}",
                ref=ref,
                path=self._place,
            )
        for entry in images:
            if entry.problem:
                raise self.unusable(entry.label, entry.problem)
        return self._grouped(images, ref)

    def unusable(self, label: str, problem: str) -> InvalidLayoutError:
        """Return the error for an image that cannot be used, which says which others there are."""
        others = [
            entry
            for entry in self._entries
            if entry.may_be_image and not entry.problem and entry.label != label
        ]
        advice = f"; select others by their ref: {listed(_labels(others))}" if others else ""
        return InvalidLayoutError(
            f"{self._place}: {label} cannot be imported ({problem}){advice}", path=self._place
        )

    def _find(self, ref: str) -> list[Entry]:
        if position := _POSITION.fullmatch(ref):
            pairs = zip(self._positions, self._entries, strict=True)
            return [entry for each, entry in pairs if each == int(position[1])]
        name, digest = digest_in(ref)
        entries = self._entries
        if digest:
            entries = [entry for entry in entries if entry.descriptor.digest == digest]
            if not name:
                return entries
        whole = [entry for entry in entries if entry.name.is_called(name)]
        if whole:
            return whole
        found = [entry for entry in entries if entry.name.may_be_called(name)]
        if len({entry.descriptor.digest for entry in found}) > 1 and len(_labels(found)) > 1:
            raise AmbiguousImageError(
                f"{self._place} has several images called {ref!r}: give one of their whole names",
                ref=ref,
                path=self._place,
                candidates=tuple(_labels(found)),
            )
        return found

    def _grouped(self, images: Sequence[Entry], ref: str | None) -> list[Selected]:
        groups: dict[str, list[Entry]] = {}
        for entry in images:
            groups.setdefault(entry.label, []).append(entry)
        is_whole = len(images) == sum(entry.may_be_image for entry in self._entries)
        if is_whole and len({entry.name.key for entry in images}) == 1 and _are_platforms(images):
            # index.json may list the platforms of one image: then it is the index of that image.
            whole = Descriptor(media_type=self._media_type, digest=self.digest, size=len(self.data))
            return [_selected(images[0].label, images, whole)]
        return [_selected(label, group) for label, group in groups.items()]


def listed(labels: Sequence[str]) -> str:
    """Return a list of labels for a message, cut short if there are many."""
    first = ", ".join(labels[:_LISTED])
    more = len(labels) - _LISTED
    return f"{first} and {more:,} more" if more > 0 else first


def _decode(data: bytes, place: str) -> _RawIndex:
    document = decode(data, _RawIndex, INDEX_FILE, place, INDEX_MAX)
    problem = ""
    # skopeo takes an index.json that leaves the version out.
    if document.schema_version not in {None, 2}:
        problem = f"is of schema version {document.schema_version}; only 2 is understood"
    elif document.media_type not in _TYPES:
        problem = f"says that it is of type {document.media_type!r}, and not {INDEX!r}"
    elif document.config is not None or document.layers is not None:
        problem = "is an index, but has fields that only manifests have"
    if problem:
        raise InvalidLayoutError(f"{place}: {INDEX_FILE} {problem}", path=place)
    return document


def _entry_of(raw: msgspec.Raw) -> Entry:
    try:
        descriptor = decode_descriptor(raw)
    except ValueError as error:
        known = identity_in(raw)
        return Entry(known, name_of(known.annotations), f"it cannot be read: {error}")
    return Entry(descriptor, name_of(descriptor.annotations), descriptor.problem)


def _labels(entries: Iterable[Entry]) -> list[str]:
    return sorted({entry.label for entry in entries})


def _selected(label: str, group: Sequence[Entry], whole: Descriptor | None = None) -> Selected:
    entries = {entry.descriptor.digest: entry.descriptor for entry in group}
    names = dict.fromkeys(entry.name.full for entry in group if entry.name.full)
    unusable = dict.fromkeys(entry.name.text for entry in group if not entry.name.full)
    unusable.pop("", None)
    return Selected(label, tuple(entries.values()), tuple(names), tuple(unusable), whole)


def _are_platforms(entries: Sequence[Entry]) -> bool:
    """Return whether there are several entries, each for another platform."""
    platforms = {entry.descriptor.platform for entry in entries}
    return len(entries) > 1 and None not in platforms and len(platforms) == len(entries)


def with_entries(data: bytes | None, entries: Iterable[Descriptor], place: str) -> bytes:
    """Return an index with more entries, which replace those with the same names.

    An entry without a name replaces one with the same digest and no name. Everything else in the
    index keeps its spelling.

    :param data: the index so far; ``None`` for none
    :raises InvalidLayoutError: when that cannot be read
    """
    if data is None:
        data = _EMPTY
    present = _decode(data, place).manifests or []
    fields = decode(data, dict[str, msgspec.Raw], INDEX_FILE, place, INDEX_MAX)
    fields = spelled(fields, names_in(_RawIndex))
    new = {_identity(Entry(each, name_of(each.annotations))): each for each in entries}
    kept = [bytes(raw) for raw in present if _identity(_entry_of(raw)) not in new]
    added = [msgspec.json.encode(entry) for entry in new.values()]
    fields["manifests"] = msgspec.Raw(b"[" + b",".join([*kept, *added]) + b"]")
    return msgspec.json.encode(fields)


def _identity(entry: Entry) -> tuple[str, str]:
    """Return what is the same for two entries if one replaces the other."""
    return (entry.name.key, "") if entry.name.key else ("", entry.descriptor.digest)
