"""The whole index at one moment, and what it is found by."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..errors import AmbiguousImageError, ImageUnknownError
from .digest import check_digest
from .image import Image
from .patience import patiently
from .record import Record, RecordDraft

BLOCK_BYTES = 256 * 1024
"""Size of a block. A change encodes its block again, the others are written as they are."""


# What takes about 2 ms.
_BLOCKS_AT_ONCE = 8
_IDS_AT_ONCE = 10_000


new_home = itertools.count().__next__
"""A number for a new block, that no other block has or had."""


class Block(NamedTuple):
    """A run of records, and their text: a JSON array, whose inside stands in images.json."""

    text: bytes
    records: tuple[Record, ...]

    @classmethod
    def of(cls, records: Iterable[Record], home: int) -> Block:
        """Encode records as block number ``home``."""
        placed = tuple(r.at(home) for r in records)
        return cls(b"".join((b"[", b",".join([r.raw for r in placed]), b"]")), placed)


class Prefixes:
    """Finds IDs by a prefix: sorted lists of them, by their first characters."""

    _HEAD = 2

    __slots__ = ("_buckets",)

    def __init__(self, buckets: dict[str, list[str]]) -> None:
        self._buckets = buckets

    @classmethod
    def of(cls, ids: Iterable[str]) -> Prefixes:
        """Index the IDs; sorted in small lists, for a sort holds up every other thread."""
        buckets: dict[str, list[str]] = {}
        for image_id in patiently(ids, _IDS_AT_ONCE):
            buckets.setdefault(image_id[: cls._HEAD], []).append(image_id)
        for bucket in buckets.values():
            bucket.sort()
        return cls(buckets)

    def changed(self, added: Iterable[str], removed: Iterable[str]) -> Prefixes:
        """The same index with some IDs more and some less."""
        buckets = self._buckets.copy()
        removed = frozenset(removed)
        added = list(added)
        heads: dict[str, list[str]] = {}
        for image_id in (*added, *removed):
            heads.setdefault(image_id[: self._HEAD], [])
        for image_id in added:
            heads[image_id[: self._HEAD]].append(image_id)
        for head, more in heads.items():
            kept = [i for i in buckets.pop(head, ()) if i not in removed]
            if bucket := sorted(kept + more):
                buckets[head] = bucket
        return Prefixes(buckets)

    def find(self, prefix: str) -> list[str]:
        """The IDs that begin with the prefix, sorted."""
        if not prefix:
            return []
        head = prefix[: self._HEAD]
        if len(head) < self._HEAD:
            heads = sorted(h for h in self._buckets if h.startswith(head))
            return [image_id for h in heads for image_id in self._buckets[h]]
        bucket = self._buckets.get(head, [])
        start = end = bisect_left(bucket, prefix)
        while end < len(bucket) and bucket[end].startswith(prefix):
            end += 1
        return bucket[start:end]


class Indexes(NamedTuple):
    """What records are found by. Shared between snapshots, so never changed once it is in one."""

    by_id: dict[str, Record]
    by_name: dict[str, str]
    by_digest: dict[str, str | tuple[str, ...]]
    """IDs; a bare one where it is the only one, as it nearly always is."""

    def copy(self) -> Indexes:
        """Maps to change, for the next snapshot."""
        return Indexes(self.by_id.copy(), self.by_name.copy(), self.by_digest.copy())

    def add(self, record: Record) -> None:
        """Make a record known by its ID, names and digests."""
        self.by_id[record.id] = record
        for name in record.names:
            self.by_name[name] = record.id
        for digest in record.digests:
            ids = self.ids_with_digest(digest)
            self.by_digest[digest] = (*ids, record.id) if ids else record.id

    def discard(self, record: Record) -> None:
        """Forget a record, where it is the one that is known."""
        if self.by_id.get(record.id) is not record:
            return
        del self.by_id[record.id]
        for name in record.names:
            if self.by_name.get(name) == record.id:
                del self.by_name[name]
        for digest in record.digests:
            self.set_ids(digest, [i for i in self.ids_with_digest(digest) if i != record.id])

    def ids_with_digest(self, digest: str) -> tuple[str, ...]:
        """The IDs of the images that have this digest."""
        ids = self.by_digest.get(digest, ())
        return (ids,) if isinstance(ids, str) else ids

    def set_ids(self, digest: str, ids: Sequence[str]) -> None:
        """Say which images have this digest."""
        if not ids:
            self.by_digest.pop(digest, None)
        else:
            self.by_digest[digest] = ids[0] if len(ids) == 1 else tuple(ids)

    def clashes(self, record: Record) -> bool:
        """Whether another record has this one's ID, or one of its names."""
        return record.id in self.by_id or not self.by_name.keys().isdisjoint(record.names)


