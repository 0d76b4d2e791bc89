"""The next snapshot in the making."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from .image import Image
from .record import Record
from .snapshot import BLOCK_BYTES, Block, Snapshot, View, new_home

K = TypeVar("K")
V = TypeVar("V")


class Content(Protocol):
    """A big-data item's content, wherever it waits to be published."""

    @property
    def size(self) -> int:
        """Its length in bytes."""
        ...

    @property
    def digest(self) -> str:
        """Its SHA-256 digest."""
        ...


class Edit(msgspec.Struct, frozen=True):
    """What one change does to a snapshot, decided but not done.

    :ivar image_id: the image that the change returns; ``""`` where it returns none
    :ivar created: the record of a new image
    :ivar updated: records that replace those of the same ID
    :ivar deleted: IDs of images that go
    :ivar adopted: the record of an image whose directory is there already
    :ivar drops_unreadable: whether damaged and shadowed records go
    :ivar files: big-data items that get other content
    """

    image_id: str = ""
    created: Record | None = None
    updated: tuple[Record, ...] = ()
    deleted: tuple[str, ...] = ()
    adopted: Record | None = None
    drops_unreadable: bool = False
    files: Mapping[tuple[str, str], Content] = MappingProxyType({})

    @property
    def image(self) -> Image | None:
        """The image that the change returns, as this change leaves it."""
        mine = (self.created, *self.updated)
        return next((r.image for r in mine if r is not None and r.id == self.image_id), None)


class ImageEdit(NamedTuple):
    """What became of one image.

    :ivar old: its record in the view below
    :ivar new: its record here
    :ivar is_anew: whether it was deleted, and made again as another image of that ID
    """

    id: str
    old: Record | None
    new: Record | None
    is_anew: bool


