"""Files, pipes and standard streams, read and written in chunks without holding the loop.

A pipe can keep a read or write waiting for ever: cancelled, it is left to its thread.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from anyio import CancelScope, to_thread

from .streams import STANDARD_INPUT, STANDARD_OUTPUT, read_some, write_whole

STANDARD = "-"
CHUNK = 1024 * 1024

T = TypeVar("T")


async def _wait(call: Callable[[], T]) -> T:
    return await to_thread.run_sync(call, abandon_on_cancel=True)


async def _finish(call: Callable[[], T]) -> T:
    with CancelScope(shield=True):
        return await to_thread.run_sync(call)
    raise AssertionError("for type checkers")  # pragma: no cover


class Source:
    """An open file to read.

    :ivar size: its length in bytes; ``None`` for what is no regular file
    :ivar is_terminal: whether it is one
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        found = os.fstat(fd)
        self.size = found.st_size if stat.S_ISREG(found.st_mode) else None
        self.is_terminal = os.isatty(fd)

    async def read(self, n: int) -> bytes:
        """Read up to ``n`` bytes; none at the end."""
        return await _wait(lambda: read_some(self._fd, n))


class Sink:
    """An open file to write.

    :ivar is_terminal: whether it is a terminal
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.is_terminal = os.isatty(fd)

    async def write(self, data: bytes) -> None:
        """Write all of it."""
        await _wait(lambda: write_whole(self._fd, data))


@asynccontextmanager
async def reading(file: str) -> AsyncIterator[Source]:
    """A file to read; ``-`` is standard input."""
    if file == STANDARD:
        yield Source(STANDARD_INPUT)
        return
    fd = await _wait(lambda: os.open(file, os.O_RDONLY))
    try:
        yield Source(fd)
    finally:
        await _finish(lambda: os.close(fd))


@asynccontextmanager
async def writing(file: str) -> AsyncIterator[Sink]:
    """A file to write; ``-`` is standard output.

    It takes the place of what was there when the block ends, whole; nothing is left of it when
    the block fails. Devices and pipes are written to as they are.
    """
    if file == STANDARD:
        yield Sink(STANDARD_OUTPUT)
    elif await to_thread.run_sync(_is_special, file):
        fd = await _wait(lambda: os.open(file, os.O_WRONLY))
        try:
            yield Sink(fd)
        finally:
            await _finish(lambda: os.close(fd))
    else:
        async with _replacing(file) as sink:
            yield sink


async def is_terminal(file: str, *, writes: bool) -> bool:
    """Return whether a file to read or to write is a terminal."""
    if file == STANDARD:
        return os.isatty(STANDARD_OUTPUT if writes else STANDARD_INPUT)
    return await to_thread.run_sync(_leads_to_terminal, file)


def _leads_to_terminal(file: str) -> bool:
    try:
        if not stat.S_ISCHR(os.stat(file).st_mode):
            return False
        fd = os.open(file, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return os.isatty(fd)
    finally:
        os.close(fd)


def _is_special(file: str) -> bool:
    return os.path.exists(file) and not os.path.isfile(file)


@asynccontextmanager
async def _replacing(file: str) -> AsyncIterator[Sink]:
    # A link stays, and what it leads to is replaced.
    target = await to_thread.run_sync(os.path.realpath, file)
    temporary = os.path.join(os.path.dirname(target), f".aimagestore-{secrets.token_hex(8)}")
    fd = await _finish(lambda: _create(temporary, target))
    try:
        yield Sink(fd)
        await to_thread.run_sync(os.fsync, fd)
        await _finish(lambda: os.rename(temporary, target))
    except BaseException:
        await _finish(lambda: os.unlink(temporary))
        raise
    finally:
        await _finish(lambda: os.close(fd))


def _create(temporary: str, target: str) -> int:
    """Make a file with the permissions of the one that it will replace."""
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    if os.path.exists(target):
        os.fchmod(fd, stat.S_IMODE(os.stat(target).st_mode))
    return fd
