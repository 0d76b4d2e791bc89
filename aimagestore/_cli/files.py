"""Reads and writes files, pipes and standard streams in chunks, off the event loop.

A pipe can keep a read or a write waiting for ever: a cancelled one is left to its thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from anyio import CancelScope, to_thread

from .._async.loop import EventLoop
from .._async.threads import Threads
from .._directory.output import Output, open_output
from .._engine.workers import WorkerPool
from .streams import STANDARD_INPUT, STANDARD_OUTPUT, RawOutput, read_some

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

    :ivar size: its length in bytes; ``None`` for anything but a regular file
    :ivar is_terminal: whether it is a terminal
    """

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        found = os.fstat(fd)
        self.size = found.st_size if stat.S_ISREG(found.st_mode) else None
        self.is_terminal = os.isatty(fd)

    async def read(self, n: int) -> bytes:
        """Return at most ``n`` bytes; no bytes at the end.

        :raises OSError: with the path of the file, or the name of the stream
        """
        try:
            return await _wait(lambda: read_some(self._fd, n))
        except OSError as error:
            if error.filename is None:
                error.filename = self._path
            raise


class Sink:
    """An open file to write.

    :ivar is_terminal: whether it is a terminal
    """

    def __init__(self, output: Output, threads: Threads, *, is_terminal: bool) -> None:
        self._output = output
        self._threads = threads
        self.is_terminal = is_terminal

    async def write(self, data: bytes) -> None:
        """Write all of it."""
        await self._threads.run(self._output.write, data, interrupt=self._output.stop)


@asynccontextmanager
async def reading(file: str) -> AsyncIterator[Source]:
    """Open a file to read; ``-`` is standard input."""
    if file == STANDARD:
        yield Source(STANDARD_INPUT, file)
        return
    fd = await _wait(lambda: os.open(file, os.O_RDONLY))
    try:
        yield Source(fd, file)
    finally:
        await _finish(lambda: os.close(fd))


@asynccontextmanager
async def writing(file: str) -> AsyncIterator[Sink]:
    """Open a file to write; ``-`` is standard output.

    A file replaces what has its name when the block ends. If the block fails, nothing is left of
    it. Devices and pipes are written to as they are.
    """
    target: Any = RawOutput(STANDARD_OUTPUT) if file == STANDARD else file
    threads = Threads(EventLoop())
    helpers = WorkerPool(1, "aimagestore helper")
    try:
        output = await threads.run_while_wanted(
            lambda check: open_output(target, helpers, check), dispose=lambda output: output.close()
        )
        try:
            yield Sink(output, threads, is_terminal=await is_terminal(file, writes=True))
            await threads.run(output.finish, interrupt=output.stop)
            await threads.run_shielded(output.commit)
        finally:
            await threads.run_shielded(output.close)
    finally:
        helpers.shutdown()
        threads.when_idle(threads.shutdown)


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
