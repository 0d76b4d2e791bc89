"""Looking a store through that may be too damaged to be entered."""

from __future__ import annotations

import os
from collections.abc import Callable

from .._core.report import Report
from .._directory.check import Check
from .._directory.engine import DirectoryEngine
from .pipeline import Pipeline
from .threads import Threads
from .walking import Walk


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
    async for done, total in Walk(examination.steps(), Threads()):
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
    engine = DirectoryEngine(path)
    threads = Threads()
    pipeline = Pipeline(engine, threads, None)
    await threads.run(engine.open_damaged)
    try:
        async with pipeline.hold():
            reporter = threads.reporter(progress)
            return await threads.finish(lambda: engine.repair(report, drop=drop, progress=reporter))
    finally:
        await threads.finish(engine.close)
