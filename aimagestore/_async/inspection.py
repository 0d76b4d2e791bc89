"""Checking and repairing stores, which may be too damaged to be opened."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from .._core.names import check_type
from .._core.report import Report
from .._engine.lock import AnyGrant, AnyLine
from .._engine.protocol import ChangeUnderWayError, Checker, Location
from .core import acquire, lock_timeout_error
from .locations import AdditionalStore, location_of, stacked_location
from .loop import EventLoop
from .staging import Progress
from .threads import Stepper, Threads


async def check(
    where: str | os.PathLike[str] | Location,
    *,
    additional_stores: Iterable[str | os.PathLike[str] | Location | AdditionalStore] = (),
    verify: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Check a store for damage and for garbage; change nothing.

    Works on stores that cannot be opened, on read-only ones, and beside writers: what looks
    damaged is checked again while no writer is in the middle of a change. Cancelled, it stops at
    once.

    :param where: the directory that holds images.json, or a location, as for :class:`ImageStore`
    :param additional_stores: as for :class:`ImageStore`: they are not checked, but may have layers
        and images that the store needs, and one that cannot be read is a finding
    :param verify: read every item, and compare it with its recorded digest
    :param progress: called with the bytes read, and with the total
    :raises FileNotFoundError: when there is no such directory
    :raises GraphRootError: when it is podman's graph root, which holds image stores
    """
    location = stacked_location(where, additional_stores)
    threads = Threads(EventLoop())
    try:
        checker = location.checker(verify=verify)
        report = await _check(checker, threads, progress)
        line = await threads.run_abandonable(checker.join_lock, dispose=_leave)
        if line is not None:
            async with _held(line, threads) as grant:
                report = await Stepper(checker.recheck(), threads, grant).run(progress)
        return report
    finally:
        threads.when_idle(threads.shutdown)


async def _check(checker: Checker, threads: Threads, progress: Progress | None) -> Report:
    while True:
        try:
            return await Stepper(checker.steps(), threads).run(progress)
        except ChangeUnderWayError:
            line = await threads.run_abandonable(checker.join_lock, dispose=_leave)
        assert line is not None, "a change is under way"
        # Released at once, because checking everything may take long.
        async with _held(line, threads):
            pass


@asynccontextmanager
async def _held(line: AnyLine, threads: Threads) -> AsyncIterator[AnyGrant]:
    """Acquire the lock, and release it and leave its line at the end of the block."""
    grant: AnyGrant | None = None
    try:
        grant = await acquire(line, threads, None)
        assert grant is not None, "there is no timeout"
        yield grant
    finally:
        await threads.run_shielded(_release_and, line.leave, grant)


def _release_and(close: Callable[[], object], grant: AnyGrant | None) -> None:
    """Release the lock, and then close what it belongs to.

    In one call: the release waits for the step that a closed coroutine has left to its thread.
    """
    if grant is not None:
        grant.release()
    close()


def _leave(line: AnyLine | None) -> None:
    if line is not None:
        line.leave()


async def repair(
    where: str | os.PathLike[str] | Location,
    report: Report,
    *,
    drop: bool = False,
    lock_timeout: float | None = None,
    progress: Progress | None = None,
) -> Report:
    """Repair what a check has reported, where it is still so, and return what was done.

    Records are rebuilt for directories that have none, but have big data (from their files; names,
    where the annotations of a manifest give them and no other image has them), and recorded sizes
    that the data disproves and malformed digests are corrected. A lost or damaged index is rebuilt
    from what can be read of it and from the directories; the old one is kept beside it as
    ``images.json.old-1``. What no file says, such as the flags of an image, stays lost. Files
    are never removed: :meth:`ImageStore.collect_garbage` does that.

    Where podman keeps layers beside the store, what it cannot read is put right, or taken out of
    the index, so that ``podman images`` works again. Nothing is lost: the index as it was stays
    beside the new one as ``images.json.old-1``, and directories of images that are taken out stay
    under names like ``<id>.old-1``.

    On a cluster, the tables of names, digests and items and the counters are rebuilt from the
    records of the images that were reported, in one transaction that holds the lock. An item whose
    object is missing gets another object with its content, if the check has found one.

    Cancelled, it has changed nothing, or its last step is completed.

    :param where: the directory that holds images.json, or a location
    :param report: what :func:`check` found
    :param drop: take out of the index what cannot be repaired: damaged records, and items that are
        missing or altered from the records that list them; in podman's store also images whose top
        layer it does not know, which an additional store may have
    :param lock_timeout: seconds to wait for the store's lock; ``None`` waits for ever
    :param progress: called with the bytes checked again, and with the total; what it raises ends
        the repair before the records change
    :raises LockTimeoutError: when the lock was not free in time
    :raises StoreCorruptError: when images.json is not a regular file
    :raises StoreUnavailableError: when a server of a cluster is unavailable, or refuses
    """
    location = location_of(where)
    check_type(report, Report, "report")
    threads = Threads(EventLoop())
    try:
        repairer = await threads.run_abandonable(
            location.repairer, dispose=lambda repairer: repairer.close()
        )
        grant: AnyGrant | None = None
        try:
            grant = await acquire(repairer.lock, threads, lock_timeout)
            if grant is None:
                raise await lock_timeout_error(repairer.lock, threads, lock_timeout)
            steps = repairer.steps(grant, report, drop=drop)
            return await Stepper(steps, threads, grant).run(progress)
        finally:
            await threads.run_shielded(_release_and, repairer.close, grant)
    finally:
        threads.when_idle(threads.shutdown)