class View:
    """Lookups, the same in a snapshot, in a draft of the next one, and in what stays elsewhere."""

    __slots__ = ()

    def expect(self, refs: Iterable[str], names: Iterable[str]) -> None:
        """Be told what is looked up next: where each lookup takes its time, take it once.

        :param refs: refs, and IDs that may be unknown
        :param names: names whose owners are asked for
        """

    def record_of(self, image_id: str) -> Record | None:
        """The record with this ID."""
        raise NotImplementedError

    def owner_of(self, name: str) -> str | None:
        """The ID of the image with this name."""
        raise NotImplementedError

    def ids_with_prefix(self, prefix: str) -> Sequence[str]:
        """The IDs that begin so, sorted."""
        raise NotImplementedError

    def ids_with_digest(self, digest: str) -> Sequence[str]:
        """The IDs of the images that have this digest."""
        raise NotImplementedError

    def with_digest(self, digest: str) -> Sequence[Record]:
        """The records of the images that have this digest."""
        return [self.find(image_id) for image_id in self.ids_with_digest(digest)]

    def records(self) -> Iterator[Record]:
        """All records, in the order of images.json."""
        raise NotImplementedError

    def find(self, ref: str) -> Record:
        """The record that the ref stands for.

        :raises ImageUnknownError: when there is none
        :raises AmbiguousImageError: when it is a prefix of several IDs
        """
        record = self.record_of(ref)
        if record is not None:
            return record
        owner = self.owner_of(ref) if ref else None
        record = self.record_of(owner or the_only(ref, self.ids_with_prefix(ref)))
        assert record is not None, "what is indexed is there"
        return record

    def get(self, ref: str) -> Image:
        """The image that the ref stands for (upstream: ``Get``).

        :raises ImageUnknownError: when there is none
        :raises AmbiguousImageError: when the ref is a prefix of several IDs
        """
        return self.find(ref).image

    def lookup(self, ref: str) -> str:
        """The full ID of the image that the ref stands for (upstream: ``Lookup``).

        :raises ImageUnknownError: when there is none
        :raises AmbiguousImageError: when the ref is a prefix of several IDs
        """
        return self.find(ref).id

    def by_digest(self, digest: str) -> list[Image]:
        """The images with this digest, their own or a manifest's (upstream: ``ByDigest``).

        :raises ImageUnknownError: when there is none
        :raises InvalidDigestError: when the digest is malformed
        """
        records = self.with_digest(check_digest(digest))
        if not records:
            raise ImageUnknownError(f"no image has the digest {digest}", ref=digest)
        return [record.image for record in records]

    def __contains__(self, ref: object) -> bool:
        try:
            return isinstance(ref, str) and bool(self.find(ref))
        except ImageUnknownError:
            return False

    def __iter__(self) -> Iterator[Image]:
        """All images, in the order of images.json."""
        return (record.image for record in self.records())

    @property
    def images(self) -> tuple[Image, ...]:
        """All images, in the order of images.json."""
        return tuple(self)

    def freeze(self) -> Snapshot:
        """All that can be looked up here, as it is now."""
        raise NotImplementedError


def the_only(ref: str, candidates: Sequence[str]) -> str:
    """The one ID that begins with a ref.

    :raises ImageUnknownError: when there is none
    :raises AmbiguousImageError: when there are several
    """
    if len(candidates) > 1:
        raise AmbiguousImageError(
            f"{ref!r} is a prefix of {len(candidates)} image IDs: give more of it",
            ref=ref,
            candidates=tuple(candidates),
        )
    if not candidates:
        raise ImageUnknownError(f"no image is known by {ref!r}", ref=ref)
    return candidates[0]


