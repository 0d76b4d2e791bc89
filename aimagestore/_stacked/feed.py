"""The changes of several stores, as those of one."""

from __future__ import annotations

import select
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial

from .._core.events import ChangeEvent, Kind
from .._core.image import Image
from .._core.view import View
from .._engine.protocol import ChangeUnderWayError, Engine, Feed
from .reading import reading
from .views import as_read_only

_Events = list[list[ChangeEvent]]

_PRESENT = object()
"""Stands for an image before its first event, where only its presence matters."""


class StackedFeed:
    """The changes of several stores; see :class:`aimagestore._engine.protocol.Feed`.

    A change in one store is a change of the whole only if no earlier store has the image. If an
    image is deleted in one store and a later store has it, the image has changed.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        self._feeds: list[Feed] = []
        # The events of each store that no poll has returned yet.
        self._events: _Events = [[] for _ in engines]
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        try:
            for engine in engines:
                with reading(engine):
                    self._feeds.append(engine.reader.watch())
        except BaseException:
            self.close()
            raise

    @property
    def interval(self) -> float:
        return min(feed.interval for feed in self._feeds)

    @property
    def descriptor(self) -> int | None:
        if self._epoll is None:
            return None
        descriptors = [d for feed in self._feeds if (d := feed.descriptor) is not None]
        for descriptor in descriptors:
            # Again each time: a feed may have another one, and the kernel drops those closed.
            with suppress(FileExistsError):
                self._epoll.register(descriptor, select.EPOLLIN)
        return self._epoll.fileno() if descriptors else None

    def is_due(self) -> bool:
        due = [feed.is_due() for feed in self._feeds]  # each reads its own notifications
        return any(due)

    def poll(self) -> Sequence[ChangeEvent]:
        self._collect()
        ids = {event.id for events in self._events for event in events}
        if not ids:
            return ()
        found = self._look_up(ids)
        # With the events since the lookup, the lookup is right for the stores without any.
        self._collect()
        taken = [[event for event in events if event.id in ids] for events in self._events]
        changes = list(_changes(taken, found))
        self._events = [[e for e in events if e.id not in ids] for events in self._events]
        return changes

    def _collect(self) -> None:
        """Poll all feeds.

        :raises ChangeUnderWayError: when there is no event but the half of another program's change
        """
        failure: ChangeUnderWayError | None = None
        for engine, feed, events in zip(self._engines, self._feeds, self._events, strict=True):
            try:
                with reading(engine):
                    events.extend(feed.poll())
            except ChangeUnderWayError as error:
                failure = error
        if failure is not None and not any(self._events):
            raise failure

    def _look_up(self, ids: set[str]) -> list[Mapping[str, Image]]:
        """Return, for each store, those of the images that have no event there."""
        found = []
        for engine, events in zip(self._engines, self._events, strict=True):
            rest = ids - {event.id for event in events}
            with reading(engine):
                found.append(engine.reader.read(partial(_images, ids=rest)))
        return found

    def close(self) -> None:
        with ExitStack() as stack:  # closes each, even if another cannot be closed
            if self._epoll is not None:
                stack.callback(self._epoll.close)
            for feed in self._feeds:
                stack.callback(feed.close)


def _images(view: View, ids: set[str]) -> Mapping[str, Image]:
    records = (view.record_of(image_id) for image_id in view.known_ids(ids))
    return {record.id: record.image for record in records if record is not None}


class _States:
    """One image in each store, in the order of the stores.

    :param images: ``None`` for a store that does not have it
    """

    def __init__(self, images: list[object | None]) -> None:
        self._images = images

    def seen(self) -> tuple[int, object] | None:
        """Return the number of the first store that has the image, and its image."""
        return next(((n, i) for n, i in enumerate(self._images) if i is not None), None)

    def change(self, event: ChangeEvent, number: int) -> ChangeEvent | None:
        """Apply the event of one store; return what it is for all of them together."""
        before = self.seen()
        self._images[number] = event.image
        after = self.seen()
        if after is None:
            return None if before is None else ChangeEvent("deleted", event.id)
        if before is not None and before[0] == after[0] != number:
            return None  # an earlier store hides it
        image = after[1]
        assert isinstance(image, Image), "the events of later stores were applied before"
        kind: Kind = "created" if before is None else "changed"
        return ChangeEvent(kind, event.id, as_read_only(image) if after[0] else image)


def _changes(taken: _Events, found: Sequence[Mapping[str, Image]]) -> Iterator[ChangeEvent]:
    """Iterate over what the events of all stores are for all of them together.

    :param taken: the events of each store
    :param found: for each store, the images that have no event there
    """
    first = [{event.id: event for event in reversed(events)} for events in taken]
    states: dict[str, _States] = {}
    for image_id in {event.id for events in taken for event in events}:
        images: list[object | None] = []
        for begun, present in zip(first, found, strict=True):
            event = begun.get(image_id)
            if event is None:
                images.append(present.get(image_id))
            else:
                images.append(None if event.kind == "created" else _PRESENT)
        states[image_id] = _States(images)
    # Later stores first, so that an image is known when it is not hidden any more.
    for number in reversed(range(len(taken))):
        for event in taken[number]:
            change = states[event.id].change(event, number)
            if change is not None:
                yield change
