"""The standard streams. What is written to them is written as a whole, or an error is raised.

They have no buffer, which could fail at the exit, when no message can be written any more. A file
of the store never gets the number of one that is closed.
"""

from __future__ import annotations

import errno
import io
import locale
import os
import select
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TextIO, TypeVar

from .exits import CommandError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer

STANDARD_INPUT, STANDARD_OUTPUT, STANDARD_ERROR = range(3)
_NAMES = ("standard input", "standard output", "standard error")

T = TypeVar("T")


def claim_standard_streams() -> None:
    """Make standard output and error write as a whole, and keep the numbers of closed streams."""
    for fd, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            # The next file to be opened would get the number. The null device, opened for the
            # wrong direction, takes it, and every use fails.
            os.open(os.devnull, flags)
    sys.stdout = _text(RawOutput(STANDARD_OUTPUT), sys.stdout)
    sys.stderr = _text(_Messages(STANDARD_ERROR), sys.stderr)


def _text(stream: io.RawIOBase, before: TextIO | None) -> TextIO:
    """Return a text stream that escapes characters that the locale does not have."""
    encoding = locale.getencoding() if before is None else before.encoding
    return io.TextIOWrapper(
        stream,  # type: ignore[type-var]
        encoding=encoding,
        errors="backslashreplace",
        newline="\n",
        write_through=True,
    )


class RawOutput(io.RawIOBase):
    """An open file. Each write writes all of its data, or raises an error."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: ReadableBuffer) -> int:
        try:
            write_whole(self._fd, data)
        except BrokenPipeError as error:
            # click would exit with a code of its own for a BrokenPipeError.
            raise CommandError(
                "the reader of standard output has closed it", ExitCode.UNREAD
            ) from error
        return len(memoryview(data))


class _Messages(RawOutput):
    """Standard error. Messages that cannot be written are lost."""

    def write(self, data: ReadableBuffer) -> int:
        try:
            return super().write(data)
        except (OSError, CommandError):
            return len(memoryview(data))


def check_output() -> None:
    """Check for errors that a file on a network file system reports only when it is closed.

    :raises OSError: with the name of the stream
    """
    with _named(STANDARD_OUTPUT, "writing"):
        os.close(os.dup(STANDARD_OUTPUT))


def write_whole(fd: int, data: ReadableBuffer) -> None:
    """Write all of the data, and wait even if the file is in non-blocking mode.

    :raises OSError: with the name of a standard stream
    """
    rest = memoryview(data).cast("B")
    while rest:
        with _named(fd, "writing"):
            rest = rest[_waited_for(fd, select.POLLOUT, partial(os.write, fd, rest)) :]


def read_some(fd: int, size: int) -> bytes:
    """Read at most ``size`` bytes, none at the end, and wait even in non-blocking mode.

    :raises OSError: with the name of a standard stream
    """
    with _named(fd, "reading"):
        return _waited_for(fd, select.POLLIN, partial(os.read, fd, size))


def _waited_for(fd: int, events: int, call: Callable[[], T]) -> T:
    while True:
        try:
            return call()
        except BlockingIOError:
            # Another process that shares the open file may have made it non-blocking.
            poll = select.poll()
            poll.register(fd, events)
            poll.poll()


@contextmanager
def _named(fd: int, use: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if fd >= len(_NAMES):
            raise
        error.filename = _NAMES[fd]
        if error.errno == errno.EBADF:
            error.strerror = f"closed, or not open for {use}"
        raise
