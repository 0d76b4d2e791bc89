"""Who waits for changes, and how the kernel tells that there may be some."""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from .._core.catalog import Catalog
from .._core.events import ChangeEvent, changes_between
from .._core.names import INDEX_FILE
from .files import Directory

if TYPE_CHECKING or sys.platform == "linux":
    from inotify_simple import INotify, flags

logger = logging.getLogger("aimagestore")

_INTERVAL = 1.0
"""Seconds between two looks where the kernel does not tell."""

_PENDING_MAX = 10_000
"""Changes kept for somebody who does not take them; beyond that only the last state counts."""


class Watched(Protocol):
    """The engine, as far as its watches need it."""

    checks_instantly: bool

    def load(self) -> Catalog:
        """The snapshot of the store as it is now."""
        ...

    def forget(self, watch: DirectoryWatch) -> None:
        """Tell this one no more."""
        ...


class DirectoryWatch:
    """What changes in a directory; see :class:`aimagestore._engine.protocol.Watch`.

    Commits of this process are told one by one by the engine. Those of others are found when the
    index is loaded, which the kernel gives the sign for: by then several may have become one.
    """

    def __init__(
        self,
        inotify: INotify | None,
        snapshot: Catalog,
        engine: Watched,
    ) -> None:
        self._engine = engine
        self._inotify = inotify
        self._mutex = threading.Lock()
        self._pending: list[ChangeEvent] = []
        # What the last look has seen, and what the engine has told since then.
        self._seen = self._latest = snapshot
        self._has_overflowed = False
        # Other machines' changes reach no kernel but their own.
        is_told = inotify is not None and engine.checks_instantly
        self.interval = math.inf if is_told else _INTERVAL

    def add(self, changes: Sequence[ChangeEvent], snapshot: Catalog) -> None:
        """Tell what has led to this snapshot, the next one of the store."""
        with self._mutex:
            self._latest = snapshot
            self._has_overflowed |= len(self._pending) + len(changes) > _PENDING_MAX
            if self._has_overflowed:
                self._pending = []
            else:
                self._pending += changes

    @property
    def descriptor(self) -> int | None:
        return None if self._inotify is None else self._inotify.fileno()

    def is_due(self) -> bool:
        if self._inotify is None:
            return True
        # An event without a name: some were lost, or the directory is gone.
        return any(event.name in {"", INDEX_FILE} for event in self._inotify.read(timeout=0))

    def changes(self) -> Sequence[ChangeEvent]:
        self._engine.load()
        with self._mutex:
            changes, self._pending = self._pending, []
            if self._has_overflowed:
                changes = changes_between(self._seen, self._latest)
            self._seen = self._latest
            self._has_overflowed = False
        return changes

    def close(self) -> None:
        self._engine.forget(self)
        if self._inotify is not None:
            self._inotify.close()


def open_inotify(root: Directory) -> INotify | None:
    """What tells of changes to the directory; ``None`` where nothing does."""
    if sys.platform != "linux":
        return None
    try:
        inotify = INotify(nonblocking=True)
        try:
            mask = flags.MOVED_TO | flags.CLOSE_WRITE | flags.DELETE | flags.DELETE_SELF
            inotify.add_watch(f"/proc/self/fd/{root.fd}", mask)
        except BaseException:
            inotify.close()
            raise
    except OSError as error:  # of its instances a user has 128, if nobody has allowed more
        logger.info("watching %s by looking every %s s: %s", root.path, _INTERVAL, error)
        return None
    return inotify
