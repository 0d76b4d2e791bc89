"""Lookups in several stores at once, and in one that is only read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import msgspec

from .._core.catalog import Catalog
from .._core.image import Image
from .._core.record import Record
from .._core.view import View
from .._engine.protocol import Engine
from .reading import reading

T = TypeVar("T")

PAGE = 500
"""Records that are looked up in other stores in one go."""


class Stack(View):
    """Lookups in the views of several stores, of which an earlier one hides what later ones have.

    Names are not hidden in the records: podman lists them as each store has them.
    """

    __slots__ = ()

    @property
    def views(self) -> Sequence[View]:
        """The view of the writable store, then those of the additional stores in order."""
        raise NotImplementedError

    def _is_hidden(self, image_id: str, number: int) -> bool:
        return any(view.record_of(image_id) is not None for view in self.views[:number])

    def number_of(self, image_id: str) -> int:
        """Return the number of the store that has an image, which is there."""
        return next(n for n, view in enumerate(self.views) if view.known_ids([image_id]))

    def prefetch(self, refs: Iterable[str], names: Iterable[str]) -> None:
        refs, names = list(refs), list(names)
        for view in self.views:
            view.prefetch(refs, names)

    def get(self, ref: str) -> Image:
        return self.find(ref).image

    def record_of(self, image_id: str) -> Record | None:
        for view in self.views:
            record = view.record_of(image_id)
            if record is not None:
                return record
        return None

    def known_ids(self, image_ids: Iterable[str]) -> set[str]:
        wanted = set(image_ids)
        known: set[str] = set()
        for view in self.views:
            known |= view.known_ids(wanted - known)
        return known

    def owner_of(self, name: str) -> str | None:
        for number, view in enumerate(self.views):
            owner = view.owner_of(name)
            # Hidden, the image has lost the name in the store that has copied it.
            if owner is not None and not self._is_hidden(owner, number):
                return owner
        return None

    def ids_with_prefix(self, prefix: str, limit: int) -> Sequence[str]:
        # As in containers/storage, the first store that has such an ID decides.
        found = (view.ids_with_prefix(prefix, limit) for view in self.views)
        return next((ids for ids in found if ids), ())

    def ids_with_digest(self, digest: str) -> Sequence[str]:
        return [
            image_id
            for number, view in enumerate(self.views)
            for image_id in view.ids_with_digest(digest)
            if not self._is_hidden(image_id, number)
        ]

    def with_digest(self, digest: str) -> Sequence[Record]:
        return [
            record
            for number, view in enumerate(self.views)
            for record in view.with_digest(digest)
            if not self._is_hidden(record.id, number)
        ]

    def records(self) -> Iterator[Record]:
        own, *additional = self.views
        yield from own.records()
        for number, view in enumerate(additional, 1):
            for page in _pages(view.records()):
                hidden = self._hidden([record.id for record in page], number)
                yield from (record for record in page if record.id not in hidden)

    def _hidden(self, image_ids: Sequence[str], number: int) -> set[str]:
        return {i for view in self.views[:number] for i in view.known_ids(image_ids)}

    def is_damaged(self, image_id: str) -> bool:
        return self.views[0].is_damaged(image_id)

    def freeze(self) -> Catalog:
        return StackedCatalog([view.freeze() for view in self.views])


def _pages(records: Iterator[Record]) -> Iterator[list[Record]]:
    while page := list(islice(records, PAGE)):
        yield page


class StackedView(Stack):
    """Lookups in the views of several stores, during one call."""

    __slots__ = ("_views",)

    def __init__(self, views: Sequence[View]) -> None:
        self._views = views

    @property
    def views(self) -> Sequence[View]:
        return self._views


class StackedCatalog(Stack, Catalog):
    """The records of one commit of each of several stores. Immutable."""

    __slots__ = ("_length", "_views")

    def __init__(self, catalogs: Sequence[Catalog]) -> None:
        # The indexes stay where they are: to merge those of large stores would take long.
        self._images = None
        self._views = catalogs
        self._length: int | None = None

    @property
    def views(self) -> Sequence[Catalog]:
        return self._views

    def __len__(self) -> int:
        if self._length is None:
            own, *additional = self._views
            self._length = len(own) + sum(
                len(catalog) - len(self._hidden(list(catalog.indexes.by_id), number))
                for number, catalog in enumerate(additional, 1)
            )
        return self._length

    def freeze(self) -> Catalog:
        return self


def as_read_only(image: Image) -> Image:
    """Return an image as one that is seen in an additional store."""
    return msgspec.structs.replace(image, read_only=True)


class ReadOnlyView(View):
    """Lookups in the view of an additional store: the same records, said to be read-only."""

    __slots__ = ("_view",)

    def __init__(self, view: View) -> None:
        self._view = view

    def record_of(self, image_id: str) -> Record | None:
        record = self._view.record_of(image_id)
        return None if record is None else record.as_read_only()

    def known_ids(self, image_ids: Iterable[str]) -> set[str]:
        return self._view.known_ids(image_ids)

    def owner_of(self, name: str) -> str | None:
        return self._view.owner_of(name)

    def ids_with_prefix(self, prefix: str, limit: int) -> Sequence[str]:
        return self._view.ids_with_prefix(prefix, limit)

    def ids_with_digest(self, digest: str) -> Sequence[str]:
        return self._view.ids_with_digest(digest)

    def with_digest(self, digest: str) -> Sequence[Record]:
        return [record.as_read_only() for record in self._view.with_digest(digest)]

    def records(self) -> Iterator[Record]:
        return (record.as_read_only() for record in self._view.records())

    def freeze(self) -> Catalog:
        return ReadOnlyCatalog(self._view.freeze())


class ReadOnlyCatalog(Catalog):
    """The records of one commit of an additional store, said to be read-only. Immutable.

    :ivar catalog: the same records as that store has them
    """

    __slots__ = ("_seen", "catalog")

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog.indexes, catalog.prefixes)
        self.catalog = catalog
        self._seen: dict[str, Record] = {}

    def _as_read_only(self, record: Record) -> Record:
        # Kept, so that each is decoded once.
        return self._seen.get(record.id) or self._seen.setdefault(record.id, record.as_read_only())

    def get(self, ref: str) -> Image:
        return self.find(ref).image

    def record_of(self, image_id: str) -> Record | None:
        record = self.catalog.record_of(image_id)
        return None if record is None else self._as_read_only(record)

    def records(self) -> Iterator[Record]:
        return map(self._as_read_only, self.catalog.records())


class EngineView(View):
    """Lookups in the last commit of a store, each by a read of its own."""

    __slots__ = ("_engine",)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def _read(self, look: Callable[[View], T]) -> T:
        with reading(self._engine):
            return self._engine.reader.read(look)

    def record_of(self, image_id: str) -> Record | None:
        return self._read(lambda view: view.record_of(image_id))

    def known_ids(self, image_ids: Iterable[str]) -> set[str]:
        wanted = list(image_ids)
        return self._read(lambda view: view.known_ids(wanted))

    def owner_of(self, name: str) -> str | None:
        return self._read(lambda view: view.owner_of(name))

    def ids_with_prefix(self, prefix: str, limit: int) -> Sequence[str]:
        return self._read(lambda view: view.ids_with_prefix(prefix, limit))

    def ids_with_digest(self, digest: str) -> Sequence[str]:
        return self._read(lambda view: view.ids_with_digest(digest))

    def with_digest(self, digest: str) -> Sequence[Record]:
        return self._read(lambda view: view.with_digest(digest))

    def records(self) -> Iterator[Record]:
        return self.freeze().records()

    def freeze(self) -> Catalog:
        with reading(self._engine):
            return self._engine.reader.snapshot()