class Draft(View):
    """A view with edits on top; looks like the snapshot that will come of it."""

    __slots__ = (
        "_adopted",
        "_appended",
        "_digests",
        "_drops_unreadable",
        "_names",
        "_records",
        "base",
        "files",
    )

    base: View
    files: dict[tuple[str, str], Content]

    def __init__(self, base: View) -> None:
        self.base = base
        self.files = {}
        self._records: dict[str, Record | None] = {}
        self._appended: dict[str, None] = {}
        self._adopted: set[str] = set()
        self._drops_unreadable = False
        self._names: dict[str, str | None] = {}
        # Of each digest, who has got it, and who has lost it.
        self._digests: dict[str, dict[str, bool]] = {}

    def expect(self, refs: Iterable[str], names: Iterable[str]) -> None:
        self.base.expect(refs, names)

    def record_of(self, image_id: str) -> Record | None:
        if image_id in self._records:
            return self._records[image_id]
        return self.base.record_of(image_id)

    def owner_of(self, name: str) -> str | None:
        return self._names[name] if name in self._names else self.base.owner_of(name)

    def ids_with_prefix(self, prefix: str) -> Sequence[str]:
        found = {i for i in self.base.ids_with_prefix(prefix) if i not in self._records}
        mine = (i for i, r in self._records.items() if r is not None and i.startswith(prefix))
        return sorted(found.union(mine)) if prefix else []

    def ids_with_digest(self, digest: str) -> Sequence[str]:
        changes = self._digests.get(digest, {})
        kept = [i for i in self.base.ids_with_digest(digest) if changes.get(i, True)]
        return (*kept, *(i for i, has in changes.items() if has and i not in kept))

    def records(self) -> Iterator[Record]:
        for record in self.base.records():
            current = self._records.get(record.id, record)
            if current is not None and record.id not in self._appended:
                yield current
        yield from self._new_records()

    def _new_records(self) -> Iterator[Record]:
        return (r for i in self._appended if (r := self._records[i]) is not None)

    def apply(self, edit: Edit) -> None:
        """Do what was decided. It was decided on this very draft, so nothing can fail here."""
        for image_id in edit.deleted:
            self._replace(image_id, None)
            self.files = {place: c for place, c in self.files.items() if place[0] != image_id}
        # Names move: first those who lose them, then the one who gets them.
        for record in edit.updated:
            self._replace(record.id, record)
        for new in (edit.created, edit.adopted):
            if new is not None:
                self._appended.pop(new.id, None)
                self._appended[new.id] = None
                self._replace(new.id, new)
        if edit.adopted is not None:
            self._adopted.add(edit.adopted.id)
        self._drops_unreadable |= edit.drops_unreadable
        self.files.update(edit.files)

    def _replace(self, image_id: str, new: Record | None) -> None:
        old = self.record_of(image_id)
        self._records[image_id] = new
        names = new.names if new else ()
        digests = new.digests if new else ()
        for name in old.names if old else ():
            if name not in names and self.owner_of(name) == image_id:
                self._names[name] = None
        for name in names:
            self._names[name] = image_id
        for digest in (*(old.digests if old else ()), *digests):
            self._digests.setdefault(digest, {})[image_id] = digest in digests

    def image_edits(self) -> Iterator[ImageEdit]:
        """What became of each image that was edited, the new ones last and in their order."""
        changed = (i for i in self._records if i not in self._appended)
        for image_id in (*changed, *self._appended):
            old, new = self.base.record_of(image_id), self._records[image_id]
            is_anew = old is not None and new is not None and image_id in self._appended
            yield ImageEdit(image_id, old, new, is_anew)

    @property
    def deleted(self) -> Iterator[str]:
        """IDs whose old files go: of images deleted, and of those made anew after that."""
        for edit in self.image_edits():
            if edit.old is not None and (edit.new is None or edit.is_anew):
                yield edit.id

    @property
    def created(self) -> Iterator[str]:
        """IDs that have no record yet in the index as it is."""
        new = self._appended.keys() - self._adopted
        return (i for i in new if self._records[i] and not self.base.record_of(i))

    def freeze(self) -> Snapshot:
        """The snapshot that this draft describes; the base itself, where nothing changed."""
        base = self.base.freeze()
        replaced: dict[Record, Record | None] = {}
        for image_id, old, record, is_anew in self.image_edits():
            if old is None:
                continue
            if record is None or is_anew:
                # A shadowed record of the same ID would count once this one is gone.
                replaced |= dict.fromkeys((old, *base.shadowed.get(image_id, ())))
            elif bytes(record.raw) != bytes(old.raw):
                replaced[old] = record.at(old.home)
        new = list(self._new_records())
        damaged = base.damaged
        if self._drops_unreadable:
            damaged = ()
            for shadows in base.shadowed.values():
                replaced |= dict.fromkeys(shadows)
        is_same = not replaced and not new and damaged == base.damaged
        if is_same and not base.needs_save:
            return base
        blocks, appended = _append(_replace(base.blocks, replaced), new)
        indexes = base.indexes.copy()
        _overlay(indexes.by_name, self._names)
        for digest in self._digests:
            indexes.set_ids(digest, self.ids_with_digest(digest))
        known = {old for old in replaced if indexes.by_id.get(old.id) is old}
        _overlay(indexes.by_id, {old.id: replaced[old] for old in known})
        _overlay(indexes.by_id, {record.id: record for record in appended})
        added = [record.id for record in appended if record.id not in base.indexes.by_id]
        removed = [old.id for old in replaced if old.id not in indexes.by_id]
        return Snapshot(
            blocks,
            indexes,
            base.prefixes.changed(added, removed) if added or removed else base.prefixes,
            damaged,
            {i: s for i, s in base.shadowed.items() if s[0] not in replaced},
        )


def _replace(
    blocks: Mapping[int, Block], replaced: Mapping[Record, Record | None]
) -> dict[int, Block]:
    """The blocks with other records in the places of some."""
    changed = dict(blocks)
    for home in {record.home for record in replaced}:
        records = [replaced.get(r, r) for r in blocks[home].records]
        if kept := [r for r in records if r is not None]:
            changed[home] = Block.of(kept, home)
        else:
            del changed[home]
    return changed


def _append(blocks: dict[int, Block], new: list[Record]) -> tuple[dict[int, Block], list[Record]]:
    """The blocks with new records at their end, and those records where they are now."""
    appended: list[Record] = []
    waiting = iter(new)
    last = next(reversed(blocks), None)
    while (record := next(waiting, None)) is not None:
        if last is None or len(blocks[last].text) >= BLOCK_BYTES:
            last = new_home()
        present = blocks[last].records if last in blocks else ()
        room = BLOCK_BYTES - (len(blocks[last].text) if present else 0)
        fresh = []
        while record is not None:
            fresh.append(record.at(last))
            room -= len(record.raw)
            record = next(waiting, None) if room > 0 else None
        blocks[last] = Block.of((*present, *fresh), last)
        appended += fresh
    return blocks, appended


def _overlay(target: dict[K, V], changes: Mapping[K, V | None]) -> None:
    for key, value in changes.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value
