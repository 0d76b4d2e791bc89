"""Collects the changes of a directory, of which the kernel notifies."""

from __future__ import annotations

import errno
import logging
import math
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from .._core.events import ChangeEvent
from .._core.names import INDEX_FILE
from .._engine.protocol import ChangeUnderWayError
from .._format.block_catalog import BlockCatalog
from ..errors import WatchExpiredError
from .files import Directory, is_crowded

if TYPE_CHECKING:
    from inotify_simple import INotify

logger = logging.getLogger("aimagestore")

_INTERVAL = 1.0
"""Seconds between two polls where the kernel does not notify."""

_PENDING_MAX = 10_000
"""Changes kept for a consumer that does not take them; with more, the feed expires."""


class FeedOwner(Protocol):
    """What a feed needs from the index whose changes it collects."""

    keeps_catalog: bool

    def load(self) -> BlockCatalog:
        """Return the last commit."""
        ...

    def forget(self, feed: DirectoryFeed) -> None:
        """Stop adding changes to a feed."""
        ...


class DirectoryFeed:
    """The changes of a directory; see :class:`aimagestore._engine.protocol.Feed`.

    The index adds commits of this store one by one. Commits of others are found when the index is
    loaded, after the kernel's notification: several of them may have become one change by then.

    :param inotify: notifies of changes in the directory; ``None`` if they have to be polled
    """

    def __init__(self, inotify: INotify | None, owner: FeedOwner) -> None:
        self._owner = owner
        self._inotify = inotify
        self._mutex = threading.Lock()
        self._pending: list[ChangeEvent] = []
        self._has_expired = False
        # The kernel does not notify of changes that other machines make on a network file system.
        is_notified = inotify is not None and owner.keeps_catalog
        self.interval = math.inf if is_notified else _INTERVAL

    def add(self, changes: Sequence[ChangeEvent]) -> None:
        """Add the changes of the next commit that was loaded."""
        with self._mutex:
            self._has_expired |= len(self._pending) + len(changes) > _PENDING_MAX
            if self._has_expired:
                self._pending = []
            else:
                self._pending += changes

    @property
    def descriptor(self) -> int | None:
        return None if self._inotify is None else self._inotify.fileno()

    def is_due(self) -> bool:
        if self._inotify is None:
            return True
        # An event has no name when others were lost, or when the directory was removed.
        return any(event.name in {"", INDEX_FILE} for event in self._inotify.read(timeout=0))

    def poll(self) -> Sequence[ChangeEvent]:
        try:
            self._owner.load()
        except ChangeUnderWayError:
            # Changes of earlier commits are returned first.
            if not self._pending:
                raise
        with self._mutex:
            changes, self._pending = self._pending, []
            if self._has_expired:
                raise WatchExpiredError(
                    f"more than {_PENDING_MAX:,} changes were pending: start another watch, and "
                    "read all images"
                )
        return changes

    def close(self) -> None:
        self._owner.forget(self)
        if self._inotify is not None:
            self._inotify.close()


def open_inotify(root: Directory) -> INotify | None:
    """Have the kernel notify of changes in a directory; return ``None`` where it cannot."""
    if sys.platform != "linux":
        return None
    from inotify_simple import INotify, flags  # noqa: PLC0415 (slow to import, and Linux only)

    try:
        inotify = INotify(nonblocking=True)
        try:
            mask = flags.MOVED_TO | flags.MOVED_FROM | flags.CLOSE_WRITE
            mask |= flags.DELETE | flags.DELETE_SELF | flags.MOVE_SELF
            inotify.add_watch(f"/proc/self/fd/{root.fd}", mask)
            if is_crowded(inotify.fileno()):
                raise OSError(errno.EMFILE, "the process has many files open")
        except BaseException:
            inotify.close()
            raise
    except OSError as error:  # a user has 128 instances, unless more are configured
        logger.info(
            "polling %s every %s s, because inotify failed: %s", root.path, _INTERVAL, error
        )
        return None
    return inotify
