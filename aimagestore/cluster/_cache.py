"""The records that were looked at last, as far as nobody has changed them since."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from .._core.record import Record
from .lookups import News

# A decoded record takes about three times its text, and something for being there.
_FACTOR = 3
_BASE = 500


class Cache:
    """Records by ID, and by the names that they were found by; all of one commit.

    Used by many threads.

    :param size: about how many bytes it may take
    """

    def __init__(self, size: int) -> None:
        self._room = size
        self._mutex = threading.Lock()
        self._version = -1
        self._records: OrderedDict[str, Record] = OrderedDict()
        # Names that records were found by: so no image has one of them for its ID.
        self._names: dict[str, str] = {}

    @property
    def version(self) -> int:
        """The commit that all of it is of; -1 where nothing was ever kept."""
        return self._version

    def knows(self, ref: str) -> bool:
        """Whether the ref could be found here, if nothing has changed."""
        return ref in self._records or ref in self._names

    def find(self, ref: str, version: int) -> Record | None:
        """The record that the ref stands for, if it is here as of that commit."""
        with self._mutex:
            if version != self._version:
                return None
            image_id = ref if ref in self._records else self._names.get(ref, "")
            record = self._records.get(image_id)
            if record is not None:
                self._records.move_to_end(image_id)
            return record

    def follow(self, known: int, news: News) -> None:
        """Forget what has changed since the commit ``known``, and be of the last one."""
        with self._mutex:
            if not known <= self._version < news.version:
                return  # another thread was faster, or a standby is behind
            self._forget(news.changed)
            self._version = news.version

    def add(self, version: int, record: Record, name: str = "") -> None:
        """Keep a record as of that commit, if all of the others are.

        :param name: what it was found by, if that was a name
        """
        with self._mutex:
            if self._version == version:
                self._keep(record)
                if name:
                    self._names[name] = record.id

    def advance(
        self, known: int, version: int, changed: Iterable[tuple[str, Record | None]]
    ) -> None:
        """Take over what a commit of this store's own has made of the one before it."""
        with self._mutex:
            if self._version != known:
                return
            self._version = version
            for image_id, record in changed:
                self._forget([image_id])
                if record is not None:
                    self._keep(record)

    def _keep(self, record: Record) -> None:
        self._drop(record.id)
        self._records[record.id] = record
        self._room -= _cost(record)
        while self._room < 0 and self._records:
            self._drop(next(iter(self._records)))

    def _forget(self, changed: Iterable[str] | None) -> None:
        for image_id in list(self._records) if changed is None else changed:
            self._drop(image_id)
            self._names.pop(image_id, None)  # for it may be an ID now

    def _drop(self, image_id: str) -> None:
        record = self._records.pop(image_id, None)
        if record is not None:
            self._room += _cost(record)
            for name in record.names:
                if self._names.get(name) == image_id:
                    del self._names[name]


def _cost(record: Record) -> int:
    return _FACTOR * len(record.raw) + _BASE
