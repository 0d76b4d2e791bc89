"""Failpoints: every system call on a store's files, to be counted, made to fail, or the last.

The points are found by running a change: each call that the directory engine makes is one. A
change is one task's, so that its n-th call is the same whenever it is run.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import aimagestore._directory

PACKAGE = os.path.dirname(aimagestore._directory.__file__)

CALLS: dict[str, Any] = {
    **dict.fromkeys(
        ("open", "read", "readv", "pread", "writev", "fsync", "stat", "fstat", "listdir"), os
    ),
    **dict.fromkeys(("rename", "link", "unlink", "mkdir", "rmdir"), os),
    **dict.fromkeys(("fcntl", "flock"), fcntl),
}
"""Each call that is a point, and the module whose function it is."""

OUTSIDE = {
    "lock.py": "reads /proc",
    "mounts.py": "reads /proc",
    "output.py": "writes to what a caller has opened, which is outside the store",
    "podman.py": "reads the list of podman's layers, which is beside the store",
}
"""Which modules open files past the failpoints, and why."""

NO_POINTS = {
    "close": "its descriptor is closed whatever it answers, and what matters is synced by then",
    "fsdecode": "no system call",
    "fspath": "no system call",
    "geteuid": "cannot fail",
    "fchmod": "about a file of a caller, outside the store",
    "getpid": "cannot fail",
    "isatty": "about a file of a caller, outside the store",
    "lseek": "to the start of a file that is open",
    "readlink": "reads /proc",
    "register_at_fork": "no system call",
    "set_blocking": "about a file of a caller, outside the store",
    "strerror": "no system call",
    "urandom": "cannot fail",
}
"""What else the engine calls, and why that is no point."""

FAULTS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.EMFILE)
"""EINTR is none of them: Python makes an interrupted call again (PEP 475)."""

_readlink = os.readlink  # the guard against blocking calls replaces it later

BY_NAME = frozenset({"open", "stat", "rename", "link", "unlink", "mkdir", "rmdir", "fcntl"})
"""Calls that can be refused (EACCES); the others are about files that are open already."""

ALLOCATING = frozenset({"writev", "fsync", "rename", "link", "mkdir"})


class Point(NamedTuple):
    """One call that a change makes.

    :ivar call: which function it calls
    :ivar kind: what kind of file it is about
    :ivar creates: whether it needs room on the disk
    """

    call: str
    kind: str
    creates: bool = False

    @property
    def changes(self) -> bool:
        """Whether the files are other ones after the call."""
        return self.call in {"writev", "rename", "link", "unlink", "mkdir", "rmdir"} or (
            self.call == "open" and self.creates
        )

    @property
    def group(self) -> object:
        """What a usual run tries once of each change: a call, if it writes on each kind of file."""
        return self if self.changes or self.call == "fsync" else self.call

    def __str__(self) -> str:
        return f"{self.call} of {self.kind}"


@dataclass
class Failure:
    """What happens at a point, the ``at``-th from 1; with ``stays``, at all that follow as well.

    A disk that is full (ENOSPC that stays) lets everything pass that takes no room.
    """

    at: int
    code: int = 0
    short: bool = False
    stays: bool = False
    kills: bool = False

    def hits(self, number: int, point: Point) -> bool:
        if self.stays and self.code == errno.ENOSPC:
            return number >= self.at and point.creates
        return number == self.at or (self.stays and number > self.at)

    def __str__(self) -> str:
        what = "a short write" if self.short else errno.errorcode.get(self.code, "SIGKILL")
        return f"{what} {'from' if self.stays else 'at'} point {self.at}"


class Failpoints:
    """The points that were passed while :meth:`active`, and what happened at one of them."""

    def __init__(self, path: Path, failure: Failure | None = None) -> None:
        self._path = str(path)
        self._failure = failure
        self.passed: list[Point] = []
        self.hit: list[Point] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        """Replace the calls, for the engine's own modules only."""
        real = {name: getattr(module, name) for name, module in CALLS.items()}
        for name, module in CALLS.items():
            setattr(module, name, self._wrap(name, real[name]))
        try:
            yield
        finally:
            for name, module in CALLS.items():
                setattr(module, name, real[name])

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not sys._getframe(1).f_code.co_filename.startswith(PACKAGE):
                return real(*args, **kwargs)
            point = self._point(name, args, kwargs)
            self.passed.append(point)
            failure = self._failure
            if failure is None or not failure.hits(len(self.passed), point):
                return real(*args, **kwargs)
            self.hit.append(point)
            if failure.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            if failure.short and name == "writev":
                return real(args[0], [args[1][0][: len(args[1][0]) // 2]])
            # As the real call: with the name it was given, if it was given one.
            names = [args[0]] if isinstance(args[0], str) else []
            raise OSError(failure.code, os.strerror(failure.code), *names)

        return call

    def _point(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Point:
        creates = name in ALLOCATING
        if name == "open":
            creates = bool(args[1] & os.O_CREAT) or args[1] & os.O_TMPFILE == os.O_TMPFILE
        path = place(name, args, kwargs)
        if name == "open" and not creates:
            path = path.removesuffix("/.")
        return Point(name, self._kind(path), creates)

    def _kind(self, path: str) -> str:
        if path == self._path:
            return "the root"
        if not path.startswith(self._path + "/"):
            return "a directory above"
        parts = path.removeprefix(self._path + "/").split("/")
        first = parts[0]
        if first == "." or first.startswith(("#", ".stage-")):
            return "staged data"
        if first.startswith(".new-images"):
            return "the next index"
        if first.startswith(".new-"):
            return "pending content"
        if first in {"images.json", "images.lock"}:
            return first.removesuffix(" (deleted)")
        return "an item" if len(parts) > 1 else "an image's directory"


def place(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The path that a call is about; of two the new one."""
    target = args[1] if name in {"rename", "link"} else args[0]
    if isinstance(target, int):
        return _readlink(f"/proc/self/fd/{target}")
    directory = kwargs.get("dst_dir_fd", kwargs.get("dir_fd"))
    if directory is None:
        return str(target)
    return os.path.join(_readlink(f"/proc/self/fd/{directory}"), target)
