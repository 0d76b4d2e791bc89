"""The tables as what can be looked up in: by readers, and by whoever holds the lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .._core.catalog import Catalog
from .._core.record import Record
from .._core.refs import id_in_ref
from .._core.view import View, resolve_prefix, unknown
from .cache import Cache
from .lookups import Execute, Found, Lookups


class OutdatedError(Exception):
    """Two lookups of one look were answered from different commits."""


class _TableView(View):
    """What both have in common: all of it can be loaded."""

    __slots__ = ("_lookups",)

    def __init__(self, execute: Execute) -> None:
        self._lookups = Lookups(execute)

    def freeze(self) -> Catalog:
        return Catalog.of(self.records())


class CommittedView(_TableView):
    """The store as it is now, for one look.

    :ivar version: the commit that the lookups so far were of; -1 before the first
    :raises OutdatedError: from a lookup, when there is another commit by now
    """

    __slots__ = ("_cache", "version")

    def __init__(self, execute: Execute, cache: Cache) -> None:
        super().__init__(execute)
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
            news = self._lookups.follow(known)
            self._cache.follow(known, news)
            record = self._cache.find(ref, news.version)
            if record is not None:
                self._accept(news.version)
                return Found(record, is_ambiguous=False, by_name=False)
        news, found = self._lookups.find(ref, known)
        self._accept(news.version)
        self._cache.follow(known, news)
        if found.record is not None and (found.by_name or found.record.id == ref):
            self._cache.add(news.version, found.record, ref if found.by_name else "")
        return found

    def find(self, ref: str) -> Record:
        found = self._find(ref)
        if found.record is not None:
            return found.record
        if found.is_ambiguous:
            # This raises, because all lookups of this view are answered from one commit.
            resolve_prefix(ref, self.ids_with_prefix(ref))
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

    def ids_with_prefix(self, prefix: str) -> Sequence[str]:
        ids = self._lookups.ids_with_prefix(prefix)
        if prefix:
            self._accept(self._lookups.version)
        return ids

    def ids_with_digest(self, digest: str) -> Sequence[str]:
        return [record.id for record in self.with_digest(digest)]

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
    """The store as it is, and stays, while its lock is held; nothing is asked for twice.

    :ivar version: its last commit
    """

    __slots__ = ("_owners", "_records", "version")

    def __init__(self, execute: Execute, version: int) -> None:
        super().__init__(execute)
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
        found = self._lookups.expected(ids, names)
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

    def ids_with_prefix(self, prefix: str) -> Sequence[str]:
        return self._lookups.ids_with_prefix(prefix)

    def ids_with_digest(self, digest: str) -> Sequence[str]:
        records = self._lookups.with_digest(digest)
        for record in records:
            self._note(record)
        return [record.id for record in records]

    def records(self) -> Iterator[Record]:
        for record in self._lookups.records():
            self._note(record)
            yield record
