"""The changes of several stores, as those of one."""

from __future__ import annotations

import select
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

from .._core.events import ChangeEvent, Kind
from .._core.image import Image
from .._core.view import View
from .._engine.protocol import ChangeUnderWayError, Engine, Feed
from .reading import reading
from .views import as_read_only

_Events = list[list[ChangeEvent]]

_PRESENT = object()
"""An image that nobody sees: it is changed before it is seen."""


class StackedFeed:
    """The changes of several stores; see :class:`aimagestore._engine.protocol.Feed`.

    What changes in one store is a change of the whole only if no earlier store has the image. An
    image that one store loses and a later one has is changed, and not deleted.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        self._feeds: list[Feed] = []
        # The changes of each store that are not worked out yet.
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
            # The kernel forgets a descriptor that is closed, as that of a lost session.
            with suppress(FileExistsError):
                self._epoll.register(descriptor, select.EPOLLIN)
        return self._epoll.fileno() if descriptors else None

    def is_due(self) -> bool:
        # All are asked: each takes the notifications that it has.
        return [feed.is_due() for feed in self._feeds].count(True) > 0

    def poll(self) -> Sequence[ChangeEvent]:
        self._collect()
        ids = {event.id for events in self._events for event in events}
        if not ids:
            return ()
        found = self._look_up(ids)
        # What came of these images before the lookup or since is worked out together, so that the
        # lookup is right for the stores in which nothing came.
        self._collect()
        taken = [[event for event in events if event.id in ids] for events in self._events]
        changes = list(_changes(taken, found))
        self._events = [[e for e in events if e.id not in ids] for events in self._events]
        return changes

    def _collect(self) -> None:
        """Poll all feeds.

        :raises ChangeUnderWayError: when nothing has changed but the half of a change
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
        """Return, for each store, the images that have not changed there."""
        found = []
        for engine, events in zip(self._engines, self._events, strict=True):
            rest = ids - {event.id for event in events}
            with reading(engine):
                found.append(engine.reader.read(partial(_images, ids=rest)))
        return found

    def close(self) -> None:
        for feed in self._feeds:
            feed.close()
        if self._epoll is not None:
            self._epoll.close()


def _images(view: View, ids: set[str]) -> Mapping[str, Image]:
    records = (view.record_of(image_id) for image_id in view.known_ids(ids))
    return {record.id: record.image for record in records if record is not None}


class _States:
    """Which stores have one image, the first of them first, as far as events were worked out."""

    def __init__(self, images: list[object | None]) -> None:
        self._images = images

    def seen(self) -> tuple[int, object] | None:
        """Return the store whose image is seen, and the image."""
        return next(((n, i) for n, i in enumerate(self._images) if i is not None), None)

    def change(self, event: ChangeEvent, number: int) -> ChangeEvent | None:
        """Return what the event of one store is for all of them together."""
        before = self.seen()
        self._images[number] = event.image
        after = self.seen()
        if after is None:
            return None if before is None else ChangeEvent("deleted", event.id)
        if before is not None and before[0] == after[0] != number:
            return None  # an earlier store hides it
        image = after[1]
        assert isinstance(image, Image), "later stores were worked out before"
        kind: Kind = "created" if before is None else "changed"
        return ChangeEvent(kind, event.id, as_read_only(image) if after[0] else image)


def _changes(taken: _Events, found: Sequence[Mapping[str, Image]]) -> Iterator[ChangeEvent]:
    """Work out what the events of all stores amount to.

    :param taken: the events of each store
    :param found: the images of each store that has no events of them
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
    # Later stores first: an image that comes to be seen in one is then known.
    for number in reversed(range(len(taken))):
        for event in taken[number]:
            change = states[event.id].change(event, number)
            if change is not None:
                yield change
