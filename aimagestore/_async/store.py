"""The store as its users see it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, TypeVarTuple

from .._core.content import Content
from .._core.image import Image
from .._core.mutations import Mutation
from .._core.names import check_key, check_type
from .._core.snapshot import Snapshot, snapshot_of
from .._core.view import View
from .._engine import items
from .._engine.items import Measured
from .._engine.protocol import Location
from .core import StoreCore, check_lock_timeout
from .locations import AdditionalStore, stacked_location
from .methods import ImageMethods
from .staging import BigDataSource, Expectations, Progress, StagedItem
from .streams import BigDataReader
from .threads import ASYNC_FILES, Stepper
from .transaction import Transaction, TransactionBlock
from .watch import Watch

if TYPE_CHECKING:
    from .._core.pruning import PrunePolicy, PruneResult
    from .._core.report import Report
    from .._core.usage import Usage

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_FEW_IMAGES = 64
"""Images that take no longer to decode than a worker thread takes to start on them."""


class ImageStore(ImageMethods):
    """A store of image records and their big data (upstream: ``ImageStore``).

    An async context manager: entering opens the store, leaving closes it. Any number of tasks may
    use it at once, and any number of stores, processes and containers/storage programs may use the
    same directory.

    Reads return the last commit by any program, and take no lock. They never wait for a writer of
    this library. A writer of containers/storage saves some changes in several steps; reads wait
    while it is in the middle of one, as its own readers do. Changes return when they are durable; a
    change that fails changes nothing.

    If a read is cancelled, it returns at once. If a change is cancelled, it has happened as a whole
    or never will, and the call returns when that is decided.

    Entering raises :exc:`FileNotFoundError` if the directory is missing and ``read_only`` is given,
    :exc:`GraphRootError` if it is podman's graph root, and :exc:`StoreCorruptError` if its index is
    damaged or lost. Every call raises :exc:`StoreClosedError` if the store is not open, and every
    change raises :exc:`StoreReadOnlyError` if it was opened read-only.

    A **ref** is a full ID, a name, or a prefix that only one ID has, tried in that order; also
    ``sha256:<id>``, and ``name@sha256:<digest>``.

    :param where: the directory that holds images.json, such as ``…/overlay-images``, or a new
        directory; or a location such as :class:`aimagestore.cluster.ClusterLocation`
    :param read_only: write nothing, and do not complete what a crash interrupted
    :param lock_timeout: seconds that a change waits for the store's lock, and that a read waits for
        the end of another program's change; ``None`` waits for ever, 0 tries once
    :param additional_stores: stores that are read beside this one, as podman's
        ``additionalimagestores``; each is a path, a location or an :class:`AdditionalStore`.
        Lookups ask this store first, then each of them in order. An ID found earlier hides later
        ones, and a name stands for the image of the first store that has it. Their images are
        ``read_only``: a change copies the image into this store first, in the same commit, and
        :meth:`delete` raises :exc:`StoreReadOnlyError`
    :raises TypeError: when ``where`` is neither a path nor a location
    :raises ValueError: when ``lock_timeout`` is negative, or no float can be as large
    """

    def __init__(
        self,
        where: str | os.PathLike[str] | Location,
        *,
        read_only: bool = False,
        lock_timeout: float | None = None,
        additional_stores: Iterable[str | os.PathLike[str] | Location | AdditionalStore] = (),
    ) -> None:
        check_type(read_only, bool, "read_only")
        check_lock_timeout(lock_timeout)
        location = stacked_location(where, additional_stores)
        self._core = StoreCore(location, read_only=read_only, lock_timeout=lock_timeout)

    @property
    def read_only(self) -> bool:
        """Whether the store was opened read-only (upstream: the opposite of ``IsReadWrite``)."""
        return self._core.read_only

    @property
    def layer_store(self) -> str | None:
        """The directory where another program keeps the layers of these images, if one does.

        :raises StoreClosedError: when the store is not open
        """
        self._core.check_open()
        return self._core.engine.layer_store

    def __repr__(self) -> str:
        mode = ", read_only=True" if self.read_only else ""
        state = "open" if self._core.is_open else "closed"
        return f"<ImageStore({self._core.location.name!r}{mode}) {state}>"

    # Opening and closing

    async def __aenter__(self) -> Self:
        await self._core.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the store and everything that it has open. Idempotent.

        Commits and transactions under way are completed; calls that wait for the lock raise
        :exc:`StoreClosedError`, and so does every later call. Concurrent callers all return when
        the store is closed. If cancelled while another task's transaction is open, it returns at
        once, and the store closes when the transaction ends.

        :raises RuntimeError: inside a transaction of this store, or in another event loop than the
            one that opened it
        """
        if self._core.is_inside_transaction():
            raise RuntimeError(
                "a transaction of this store is around this call: close the store after it"
            )
        await self._core.close()

    # What the shared methods need

    def _view(self) -> View | None:
        return self._core.current()

    def _check_writable(self) -> None:
        self._core.check_writable()

    async def _read(self, look: Callable[[View], T], *, is_slow: bool = False) -> T:
        if is_slow:
            catalog = self._core.current()
            is_slow = catalog is None or len(catalog) > _FEW_IMAGES
        return await self._core.read(look, is_slow=is_slow)

    def _change(self, mutation: Mutation) -> Awaitable[Image | None]:
        return self._core.submit(mutation)

    def _contents(
        self,
        data: Mapping[str, BigDataSource],
        expectations: Expectations,
        progress: Progress | None,
    ) -> AbstractAsyncContextManager[Mapping[str, Content]]:
        return self._core.contents(data, expectations, progress)

    async def _read_whole(
        self,
        read: Callable[[*Ts], T],
        *args: *Ts,
        dispose: Callable[[T], object] | None = None,
    ) -> T:
        threads = self._core.threads
        return await self._core.read_whole(
            lambda: threads.run_abandonable(read, *args, dispose=dispose)
        )

    async def _read_item(self, image: Image, key: str) -> bytes:
        return await self._read_whole(items.read_item, self._core.engine.items, image.id, key)

    async def _measure(self, image: Image, key: str, progress: Progress | None) -> Measured:
        core = self._core
        core.check_open()

        async def measure() -> Measured:
            steps = items.measure_item(core.engine.items, image.id, key)
            return await Stepper(steps, core.threads).run(progress)

        measured = await core.read_whole(measure)
        if not self.read_only and not core.is_inside_transaction():
            await self._record(image, key, measured)
        return measured

    # What only a store has

    async def snapshot(self) -> Snapshot:
        """Return all images of the last commit, to be read without ``await``.

        A snapshot never changes and holds no lock. It has all records in memory. A store that does
        not keep them there, such as a cluster's, loads all of them in each call;
        :meth:`iter_images` needs one page at a time.
        """
        catalog = self._core.current()
        if catalog is None:
            self._core.check_open()
            catalog = await self._read_whole(self._core.engine.reader.snapshot)
        return snapshot_of(catalog)

    async def iter_images(self, *, page_size: int = 500) -> AsyncIterator[Image]:
        """Iterate over all images in the order of images.json, one page in memory at a time.

        An image that changes meanwhile may come as it was or as it is, or not at all. None comes
        twice.

        :param page_size: the number of images in a page
        :raises ValueError: when it is not positive
        """
        check_type(page_size, int, "page_size")
        if page_size < 1:
            raise ValueError(f"page_size must be at least 1: {page_size}")
        self._core.check_open()
        pages = await self._read_whole(self._core.engine.reader.pages, page_size)
        while page := await self._read_whole(next, pages, None):
            for image in page:
                yield image
            self._core.check_open()

    @asynccontextmanager
    async def open_big_data(
        self, ref: str, key: str, *, verify: bool = False, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BigDataReader]:
        """Open an item, to be read in pieces inside the block.

        The content belongs to the version of the record that the item was opened with, even if the
        item is replaced or the image deleted meanwhile.

        :param verify: compare the data with its recorded digest while it is read: if they differ,
            reading the end of the data raises :exc:`DigestMismatchError`
        :param start: the position of the first byte to read
        :param end: the position after the last byte to read; ``None`` for the end of the item
        :raises ImageUnknownError: when there is no such image
        :raises BigDataUnknownError: when its record does not list the item
        :raises BigDataMissingError: when its record lists the item, but the content is missing
        :raises DigestUnknownError: with ``verify``, when no digest is recorded
        :raises InvalidDigestError: with ``verify``, when the recorded digest is malformed
        :raises ValueError: when ``start`` and ``end`` are not a range, or come with ``verify``
        """
        core = self._core
        core.check_open()
        check_type(ref, str, "a ref")
        check_key(key)
        check_type(verify, bool, "verify")
        check_type(start, int, "start")
        check_type(0 if end is None else end, int, "end")
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"start and end must be 0 <= start <= end, not {start} and {end}")
        if verify and (start or end is not None):
            raise ValueError(
                "a part of an item cannot be verified: leave out verify, or start and end"
            )
        await core.threads.load(ASYNC_FILES)
        image, source = await self._read_whole(
            partial(
                items.open_source, core.engine.items, ref, key, verify=verify, start=start, end=end
            ),
            dispose=lambda opened: opened[1].close(),
        )
        core.own(source, source.close)
        try:
            yield BigDataReader(core, image, key, source)
        finally:
            await core.release(source)

    @asynccontextmanager
    async def stage(
        self,
        data: BigDataSource | None = None,
        *,
        expected_digest: str | None = None,
        expected_size: int | None = None,
        progress: Progress | None = None,
    ) -> AsyncIterator[StagedItem]:
        """Write data into the store that belongs to no image yet, for use inside the block.

        Data that is not used is discarded at the end of the block, and after a crash. If cancelled,
        nothing is left behind.

        :param data: what to write before the block begins, from any source that
            :meth:`set_big_data` takes; durable then, so that no transaction has to wait for that.
            ``None`` if :meth:`StagedItem.write` writes everything
        :param expected_digest: the digest that ``data`` must have
        :param expected_size: the size that ``data`` must have, in bytes
        :param progress: called with the bytes written, and with the total or ``None``
        :raises DigestMismatchError: when ``data`` has another digest than expected
        :raises SizeMismatchError: when ``data`` has another size than expected
        """
        core = self._core
        core.check_writable()
        expectations = Expectations(expected_digest, expected_size)
        if data is None and not expectations.is_empty:
            raise ValueError("expected_digest and expected_size need data to check")
        if isinstance(data, StagedItem):
            raise TypeError("data is a StagedItem, which is staged already: use it as it is")
        if data is not None:
            async with core.staged(data, expectations, progress) as content:
                core.check_open()  # the store may have been closed meanwhile
                yield StagedItem(core, content)
            return
        content = await core.stage()
        try:
            yield StagedItem(core, content)
        finally:
            await core.release(content)

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Make several changes that happen together or not at all (upstream: ``Lock``, ``Unlock``).

        The store's lock is held inside the block: keep it short. The end of the block commits all
        changes at once; an exception or cancellation that leaves the block discards them.
        Meanwhile, reads of the store itself return the last commit. If cancelled during the commit,
        the commit completes. The lock is released in any case: also when another task leaves the
        block, or a generator that is in it is garbage-collected.

        :raises RuntimeError: inside another transaction of this store
        :raises LockTimeoutError: when the lock was not free in time
        """
        self._check_writable()
        return TransactionBlock(self._core)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Watch]:
        """Watch all changes from now on, by any program, podman included.

        The block gives a :class:`Watch`, whose iterator returns the changes. Reads inside the block
        may be ahead of the iteration, but never behind it. The kernel notifies of changes where it
        can; on network file systems, and where inotify cannot be used, the store is polled once a
        second.
        """
        core = self._core
        core.check_open()
        feed = await self._read_whole(core.engine.reader.watch, dispose=lambda feed: feed.close())
        core.own(feed, feed.close)
        watch = Watch(core, feed)
        core.on_closing(watch._end)
        try:
            yield watch
        finally:
            core.not_on_closing(watch._end)
            try:
                await watch._aclose()
            finally:
                await core.release(feed)

    async def refresh(self) -> bool:
        """Load what others have changed (upstream: ``Load``). Every read does so by itself.

        :returns: whether anything had changed
        """
        self._core.check_open()
        return await self._read_whole(self._core.engine.reader.refresh)

    async def modified(self) -> bool:
        """Return whether others changed the store since the last read (upstream: ``Modified``).

        It loads nothing.
        """
        self._core.check_open()
        return await self._core.threads.run_abandonable(self._core.engine.reader.modified)

    async def touch(self) -> None:
        """Record a write without changing anything (upstream: ``Touch``).

        :raises LockTimeoutError: when the lock was not free in time
        """
        self._check_writable()
        async with self._core.hold() as grant:
            await self._core.threads.run_shielded(grant.run, self._core.engine.writer.touch, grant)

    async def touched_since(self, when: datetime) -> bool:
        """Return whether a writer has touched the store after a time (upstream: ``TouchedSince``).

        :param when: an aware datetime
        :raises ValueError: when it is naive
        """
        check_type(when, datetime, "when")
        if when.utcoffset() is None:
            raise ValueError("when must be an aware datetime: give it a tzinfo, such as UTC")
        self._core.check_open()
        return await self._core.threads.run_abandonable(
            self._core.engine.reader.touched_since, when
        )

    async def collect_garbage(
        self, *, dry_run: bool = False, progress: Progress | None = None
    ) -> Report:
        """Remove everything that belongs to no image and to no living writer.

        In a directory, these are directories without a record whose names are 64 hex digits, files
        that no record lists, and temporary files of dead writers. On a cluster, these are objects
        that no image has or had within the grace period. The lock is held for one piece at a time.

        If cancelled, it has removed some of them.

        :param dry_run: only report what would be removed
        :param progress: called with the number of things removed, and the number found so far
        :returns: a finding for each thing, and how many bytes their removal freed. What cannot be
            removed, such as a directory in which something is mounted, has ``Finding.stays``.
        :raises StoreCorruptError: when the index is missing or blank beside images
        :raises LockTimeoutError: when the lock was not free in time
        """
        check_type(dry_run, bool, "dry_run")
        self._check_writable()
        core = self._core
        await core.threads.load("aimagestore._core.report")
        from .._core.report import Report  # noqa: PLC0415 (rarely used)

        report = Report()
        removals = core.engine.writer.garbage(dry_run=dry_run)
        while removal := await core.threads.run_abandonable(next, removals, None):
            before = len(report.findings)
            async with core.hold() as grant:
                steps = Stepper(removal(grant), core.threads, grant)
                report += await steps.run(_shifted(progress, before))
        return report

    async def usage(self) -> Usage:
        """Measure the space that each image takes, shared and alone, and that the store takes.

        It takes no lock. An image that changes meanwhile is measured as it was before or after the
        change. Images of additional stores are not measured.

        If cancelled, it stops at once.

        :returns: sizes in bytes

        :raises StoreCorruptError: when the store's index is damaged, or podman's list of layers or
            containers beside it
        """
        self._core.check_open()
        await self._core.threads.load("aimagestore._async.pruning")
        from .pruning import usage_of  # noqa: PLC0415 (rarely used)

        return await usage_of(self._core)

    async def prune(
        self,
        policy: PrunePolicy,
        *,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> PruneResult:
        """Delete the images that a policy does not keep.

        The images are deleted in several commits, between which others get the lock. Each image is
        checked again under the lock: it is kept if it was changed meanwhile, for instance by a name
        or a flag, or if a container uses it now. If nothing changes in between, a dry run returns
        exactly what is then deleted and freed.

        If cancelled, it has deleted some of the images, and returns when the present commit is
        decided. If anything ends it early, :meth:`PruneResult.of` returns what was deleted so far.

        Layers are not touched, as in :meth:`delete`: in podman's store, those of the deleted images
        stay. ``podman image prune`` removes images with their layers.

        :param policy: which images to keep
        :param dry_run: only return what would be deleted; this works on a read-only store, too
        :param progress: called with the number of images checked again, and the number to delete
        :raises StoreCorruptError: when the store's index is damaged, or podman's list of layers or
            containers beside it
        :raises LockTimeoutError: when the lock was not free in time
        """
        from .._core.pruning import PrunePolicy  # noqa: PLC0415 (rarely used)

        check_type(policy, PrunePolicy, "policy")
        check_type(dry_run, bool, "dry_run")
        if dry_run:
            self._core.check_open()
        else:
            self._check_writable()
        await self._core.threads.load("aimagestore._async.pruning")
        from .pruning import Pruning  # noqa: PLC0415 (rarely used)

        if dry_run:
            return await Pruning(self._core).forecast(policy)
        return await Pruning(self._core).run(policy, progress)


def core_of(store: ImageStore) -> StoreCore:
    """Return what is behind a store, for this library's own functions that work on stores."""
    return store._core


def _shifted(progress: Progress | None, before: int) -> Callable[[int, int], object] | None:
    """Return what reports the progress of a part of the whole.

    :param before: the amount that was done before that part
    """
    if progress is None:
        return None
    return lambda done, total: progress(before + done, before + total)
