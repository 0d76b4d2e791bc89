"""System calls that fail, and writers that die at a chosen point."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

# Commits one replaced item and dies at the rename of its file, which is the second rename.
_DIES_AFTER_COMMIT = """
import os, sys, anyio
from aimagestore import ImageStore
real, renames = os.rename, []
def rename(*args, **kwargs):
    renames.append(args)
    if len(renames) == 2:
        os.kill(os.getpid(), 9)
    return real(*args, **kwargs)
os.rename = rename
async def main():
    async with ImageStore(sys.argv[1]) as store:
        await store.set_big_data("one", "manifest", b"new content")
anyio.run(main)
"""


async def die_after_commit(path: Path) -> None:
    """Replace item ``manifest`` of image ``one`` in a process that dies before its last rename."""
    await die(_DIES_AFTER_COMMIT, path)


async def die(code: str, *arguments: object) -> None:
    """Run code in a process that has to end by SIGKILL."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = await anyio.run_process(command, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()


class Faults:
    """Makes system calls of the library fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    @contextmanager
    def fail(self, name: str, code: int, when: Callable[[int], bool]) -> Iterator[list[int]]:
        """Make a function of ``os`` fail in a block; yield the numbers of its calls, from 1.

        :param code: the number of the error
        :param when: returns whether a call fails, given its number
        """

        def is_due(number: int, *_: Any, **__: Any) -> bool:
            return when(number)

        with self.fail_call(name, code, is_due) as calls:
            yield calls

    @contextmanager
    def fail_call(self, name: str, code: int, when: Callable[..., bool]) -> Iterator[list[int]]:
        """Do the same as :meth:`fail`, with ``when`` given the call's arguments as well."""
        real = getattr(os, name)
        calls: list[int] = []

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(len(calls) + 1)
            if when(calls[-1], *args, **kwargs):
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        with self._monkeypatch.context() as patch:
            patch.setattr(os, name, call)
            yield calls
