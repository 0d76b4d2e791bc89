"""Looking a store through that may be too damaged to be entered."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from .._core.report import Report
from .._directory.check import Check
from .._directory.engine import DirectoryEngine
from .pipeline import Pipeline
from .threads import Threads

T = TypeVar("T")


async def check(
    path: str | os.PathLike[str],
    *,
    verify: bool = True,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Look a store through for damage and for what is left over; change nothing.

    Works on stores that cannot be entered, on read-only ones, and beside writers: what looks
    damaged is looked at again while no writer can be at it. Cancelled, it stops at once.

    :param path: the directory that holds images.json
    :param verify: read every item, and compare it with its recorded digest
    :param progress: called with the bytes done and the bytes in all
    :raises FileNotFoundError: when there is no such directory
    """
    examination = Check(os.fspath(path), verify=verify)
    async for done, total in _Walk(examination.steps()):
        if progress is not None:
            progress(done, total)
    return examination.report


async def repair(
    path: str | os.PathLike[str],
    report: Report,
    *,
    drop: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Undo what a check has reported, where it is still so, and say what was done.

    Records are rebuilt for directories that have none (from their files; names, where a
    manifest's annotations tell them and nobody else has them), and sizes that the data belies are
    put right. A lost or damaged index is rebuilt from what can be read of it and from the
    directories; the old one is kept beside it as ``images.json.old-1``. What no file tells, such
    as an image's layer, stays lost. Files are never removed: :meth:`ImageStore.collect_garbage`
    does that.

    Cancelled while it waits for the store's lock, it has done nothing; after that it is finished.

    :param path: the directory that holds images.json
    :param report: what :func:`check` found
    :param drop: drop what is beyond help: records that cannot be read, and items that are
        missing or altered from the records that list them
    :param progress: called with the bytes looked at again and the bytes in all, and may be again
        for an index that was rebuilt; what it raises ends the repair before the records change
    :raises StoreCorruptError: when images.json is no file at all
    """
    engine = DirectoryEngine(path, read_only=False)
    threads = Threads()
    pipeline = Pipeline(engine, threads, None)
    await threads.run(engine.open_damaged)
    try:
        async with pipeline.hold():
            reporter = threads.reporter(progress)
            return await threads.finish(lambda: engine.repair(report, drop=drop, progress=reporter))
    finally:
        await threads.finish(engine.close)


class _Walk(Generic[T]):
    """Blocking steps, taken in worker threads; left alone at once when cancelled."""

    def __init__(self, steps: Iterator[T]) -> None:
        self._threads = Threads()
        self._steps = steps
        # Held while a step is taken: a step that was left to itself ends the walk.
        self._mutex = threading.Lock()
        self._is_abandoned = False

    def __aiter__(self) -> _Walk[T]:
        return self

    async def __anext__(self) -> T:
        try:
            step = await self._threads.wait(self._step)
        except BaseException:
            self._is_abandoned = True
            await self._threads.finish(self._end)
            raise
        if step is None:
            raise StopAsyncIteration
        return step

    def _step(self) -> T | None:
        with self._mutex:
            try:
                return next(self._steps, None)
            finally:
                if self._is_abandoned:
                    self._close()

    def _end(self) -> None:
        if self._mutex.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._mutex.release()

    def _close(self) -> None:
        close = getattr(self._steps, "close", None)
        if close is not None:
            close()
