"""Checking and repairing stores, which may be too damaged to be opened."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial

from .._core.names import check_type
from .._core.report import Report
from .._engine.lock import AnyGrant, AnyLine
from .._engine.protocol import ChangeUnderWayError, Checker, Location
from .core import acquire, check_lock_timeout, lock_timeout_error
from .locations import AdditionalStore, stacked_location
from .loop import EventLoop
from .staging import Progress
from .threads import Stepper, Threads


async def check(
    where: str | os.PathLike[str] | Location,
    *,
    additional_stores: Iterable[str | os.PathLike[str] | Location | AdditionalStore] = (),
    verify: bool = True,
    lock_timeout: float | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a store for damage and garbage, without changing anything.

    It works on stores that cannot be opened, on read-only ones, and beside writers: what looks
    damaged is checked again while the lock keeps writers out. If cancelled, it stops at once.

    :param where: the directory that holds images.json, or a location, as for :class:`ImageStore`
    :param additional_stores: as for :class:`ImageStore`. They are not checked, but may have layers
        and images that the store needs; one that cannot be read is a finding
    :param verify: read every item, and compare it with its recorded digest
    :param lock_timeout: seconds to wait for the store's lock if something looks damaged; ``None``
        waits for ever, 0 tries once
    :param progress: called with the bytes read, and with the total
    :returns: the findings, and how much was read
    :raises FileNotFoundError: when there is no such directory
    :raises GraphRootError: when it is podman's graph root, which holds image stores
    :raises LockTimeoutError: when the lock was not free in time
    :raises StoreUnavailableError: when a server of a cluster is unavailable
    """
    location = stacked_location(where, additional_stores)
    check_type(verify, bool, "verify")
    check_lock_timeout(lock_timeout)
    threads = Threads(EventLoop())
    try:
        checker = await threads.run_abandonable(partial(location.checker, verify=verify))
        report = await _check(checker, threads, lock_timeout, progress)
        line = await threads.run_abandonable(checker.join_lock, dispose=_leave)
        if line is not None:
            async with _held(line, threads, lock_timeout) as grant:
                report = await Stepper(checker.recheck(), threads, grant).run(progress)
        return report
    finally:
        threads.when_idle(threads.shutdown)


async def _check(
    checker: Checker, threads: Threads, lock_timeout: float | None, progress: Progress | None
) -> Report:
    while True:
        try:
            return await Stepper(checker.steps(), threads).run(progress)
        except ChangeUnderWayError:
            line = await threads.run_abandonable(checker.join_lock, dispose=_leave)
        assert line is not None, "the checker has seen a change under way"
        # Only to wait for the change: checking everything may take too long to keep the lock.
        async with _held(line, threads, lock_timeout):
            pass


@asynccontextmanager
async def _held(line: AnyLine, threads: Threads, timeout: float | None) -> AsyncIterator[AnyGrant]:
    """Hold the lock inside the block, and leave its line at the end."""
    grant: AnyGrant | None = None
    try:
        grant = await acquire(line, threads, timeout)
        if grant is None:
            raise await lock_timeout_error(line, threads, timeout)
        yield grant
    finally:
        await threads.run_shielded(_release_and, line.leave, grant)


def _release_and(close: Callable[[], object], grant: AnyGrant | None) -> None:
    """Release the lock, then close what it belongs to.

    Both are one call, because the release may have to wait for a step in another thread.
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
    additional_stores: Iterable[str | os.PathLike[str] | Location | AdditionalStore] = (),
    drop: bool = False,
    lock_timeout: float | None = None,
    progress: Progress | None = None,
) -> Report:
    """Repair what a check has reported, if it is still so.

    A directory that has big data but no record gets a record, made from its files. Its names come
    from the annotations of a manifest, unless other images have them. Recorded sizes that are wrong
    and malformed digests are corrected. A lost or damaged index is rebuilt from its readable parts
    and from the directories; the old one is kept beside it as ``images.json.old-1``. What no file
    says, such as the flags of an image, stays lost. Files are never removed:
    :meth:`ImageStore.collect_garbage` does that.

    In podman's store, what podman cannot read is corrected or taken out of the index, so that
    ``podman images`` works again. The old index is kept beside the new one as
    ``images.json.old-1``, and the directories of images that are taken out are kept under names
    like ``<id>.old-1``.

    On a cluster, the tables of names, digests and items and the counters are rebuilt from the
    records of the images that were reported, in one transaction that holds the lock. An item whose
    object is missing gets another object with its content, if the check has found one.

    If cancelled, it has changed nothing, or has completed its last step.

    :param where: the directory that holds images.json, or a location
    :param report: what :func:`check` returned
    :param additional_stores: as for :func:`check`. They are not changed
    :param drop: also take out of the index what cannot be repaired: damaged records, and items
        whose content is missing or altered; in podman's store, images whose top layer podman does
        not know, which a store that is not among ``additional_stores`` may have
    :param lock_timeout: seconds to wait for the store's lock; ``None`` waits for ever, 0 tries once
    :param progress: called with the bytes checked again, and with the total; what it raises ends
        the repair before the records change
    :returns: what was repaired
    :raises LockTimeoutError: when the lock was not free in time
    :raises StoreCorruptError: when images.json is not a regular file, or is lost or damaged and the
        report does not say so
    :raises StoreUnavailableError: when a server of a cluster is unavailable or refuses a request
    """
    location = stacked_location(where, additional_stores)
    check_type(report, Report, "report")
    check_type(drop, bool, "drop")
    check_lock_timeout(lock_timeout)
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
