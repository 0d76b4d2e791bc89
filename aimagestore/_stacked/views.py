"""Lookups in several stores at once, and in an additional store."""

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

_PAGE = 500
"""Records that are looked up in other stores in one call."""


class Stack(View):
    """Lookups in the views of several stores, of which an earlier one hides IDs of later ones.

    The names in a record are not hidden: podman lists them as each store has them.
    """

    __slots__ = ()

    @property
    def views(self) -> Sequence[View]:
        """The view of the writable store, then those of the additional stores in order."""
        raise NotImplementedError

    def _is_hidden(self, image_id: str, number: int) -> bool:
        return any(view.record_of(image_id) is not None for view in self.views[:number])

    def number_of(self, image_id: str) -> int:
        """Return the number of the first store that has an image, which at least one has."""
        return next(n for n, view in enumerate(self.views) if view.known_ids([image_id]))

    def prefetch(self, refs: Iterable[str], names: Iterable[str]) -> None:
        refs, names = list(refs), list(names)
        for view in self.views:
            view.prefetch(refs, names)

    def get(self, ref: str) -> Image:
        return self.find(ref).image  # Catalog.get() looks in the indexes of one store

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
            # If the image is hidden, an earlier store has it without this name.
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
            for page in in_pages(view.records(), _PAGE):
                hidden = self._hidden([record.id for record in page], number)
                yield from (record for record in page if record.id not in hidden)

    def _hidden(self, image_ids: Sequence[str], number: int) -> set[str]:
        """Return which of the images of a store are hidden by earlier ones."""
        return {i for view in self.views[:number] for i in view.known_ids(image_ids)}

    def is_damaged(self, image_id: str) -> bool:
        return self.views[0].is_damaged(image_id)

    def freeze(self) -> Catalog:
        return StackedCatalog([view.freeze() for view in self.views])


def in_pages(things: Iterable[T], size: int) -> Iterator[list[T]]:
    """Iterate over things, in lists of this length."""
    rest = iter(things)
    while page := list(islice(rest, size)):
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
        # The indexes are not merged, because that takes long for large stores.
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
    """Return the image as one of an additional store."""
    return msgspec.structs.replace(image, read_only=True)


class ReadOnlyView(View):
    """Lookups in the view of an additional store: the same records, marked as read-only."""

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
    """The records of one commit of an additional store, marked as read-only. Immutable.

    :ivar catalog: the same records as that store has them
    """

    __slots__ = ("_seen", "catalog")

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog.indexes, catalog.prefixes)
        self.catalog = catalog
        self._seen: dict[str, Record] = {}

    def _as_read_only(self, record: Record) -> Record:
        # Kept, so that each record is decoded only once.
        return self._seen.get(record.id) or self._seen.setdefault(record.id, record.as_read_only())

    def get(self, ref: str) -> Image:
        return self.find(ref).image  # Catalog.get() returns records as the store itself has them

    def record_of(self, image_id: str) -> Record | None:
        record = self.catalog.record_of(image_id)
        return None if record is None else self._as_read_only(record)

    def records(self) -> Iterator[Record]:
        return map(self._as_read_only, self.catalog.records())


class EngineView(View):
    """Lookups in a store, each in what is then its last commit."""

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
