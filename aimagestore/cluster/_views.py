"""Views of the tables: for readers, and for the holder of the lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from uuid import UUID

from .._core.catalog import Catalog
from .._core.names import check_type
from .._core.record import Record
from .._core.refs import id_in_ref
from .._core.view import CANDIDATES_MAX, View, resolve_prefix, unknown
from ._cache import Cache
from ._history import History
from ._lookups import PAGE, Execute, Found, Lookups


class OutdatedError(Exception):
    """Two lookups of one view had results of different commits."""


class _TableView(View):
    """What both views have in common."""

    __slots__ = ("_lookups",)

    def __init__(self, execute: Execute, history: History) -> None:
        self._lookups = Lookups(execute, history)

    def known_ids(self, image_ids: Iterable[str]) -> set[str]:
        return {record.id for record in self._lookups.with_ids(list(image_ids))}

    def freeze(self) -> Catalog:
        return Catalog.of(self.records())


class CommittedView(_TableView):
    """The last commit, for the lookups of one call.

    :ivar version: the number of the commit that the lookups so far were of; -1 before the first
    :raises OutdatedError: from a lookup, when there is a newer commit
    """

    __slots__ = ("_cache", "version")

    def __init__(self, execute: Execute, history: History, cache: Cache) -> None:
        super().__init__(execute, history)
        self._cache = cache
        self.version = -1

    def _accept(self, version: int) -> None:
        if self.version not in {-1, version}:
            raise OutdatedError
        self.version = version

    def _find(self, ref: str) -> Found:
        if not ref:
            return Found(None, is_ambiguous=False, by_name=False)
        known = self._cache.version
        if self._cache.knows(ref):
            changes = self._lookups.changes_since(known)
            self._cache.apply(known, changes)
            record = self._cache.find(ref, changes.version)
            if record is not None:
                self._accept(changes.version)
                return Found(record, is_ambiguous=False, by_name=False)
        changes, found = self._lookups.find(ref, known)
        self._accept(changes.version)
        self._cache.apply(known, changes)
        if found.record is not None and (found.by_name or found.record.id == ref):
            self._cache.add(changes.version, found.record, ref if found.by_name else "")
        return found

    def find(self, ref: str) -> Record:
        check_type(ref, str, "a ref")
        found = self._find(ref)
        if found.record is not None:
            return found.record
        if found.is_ambiguous:
            # This raises: the prefix is ambiguous in this commit, and no other one is accepted.
            resolve_prefix(ref, self.ids_with_prefix(ref, CANDIDATES_MAX + 1))
        record = self.find_by_digest(ref) if ref else None
        if record is None:
            raise unknown(ref)
        return record

    def record_of(self, image_id: str) -> Record | None:
        record = self._find(image_id).record
        return record if record is not None and record.id == image_id else None

    def owner_of(self, name: str) -> str | None:
        owner = self._lookups.owner_of(name)
        self._accept(self._lookups.version)
        return owner

    def ids_with_prefix(self, prefix: str, limit: int) -> Sequence[str]:
        ids = self._lookups.ids_with_prefix(prefix, limit)
        if prefix:
            self._accept(self._lookups.version)
        return ids

    def ids_with_digest(self, digest: str) -> Sequence[str]:
        ids = self._lookups.ids_with_digest(digest)
        self._accept(self._lookups.version)
        return ids

    def with_digest(self, digest: str) -> Sequence[Record]:
        records = self._lookups.with_digest(digest)
        self._accept(self._lookups.version)
        return records

    def records(self) -> Iterator[Record]:
        for record in self._lookups.records():
            self._accept(self._lookups.version)
            yield record
        self._accept(self._lookups.version)


class LockedView(_TableView):
    """The last commit while its lock is held. Keeps what it has fetched.

    :ivar version: the number of that commit
    """

    __slots__ = ("_owners", "_records", "version")

    def __init__(self, execute: Execute, history: History, version: int) -> None:
        super().__init__(execute, history)
        self.version = version
        self._records: dict[str, Record | None] = {}
        self._owners: dict[str, str | None] = {}

    def prefetch(self, refs: Iterable[str], names: Iterable[str]) -> None:
        refs = set(refs)
        refs |= {image_id for ref in refs if (image_id := id_in_ref(ref)) is not None}
        ids = {ref for ref in refs if ref not in self._records}
        names = {name for name in (*ids, *names) if name not in self._owners}
        if not ids and not names:
            return
        found = self._lookups.prefetch(ids, names)
        self._records |= dict.fromkeys(ids)
        self._owners |= dict.fromkeys(names)
        for record in found:
            self._note(record)

    def _note(self, record: Record) -> None:
        self._records[record.id] = record
        self._owners |= dict.fromkeys(record.names, record.id)

    def record_of(self, image_id: str) -> Record | None:
        self.prefetch([image_id], ())
        return self._records[image_id]

    def owner_of(self, name: str) -> str | None:
        self.prefetch((), [name])
        return self._owners[name]

    def ids_with_prefix(self, prefix: str, limit: int) -> Sequence[str]:
        return self._lookups.ids_with_prefix(prefix, limit)

    def ids_with_digest(self, digest: str) -> Sequence[str]:
        ids = self._lookups.ids_with_digest(digest)
        # The caller looks up their records next, one by one. A digest that very many images have is
        # rare, and not worth the memory.
        if len(ids) <= PAGE:
            for record in self._lookups.with_ids([i for i in ids if i not in self._records]):
                self._note(record)
        return ids

    def with_digest(self, digest: str) -> Sequence[Record]:
        return list(self._lookups.with_ids(self._lookups.ids_with_digest(digest)))

    def condemned(self, blobs: Mapping[UUID, bool]) -> set[UUID]:
        """Return which of these objects a garbage collection has taken.

        :param blobs: the objects, and whether an item had each of them when it was chosen
        """
        return self._lookups.condemned(blobs)

    def records(self) -> Iterator[Record]:
        for record in self._lookups.records():
            self._note(record)
            yield record
