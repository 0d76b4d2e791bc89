"""Processor-bound work, to be counted: ``python -m benchmarks.work ROW TIMES DIR``.

The count of a row is that of TIMES repetitions minus that of no repetition in another process.
"""

from __future__ import annotations

import gc
import os
import runpy
import sys
from collections.abc import Awaitable, Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from .images import identity, image_store, name, sample
from .peer import new_metadata

if TYPE_CHECKING:
    from aimagestore import ImageStore

SIZE = 1_000
"""Images in the store."""


def _import(root: str, times: int) -> None:
    if times:
        import aimagestore  # noqa: F401


def _command(arguments: list[str], root: str, times: int) -> None:
    sys.argv = ["aimagestore", *(argument.format(root=root) for argument in arguments)]
    for _ in range(times):
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            try:
                runpy.run_module("aimagestore", run_name="__main__")
            except SystemExit as end:
                if end.code:
                    raise


def _in_loop(work: Callable[[str, int], Awaitable[None]], root: str, times: int) -> None:
    gc.disable()
    anyio.run(work, root, times)


def _on_store(
    work: Callable[[ImageStore, int], Awaitable[None]],
) -> Callable[[str, int], None]:
    async def run(root: str, times: int) -> None:
        from aimagestore import ImageStore

        async with ImageStore(root) as store:
            await store.snapshot()
            # So that what happens only once is not counted.
            await store.get(identity(0))
            await store.set_metadata(identity(0), "")
            await work(store, times)

    return partial(_in_loop, run)


async def _get(store: ImageStore, times: int) -> None:
    for number in sample(SIZE, times):
        await store.get(identity(number))
        await store.get(name(number))


async def _commit(store: ImageStore, times: int) -> None:
    for number in sample(SIZE, times):
        await store.set_metadata(identity(number), new_metadata(number))


async def _burst(store: ImageStore, times: int) -> None:
    for time in range(times):
        async with anyio.create_task_group() as tasks:
            for number in range(256):
                metadata = new_metadata(time + number)
                tasks.start_soon(store.set_metadata, identity(number), metadata)


async def _open(root: str, times: int) -> None:
    await _open_and(root, times, lambda _: anyio.lowlevel.checkpoint())


async def _index(root: str, times: int) -> None:
    await _open_and(root, times, lambda store: store.snapshot())


async def _look_up(root: str, times: int) -> None:
    await _open_and(root, times, lambda store: store.get(name(SIZE // 2)))


async def _list(root: str, times: int) -> None:
    await _open_and(root, times, lambda store: store.images())


async def _open_and(root: str, times: int, look: Callable[[ImageStore], Awaitable[object]]) -> None:
    from aimagestore import ImageStore

    for _ in range(times + 1):
        async with ImageStore(root, read_only=True) as store:
            await look(store)


@dataclass(frozen=True)
class Row:
    """One kind of work.

    :ivar times: the number of repetitions, which must take much longer than starting a process
    :ivar base: rows with the same base do the same work without repetitions
    """

    times: int
    base: str
    run: Callable[[str, int], None]


ROWS = {
    "import aimagestore": Row(1, "python", _import),
    "aimagestore --version": Row(1, "python", partial(_command, ["--version"])),
    "aimagestore images": Row(1, "python", partial(_command, ["--root", "{root}", "images"])),
    "aimagestore exists": Row(
        1, "python", partial(_command, ["--root", "{root}", "exists", identity(7)])
    ),
    "get, by ID and name": Row(20_000, "store", _on_store(_get)),
    "one commit": Row(300, "store", _on_store(_commit)),
    "256 tasks, one commit each": Row(10, "store", _on_store(_burst)),
    "open": Row(20, "open", partial(_in_loop, _open)),
    "open and one lookup": Row(20, "lookup", partial(_in_loop, _look_up)),
    "open and index": Row(10, "index", partial(_in_loop, _index)),
    "open and images()": Row(10, "list", partial(_in_loop, _list)),
}


def main(row: str, times: str, root: str) -> None:
    """Repeat the work of a row in a store."""
    ROWS[row].run(str(image_store(Path(root))), int(times))


if __name__ == "__main__":
    main(*sys.argv[1:])
