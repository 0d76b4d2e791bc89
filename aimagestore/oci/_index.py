"""index.json: which of its images are meant, and what it says with one more."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .._core.digest import canonical_digest
from ..errors import ImageUnknownError
from ._closure import Tally
from ._documents import INDEX, INDEX_FILE, Descriptor, decode, read_document

_EMPTY = b'{"schemaVersion":2,"manifests":[]}'


class LayoutIndex:
    """The index of a layout.

    :ivar data: the file
    :ivar itself: a descriptor of the file, for where all of it is one image
    """

    def __init__(self, data: bytes, tally: Tally) -> None:
        document = read_document(data, INDEX, INDEX_FILE, tally.place)
        self.data = data
        self._tally = tally
        self._entries = document.manifests or ()
        first = self._entries[0] if self._entries else None
        self.itself = Descriptor(
            media_type=INDEX,
            digest=canonical_digest(data),
            size=len(data),
            annotations=first.annotations if first is not None else None,
        )
        for entry in self._entries:
            tally.see(entry)

    @property
    def ref_names(self) -> list[str]:
        """What the layout calls its images."""
        return sorted({entry.ref_name for entry in self._entries if entry.ref_name})

    def roots(self, ref: str | None) -> Sequence[Descriptor]:
        """The images that are meant: those called ``ref``, or all.

        The platforms of one image may be listed right here: then all of this is the image.

        :raises ImageUnknownError: when there is none
        """
        meant = [e for e in self._entries if ref is None or e.ref_name == ref]
        if not meant:
            raise ImageUnknownError(
                f"{self._tally.place} has no image {ref!r}, but {self.ref_names}"
                if ref is not None
                else f"{self._tally.place} lists no image",
                ref=ref,
                path=self._tally.place,
            )
        if len(meant) == len(self._entries) and _are_platforms_of_one(meant):
            return [self.itself]
        return meant


def _are_platforms_of_one(entries: Sequence[Descriptor]) -> bool:
    platforms = {entry.platform for entry in entries}
    return (
        len(entries) > 1
        and None not in platforms
        and len(platforms) == len(entries)
        and len({entry.ref_name for entry in entries}) == 1
    )


class _Entries(msgspec.Struct):
    """The entries of an index, as they are spelled."""

    manifests: list[msgspec.Raw] | None = None


def with_entry(data: bytes | None, entry: Descriptor, place: str) -> bytes:
    """The index with one more entry, in place of the one that has its name, as skopeo does.

    What else the index says stays as it is spelled.

    :param data: the index so far
    :raises InvalidLayoutError: when that cannot be read
    """
    encoded = msgspec.json.encode(entry)
    if data is None:
        data = _EMPTY
    document = read_document(data, INDEX, INDEX_FILE, place)
    fields = decode(data, dict[str, msgspec.Raw], INDEX_FILE, place)
    raw = decode(data, _Entries, INDEX_FILE, place).manifests or []
    present = document.manifests or ()
    kept = [bytes(r) for r, old in zip(raw, present, strict=True) if not _replaces(entry, old)]
    fields["manifests"] = msgspec.Raw(b"[" + b",".join([*kept, encoded]) + b"]")
    return msgspec.json.encode(fields)


def _replaces(entry: Descriptor, old: Descriptor) -> bool:
    if entry.ref_name:
        return entry.ref_name == old.ref_name
    return not old.ref_name and entry.digest == old.digest
