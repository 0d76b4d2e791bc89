"""A cache of the records that were read last and have not changed since."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from .._core.record import Record
from ._lookups import ChangesSince

# A decoded record takes about three times the bytes of its text, and the objects around it.
_FACTOR = 3
_BASE = 500


class Cache:
    """Records by ID, and by the names that they were found by; all of one commit. Thread-safe.

    :param size: the bytes that it may take, approximately
    """

    def __init__(self, size: int) -> None:
        self._room = size
        self._mutex = threading.Lock()
        self._version = -1
        self._records: OrderedDict[str, Record] = OrderedDict()
        # The IDs of records by the names that they were found by, none of which is an image's ID.
        self._names: dict[str, str] = {}

    @property
    def version(self) -> int:
        """The number of the commit that all records are of; -1 before the first."""
        return self._version

    def knows(self, ref: str) -> bool:
        """Return whether the ref would be found here if nothing has changed."""
        return ref in self._records or ref in self._names

    def find(self, ref: str, version: int) -> Record | None:
        """Return the record that the ref stands for, if the cache has it as of that commit."""
        with self._mutex:
            if version != self._version:
                return None
            image_id = ref if ref in self._records else self._names.get(ref, "")
            record = self._records.get(image_id)
            if record is not None:
                self._records.move_to_end(image_id)
            return record

    def apply(self, known: int, changes: ChangesSince) -> None:
        """Forget what has changed since the commit ``known``, and move to the last commit."""
        with self._mutex:
            if not known <= self._version < changes.version:
                return  # another thread was faster, or a standby is behind
            self._forget(changes.ids)
            self._version = changes.version

    def add(self, version: int, record: Record, name: str = "") -> None:
        """Keep a record as of that commit, if the cache is of the same.

        :param name: the name that it was found by, if any
        """
        with self._mutex:
            if self._version == version:
                self._keep(record)
                if name and record.id in self._records:  # it may be too large
                    self._names[name] = record.id

    def advance(
        self, known: int, version: int, changed: Iterable[tuple[str, Record | None]]
    ) -> None:
        """Move from the commit ``known`` to the next one, which this store has made."""
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
            self._names.pop(image_id, None)  # a new image may have a cached name as its ID

    def _drop(self, image_id: str) -> None:
        record = self._records.pop(image_id, None)
        if record is not None:
            self._room += _cost(record)
            for name in record.names:
                if self._names.get(name) == image_id:
                    del self._names[name]


def _cost(record: Record) -> int:
    return _FACTOR * len(record.raw) + _BASE