class Snapshot(View):
    """The store's images as one commit left them. Immutable; holding it keeps nothing locked.

    ``ref in snapshot``, ``len(snapshot)`` and iteration over :class:`Image` work as well.
    """

    __slots__ = (
        "_images",
        "blocks",
        "damaged",
        "indexes",
        "needs_save",
        "prefixes",
        "shadowed",
    )

    blocks: Mapping[int, Block]
    indexes: Indexes
    prefixes: Prefixes
    damaged: tuple[bytes, ...]
    shadowed: Mapping[str, tuple[Record, ...]]
    needs_save: bool

    def __init__(
        self,
        blocks: Mapping[int, Block],
        indexes: Indexes,
        prefixes: Prefixes,
        damaged: tuple[bytes, ...] = (),
        shadowed: Mapping[str, tuple[Record, ...]] | None = None,
        *,
        needs_save: bool = False,
    ) -> None:
        self.blocks = blocks
        self.indexes = indexes
        self.prefixes = prefixes
        self.damaged = damaged
        self.shadowed = shadowed or {}
        self.needs_save = needs_save
        self._images: tuple[Image, ...] | None = None

    def get(self, ref: str) -> Image:
        record = self.indexes.by_id.get(ref)
        if record is None:
            record = self.find(ref)
        return record._image or record.image

    def record_of(self, image_id: str) -> Record | None:
        return self.indexes.by_id.get(image_id)

    def owner_of(self, name: str) -> str | None:
        return self.indexes.by_name.get(name)

    def ids_with_prefix(self, prefix: str) -> Sequence[str]:
        return self.prefixes.find(prefix)

    def ids_with_digest(self, digest: str) -> Sequence[str]:
        return self.indexes.ids_with_digest(digest)

    def records(self) -> Iterator[Record]:
        known = self.indexes.by_id
        for block in self.blocks.values():
            for record in block.records:
                if known.get(record.id) is record:
                    yield record

    def __len__(self) -> int:
        return len(self.indexes.by_id)

    @property
    def are_images_decoded(self) -> bool:
        """Whether ``images`` costs nothing but memory."""
        return self._images is not None

    @property
    def images(self) -> tuple[Image, ...]:
        """All images; decodes those nobody has looked at yet."""
        if self._images is None:
            self._images = tuple(self)
        return self._images

    def freeze(self) -> Snapshot:
        return self

    def with_blocks(self, blocks: Mapping[int, Block], damaged: tuple[bytes, ...]) -> Snapshot:
        """The snapshot of other blocks, some of which may be this one's.

        What has not changed is not indexed again; unless two records claim one ID or name,
        where only the order of them all tells which of them counts.
        """
        if self.shadowed or self.needs_save or not self.blocks:
            return build(blocks, damaged)
        indexes = self.indexes.copy()
        gone = [self.blocks[home] for home in self.blocks.keys() - blocks.keys()]
        fresh = [blocks[home] for home in blocks if home not in self.blocks]
        for block in gone:
            for record in block.records:
                indexes.discard(record)
        for block in fresh:
            for record in block.records:
                if indexes.clashes(record):
                    return build(blocks, damaged)
                indexes.add(record)
        added = {record.id for block in fresh for record in block.records}
        removed = {record.id for block in gone for record in block.records}
        prefixes = self.prefixes.changed(added - removed, removed - added)
        return Snapshot(blocks, indexes, prefixes, damaged)


def build(blocks: Mapping[int, Block], damaged: tuple[bytes, ...]) -> Snapshot:
    """Index blocks from nothing, and settle which of several records with one ID or name counts.

    Of two with one ID the later does; the earlier stays where it is, for a later place in the
    file would make it the one that counts. Of two with one name the later keeps it.
    """
    by_id: dict[str, Record] = {}
    shadowed: dict[str, tuple[Record, ...]] = {}
    for block in patiently(blocks.values(), _BLOCKS_AT_ONCE):
        for record in block.records:
            if (earlier := by_id.get(record.id)) is not None:
                shadowed[record.id] = (*shadowed.get(record.id, ()), earlier)
            by_id[record.id] = record
    indexes = Indexes({}, {}, {})
    losers: dict[str, set[str]] = {}
    for block in patiently(blocks.values(), _BLOCKS_AT_ONCE):
        for record in block.records:
            if shadowed and by_id[record.id] is not record:
                continue
            for name in record.names:
                if (owner := indexes.by_name.get(name)) is not None:
                    losers.setdefault(owner, set()).add(name)
            indexes.add(record)
    prefixes = Prefixes.of(indexes.by_id)
    cured = _cure(blocks, indexes, losers) if losers else blocks
    return Snapshot(cured, indexes, prefixes, damaged, shadowed, needs_save=bool(losers))


def _cure(
    blocks: Mapping[int, Block], indexes: Indexes, losers: Mapping[str, set[str]]
) -> Mapping[int, Block]:
    """The blocks with the names gone from the records that lose them."""
    cured = dict(blocks)
    for image_id, lost in losers.items():
        record = indexes.by_id[image_id]
        without = without_names(record, lost).at(record.home)
        records = (without if r is record else r for r in cured[record.home].records)
        cured[record.home] = Block.of(records, record.home)
        indexes.by_id[image_id] = without
    return cured


def without_names(record: Record, lost: set[str]) -> Record:
    """The record with some of its names gone; they stay in its history."""
    edited = RecordDraft(record)
    edited.set("names", tuple(name for name in record.names if name not in lost))
    return edited.finish()


EMPTY = build({}, ())
