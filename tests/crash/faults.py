"""Failpoints: at each system call on a store's files, a change can fail or be killed.

Each call that the directory engine makes is a point. Running a change finds its points: only one
task makes it, so that its n-th call is the same in each run.
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
    **dict.fromkeys(("open", "read", "readv", "pread", "stat", "fstat", "listdir"), os),
    **dict.fromkeys(("writev", "posix_fadvise", "fsync"), os),
    **dict.fromkeys(("rename", "link", "unlink", "mkdir", "rmdir"), os),
    **dict.fromkeys(("fcntl", "flock"), fcntl),
}
"""The calls that are points, and the modules that have them."""

OUTSIDE = {
    "lock.py": "reads /proc",
    "mounts.py": "reads /proc",
    "output.py": "writes to what a caller has opened, which is outside the store",
    "podman.py": "reads the list of podman's layers, which is beside the store",
}
"""The modules that may open files without a failpoint, and why."""

NO_POINTS = {
    "close": "closes the descriptor even if it fails, and the data is synced before",
    "dup": "of an index that is read, in no change",
    "fdatasync": "between pieces, in a helper thread; tests/test_big_data.py makes it fail",
    "fsdecode": "no system call",
    "fsencode": "no system call",
    "fspath": "no system call",
    "geteuid": "cannot fail",
    "fchmod": "about a file of a caller, outside the store",
    "fstatvfs": "for the message of another failure; without it, the message says less",
    "getpid": "cannot fail",
    "isatty": "about a file of a caller, outside the store",
    "lseek": "to the start of a file that is open",
    "readlink": "reads /proc",
    "register_at_fork": "no system call",
    "set_blocking": "about a file of a caller, outside the store",
    "strerror": "no system call",
    "urandom": "cannot fail",
}
"""The other functions that the engine calls, and why they are no points."""

FAULTS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.EMFILE)
"""Without EINTR: Python makes an interrupted call again (PEP 475)."""

_readlink = os.readlink  # the original, which the guard against blocking replaces

BY_NAME = frozenset({"open", "stat", "rename", "link", "unlink", "mkdir", "rmdir", "fcntl"})
"""Calls that may lack permission (EACCES); the others are on files that are open already."""

ALLOCATING = frozenset({"writev", "fsync", "rename", "link", "mkdir"})


class Point(NamedTuple):
    """One call that a change makes.

    :ivar call: the name of the function
    :ivar kind: the kind of file that it is about
    :ivar allocates: whether it needs space on the disk
    """

    call: str
    kind: str
    allocates: bool = False

    @property
    def changes(self) -> bool:
        """Whether the call changes files."""
        return self.call in {"writev", "rename", "link", "unlink", "mkdir", "rmdir"} or (
            self.call == "open" and self.allocates
        )

    @property
    def group(self) -> object:
        """Calls of one group are alike: a usual run tries one of them for each change."""
        return self if self.changes or self.call == "fsync" else self.call

    def __str__(self) -> str:
        return f"{self.call} of {self.kind}"


@dataclass
class Failure:
    """What happens at a point.

    :ivar at: the number of the point; the first is 1
    :ivar code: the error; none if ``short`` or ``kills``
    :ivar short: whether the call writes half of its data instead
    :ivar stays: whether all points after it fail, too; ENOSPC, those that need space
    :ivar kills: whether the process dies before the call
    """

    at: int
    code: int = 0
    short: bool = False
    stays: bool = False
    kills: bool = False

    def hits(self, number: int, point: Point) -> bool:
        if self.stays and self.code == errno.ENOSPC:
            return number >= self.at and point.allocates
        return number == self.at or (self.stays and number > self.at)

    def __str__(self) -> str:
        what = "a short write" if self.short else errno.errorcode.get(self.code, "SIGKILL")
        return f"{what} {'from' if self.stays else 'at'} point {self.at}"


class Failpoints:
    """The points of a change, and a failure at one of them.

    :ivar passed: the points that were reached while :meth:`active`
    :ivar hit: those of them at which the failure happened
    """

    def __init__(self, path: Path, failure: Failure | None = None) -> None:
        self._path = str(path)
        self._failure = failure
        self.passed: list[Point] = []
        self.hit: list[Point] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        """Replace the calls for the block. Calls by modules outside the engine are not points."""
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
            # With the name, if the call got one, as in the error of a real call.
            names = [args[0]] if isinstance(args[0], str) else []
            raise OSError(failure.code, os.strerror(failure.code), *names)

        return call

    def _point(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Point:
        allocates = name in ALLOCATING
        if name == "open":
            allocates = bool(args[1] & os.O_CREAT) or args[1] & os.O_TMPFILE == os.O_TMPFILE
        path = path_of(name, args, kwargs)
        if name == "open" and not allocates:
            path = path.removesuffix("/.")
        return Point(name, self._kind(path), allocates)

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


def path_of(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return the path that a call is about; the new one of a rename or link."""
    target = args[1] if name in {"rename", "link"} else args[0]
    if isinstance(target, int):
        return _readlink(f"/proc/self/fd/{target}")
    directory = kwargs.get("dst_dir_fd", kwargs.get("dir_fd"))
    if directory is None:
        return str(target)
    return os.path.join(_readlink(f"/proc/self/fd/{directory}"), target)
