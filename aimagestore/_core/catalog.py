"""The catalog: an immutable index of the records of one commit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from .image import Image
from .record import Record
from .view import View


class Prefixes:
    """An index of IDs by prefix: sorted lists by the first characters of the IDs. Immutable."""

    _HEAD = 2

    __slots__ = ("_buckets",)

    def __init__(self, buckets: dict[str, list[str]]) -> None:
        self._buckets = buckets

    @classmethod
    def of(cls, ids: Iterable[str]) -> Prefixes:
        """Index the IDs, in short lists because sorting one does not release the GIL."""
        buckets: dict[str, list[str]] = {}
        for image_id in ids:
            buckets.setdefault(image_id[: cls._HEAD], []).append(image_id)
        for bucket in buckets.values():
            bucket.sort()
        return cls(buckets)

    def changed(self, added: Iterable[str], removed: Iterable[str]) -> Prefixes:
        """Return an index with some IDs added and others removed."""
        buckets = self._buckets.copy()
        removed = frozenset(removed)
        added_by_head: dict[str, list[str]] = {image_id[: self._HEAD]: [] for image_id in removed}
        for image_id in added:
            added_by_head.setdefault(image_id[: self._HEAD], []).append(image_id)
        for head, new in added_by_head.items():
            kept = [i for i in buckets.pop(head, ()) if i not in removed]
            if bucket := sorted(kept + new):
                buckets[head] = bucket
        return Prefixes(buckets)

    def find(self, prefix: str) -> list[str]:
        """Return the IDs that begin with the prefix, sorted; none for the empty prefix."""
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


class Indexes(msgspec.Struct, frozen=True, eq=False):
    """Records by ID, name and digest. Those of a catalog never change: copies share parts of them.

    :ivar by_id: the records; those added last come last
    :ivar by_name: the ID of the image with a name
    :ivar by_digest: the ID of the image with a digest; a dict of IDs where several have it
    :ivar own: the digests whose dict is not shared with another catalog
    """

    by_id: dict[str, Record]
    by_name: dict[str, str]
    by_digest: dict[str, str | dict[str, None]]
    own: set[str]

    @classmethod
    def empty(cls) -> Indexes:
        """Return indexes without records."""
        return cls({}, {}, {}, set())

    def copy(self, *, shares_names: bool = False, shares_digests: bool = False) -> Indexes:
        """Return a copy to change for the next catalog.

        :param shares_names: whether names will not change, so that their table can be shared
        :param shares_digests: whether digests will not change
        """
        return Indexes(
            self.by_id.copy(),
            self.by_name if shares_names else self.by_name.copy(),
            self.by_digest if shares_digests else self.by_digest.copy(),
            set(),
        )

    def add(self, record: Record) -> None:
        """Index a record by its ID, names and digests."""
        self.by_id[record.id] = record
        for name in record.names:
            self.by_name[name] = record.id
        for digest in record.digests:
            if digest in self.by_digest:
                self._own_ids(digest)[record.id] = None
            else:
                self.by_digest[digest] = record.id

    def discard(self, record: Record) -> None:
        """Remove a record that is indexed."""
        del self.by_id[record.id]
        for name in record.names:
            if self.by_name.get(name) == record.id:
                del self.by_name[name]
        for digest in record.digests:
            ids = self._own_ids(digest)
            ids.pop(record.id, None)
            if not ids:
                del self.by_digest[digest]

    def _own_ids(self, digest: str) -> dict[str, None]:
        """Return the IDs with this digest in a dict that may be changed: a shared one is copied."""
        ids = self.by_digest.get(digest, {})
        if digest not in self.own or isinstance(ids, str):
            ids = {ids: None} if isinstance(ids, str) else ids.copy()
            self.by_digest[digest] = ids
            self.own.add(digest)
        return ids

    def ids_with_digest(self, digest: str) -> tuple[str, ...]:
        """Return the IDs of the images that have this digest."""
        ids = self.by_digest.get(digest, ())
        return (ids,) if isinstance(ids, str) else tuple(ids)

    def set_ids(self, digest: str, ids: Sequence[str]) -> None:
        """Set which images have this digest."""
        if not ids:
            self.by_digest.pop(digest, None)
        else:
            self.by_digest[digest] = ids[0] if len(ids) == 1 else dict.fromkeys(ids)

    def conflicts_with(self, record: Record) -> bool:
        """Return whether another record has this one's ID or one of its names."""
        return record.id in self.by_id or not self.by_name.keys().isdisjoint(record.names)


class Catalog(View):
    """The records of one commit, indexed by ID, name, digest and prefix. Immutable."""

    __slots__ = ("_images", "indexes", "prefixes")

    indexes: Indexes
    prefixes: Prefixes

    def __init__(self, indexes: Indexes, prefixes: Prefixes) -> None:
        self.indexes = indexes
        self.prefixes = prefixes
        self._images: tuple[Image, ...] | None = None

    @classmethod
    def of(cls, records: Iterable[Record]) -> Catalog:
        """Index records that share no ID and no name, in their order."""
        indexes = Indexes.empty()
        for record in records:
            indexes.add(record)
        return Catalog(indexes, Prefixes.of(indexes.by_id))

    def get(self, ref: str) -> Image:
        # The most frequent call of all, so it avoids further calls for a whole ID and for a name.
        by_id = self.indexes.by_id
        record = by_id.get(ref)
        if record is None and ref:
            record = by_id.get(self.indexes.by_name.get(ref, ""))
        if record is None:
            record = self.find(ref)
        return record._image or record.image

    def record_of(self, image_id: str) -> Record | None:
        return self.indexes.by_id.get(image_id)

    def known_ids(self, image_ids: Iterable[str]) -> set[str]:
        return {image_id for image_id in image_ids if image_id in self.indexes.by_id}

    def owner_of(self, name: str) -> str | None:
        return self.indexes.by_name.get(name)

    def ids_with_prefix(self, prefix: str, limit: int) -> Sequence[str]:
        return self.prefixes.find(prefix)[:limit]

    def ids_with_digest(self, digest: str) -> Sequence[str]:
        return self.indexes.ids_with_digest(digest)

    def records(self) -> Iterator[Record]:
        return iter(self.indexes.by_id.values())

    def records_not_in(self, other: Catalog) -> Iterator[Record]:
        """Iterate over the records that the other catalog may not have, in order."""
        return (r for r in self.records() if other.record_of(r.id) is not r)

    def __len__(self) -> int:
        return len(self.indexes.by_id)

    @property
    def images(self) -> tuple[Image, ...]:
        """All images, in the order of images.json. Records are decoded on the first access."""
        if self._images is None:
            self._images = tuple(self)
        return self._images

    def freeze(self) -> Catalog:
        return self
