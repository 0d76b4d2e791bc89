"""Reads a store and the additional ones as one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple, TypeVar

from .._core.catalog import Catalog
from .._core.image import Image
from .._core.view import View
from .._engine.protocol import Engine
from .feed import StackedFeed
from .reading import reading
from .views import (
    ReadOnlyCatalog,
    ReadOnlyView,
    StackedCatalog,
    StackedView,
    as_read_only,
    in_pages,
)

T = TypeVar("T")

_RETRIES = 5
"""How often all stores are read again because one changed while the others were read."""


class _Last(NamedTuple):
    """What was read last.

    :ivar catalogs: the catalogs of all stores
    :ivar additional: those of the additional stores, marked as read-only
    :ivar stacked: all of them together
    """

    catalogs: Sequence[Catalog]
    additional: Sequence[ReadOnlyCatalog]
    stacked: StackedCatalog


class StackedReader:
    """Reads several stores; see :class:`aimagestore._engine.protocol.Reader`.

    :param engines: the writable store, and the additional ones
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        self._readers = [engine.reader for engine in engines]
        self.keeps_catalog = all(reader.keeps_catalog for reader in self._readers)
        self._last: _Last | None = None

    def current(self) -> Catalog | None:
        catalogs: list[Catalog] = []
        for reader in self._readers:
            catalog = reader.current()
            if catalog is None:
                return None
            catalogs.append(catalog)
        return self._stacked(catalogs) if self._are_current(catalogs[:-1]) else None

    def _are_current(self, catalogs: Sequence[Catalog]) -> bool:
        """Return whether these are still the last commits.

        Then there was a moment at which all catalogs that were read were the last commits. So an
        image that moves from one store to another is found in one of them.
        """
        pairs = zip(self._readers, catalogs, strict=False)
        return all(reader.current() is catalog for reader, catalog in pairs)

    def _stacked(self, catalogs: Sequence[Catalog]) -> StackedCatalog:
        last = self._last
        if last is not None and all(map(operator.is_, last.catalogs, catalogs)):
            return last.stacked
        # The decoded records of an additional store are kept until it changes.
        kept = {} if last is None else {id(seen.catalog): seen for seen in last.additional}
        additional = [kept.get(id(each)) or ReadOnlyCatalog(each) for each in catalogs[1:]]
        stacked = StackedCatalog([catalogs[0], *additional])
        if self.keeps_catalog:
            self._last = _Last(catalogs, additional, stacked)
        return stacked

    def read(self, look: Callable[[View], T]) -> T:
        return look(self.snapshot()) if self.keeps_catalog else self._read(look, ())

    def _read(self, look: Callable[[View], T], views: tuple[View, ...]) -> T:
        """Call ``look`` with these views and those of the other stores."""
        number = len(views)
        if number == len(self._engines):
            return look(StackedView(views))

        def look_further(view: View) -> T:
            return self._read(look, (*views, ReadOnlyView(view) if number else view))

        with reading(self._engines[number]):
            return self._readers[number].read(look_further)

    def snapshot(self) -> Catalog:
        catalogs = self._catalogs()
        for _ in range(_RETRIES):
            if not self.keeps_catalog or self._are_current(catalogs):
                break
            catalogs = self._catalogs()
        return self._stacked(catalogs)

    def _catalogs(self) -> Sequence[Catalog]:
        catalogs: list[Catalog] = []
        for engine in self._engines:
            with reading(engine):
                catalogs.append(engine.reader.snapshot())
        return catalogs

    def pages(self, size: int) -> Iterator[list[Image]]:
        if self.keeps_catalog:
            return in_pages(self.snapshot(), size)
        return _Pages(self._engines, size)

    def refresh(self) -> bool:
        is_modified = False
        for engine in self._engines:
            with reading(engine):
                is_modified |= engine.reader.refresh()
        return is_modified

    def modified(self) -> bool:
        return any(reader.modified() for reader in self._readers)

    def touched_since(self, when: datetime) -> bool:
        return any(reader.touched_since(when) for reader in self._readers)

    def watch(self) -> StackedFeed:
        return StackedFeed(self._engines)


class _Pages(Iterator[list[Image]]):
    """The images of several stores in pages, where not all of them are in memory.

    If :func:`next` raises :exc:`ChangeUnderWayError`, it may be called again.
    """

    def __init__(self, engines: Sequence[Engine], size: int) -> None:
        self._engines = engines
        self._stores: list[Iterator[list[Image]]] = []
        for engine in engines:
            with reading(engine):
                self._stores.append(engine.reader.pages(size))
        # The store whose pages come now, and its page, until that is returned.
        self._number = 0
        self._page: list[Image] | None = None
        # The IDs that came already, or were hidden, and that a later store has as well.
        self._repeated: set[str] = set()

    def __next__(self) -> list[Image]:
        while True:
            if self._page is None:
                self._page = self._next_page()
            ids = [image.id for image in self._page]
            hidden = self._repeated | self._known(ids, self._engines[: self._number])
            repeated = self._known(ids, self._engines[self._number + 1 :])
            # An image that an earlier store loses meanwhile, and a later one has, comes once.
            self._repeated |= repeated
            images = [image for image in self._page if image.id not in hidden]
            self._page = None
            if images:
                return [as_read_only(image) for image in images] if self._number else images

    def _next_page(self) -> list[Image]:
        while self._number < len(self._stores):
            page = next(self._stores[self._number], None)
            if page is not None:
                return page
            self._number += 1
        raise StopIteration

    @staticmethod
    def _known(image_ids: Sequence[str], engines: Sequence[Engine]) -> set[str]:
        known: set[str] = set()
        for engine in engines:
            with reading(engine):
                known |= engine.reader.read(lambda view: view.known_ids(image_ids))
        return known
