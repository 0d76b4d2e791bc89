"""The store as its users see it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, TypeVarTuple

from .._core.content import Content
from .._core.image import Image
from .._core.mutations import Mutation
from .._core.names import check_key, check_type
from .._core.pruning import PrunePolicy, PruneResult
from .._core.report import Report
from .._core.snapshot import Snapshot, snapshot_of
from .._core.usage import Usage
from .._core.view import View
from .._engine import items
from .._engine.items import Measured
from .._engine.protocol import Location
from .core import StoreCore
from .locations import AdditionalStore, stacked_location
from .methods import ImageMethods
from .pruning import Pruning, usage_of
from .staging import BigDataSource, Expectations, Progress, StagedItem
from .streams import BigDataReader
from .threads import Stepper
from .transaction import Transaction, TransactionBlock
from .watch import Watch

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Images that are cheaper to decode here than a hop to a thread would be.
_FEW_IMAGES = 64


class ImageStore(ImageMethods):
    """A store of image records and their big data (upstream: ``ImageStore``).

    An async context manager: entering opens the store, leaving closes it. Any number of tasks may
    use it at once, and any number of stores, processes and containers/storage programs the same
    directory.

    Reads give the last commit, whoever made it, and take no lock. They never wait for a writer of
    this library. For a writer of containers/storage, which saves some changes in several steps,
    they wait while it is in the middle of one, as its own readers do: no longer than it holds its
    lock, and those that were in line before. Changes return when they are durable; a change that
    fails changes nothing.

    A **ref** is a full ID, a name, or a prefix that only one ID has, tried in that order; also
    ``sha256:<id>``, and ``name@sha256:<digest>``.

    :param where: the directory that holds images.json, such as ``…/overlay-images``, or a new
        directory; or a location such as :class:`aimagestore.cluster.ClusterLocation`
    :param read_only: write nothing, not even what opening would complete
    :param lock_timeout: seconds that a change waits for the store's lock, and a read for the end
        of another program's change; ``None`` waits for ever, 0 tries once
    :param additional_stores: stores that are read beside this one, as podman's
        ``additionalimagestores``; each a path, a location or an :class:`AdditionalStore`. Lookups
        ask this store first, then each of them in order. An ID found earlier hides later ones, and
        a name stands for the image of the first store that has it. Their images are
        ``read_only``: a change copies the image into this store first, in the same commit, and
        :meth:`delete` raises :exc:`StoreReadOnlyError`
    :raises TypeError: when ``where`` is neither a path nor a location
    :raises ValueError: when ``lock_timeout`` is negative
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
        is_number = isinstance(lock_timeout, int | float) and not isinstance(lock_timeout, bool)
        if lock_timeout is not None and not is_number:
            raise TypeError(
                "lock_timeout must be None or a number of seconds, not "
                f"{type(lock_timeout).__name__}"
            )
        if lock_timeout is not None and not lock_timeout >= 0:
            raise ValueError(f"lock_timeout must be None or at least 0 seconds: {lock_timeout}")
        location = stacked_location(where, additional_stores)
        self._core = StoreCore(location, read_only=read_only, lock_timeout=lock_timeout)

    @property
    def read_only(self) -> bool:
        """Whether the store was opened read-only (upstream: the opposite of ``IsReadWrite``)."""
        return self._core.read_only

    @property
    def layer_store(self) -> str | None:
        """The directory where another program keeps the layers of these images, if one does.

        Known while the store is open.

        :raises StoreClosedError: when it is not
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
        """Close the store, with everything that it has open. Idempotent.

        Commits and transactions under way are completed; calls that wait for the lock raise
        :exc:`StoreClosedError`, and so does every later call. Concurrent callers all return when
        the store is closed. Cancelled while another task's transaction is open, it returns, and
        the store closes when the transaction ends.

        :raises RuntimeError: inside a transaction of this store
        """
        self._core.refuse_inside_transaction()
        await self._core.close()

    def _check_writable(self) -> None:
        self._core.check_writable()

    # What the shared methods need

    def _view(self) -> View | None:
        return self._core.current()

    async def _read(self, look: Callable[[View], T], *, is_slow: bool = False) -> T:
        if is_slow:
            catalog = self._core.current()
            is_slow = catalog is None or len(catalog) > _FEW_IMAGES
        return await self._core.read(look, is_slow=is_slow)

    async def _change(self, mutation: Mutation) -> Image | None:
        return await self._core.submit(mutation)

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
        self._core.check_open()
        core = self._core
        measured = await core.read_whole(
            lambda: Stepper(items.measure_item(core.engine.items, image.id, key), core.threads).run(
                progress
            )
        )
        if not self.read_only and not self._core.is_inside_transaction():
            await self._record(image, key, measured)
        return measured

    # What only a store has

    async def snapshot(self) -> Snapshot:
        """Return all images as they are now, to be read without ``await``.

        It never changes, and holds no lock. All records are in memory: a store that does not keep
        them there, such as a cluster's, loads them for each call. :meth:`iter_images` does not.
        """
        catalog = self._core.current()
        if catalog is None:
            self._core.check_open()
            catalog = await self._read_whole(self._core.engine.reader.snapshot)
        return snapshot_of(catalog)

    async def iter_images(self, *, page_size: int = 500) -> AsyncIterator[Image]:
        """Iterate over all images in the order of images.json, one page in memory at a time.

        What changes meanwhile may come or not; no image comes twice.

        :param page_size: the number of images in a page
        :raises ValueError: when it is not positive
        """
        check_type(page_size, int, "page_size")
        if page_size < 1:
            raise ValueError(f"page_size must be at least 1: {page_size}")
        self._core.check_open()
        pages = await self._read_whole(self._core.engine.reader.pages, page_size)
        while page := await self._core.threads.run_abandonable(next, pages, None):
            for image in page:
                yield image
            self._core.check_open()

    @asynccontextmanager
    async def open_big_data(
        self, ref: str, key: str, *, verify: bool = False, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BigDataReader]:
        """Open an item to read it in pieces.

        The content belongs to the version of the record that the item was opened with.

        :param verify: compare the data with its recorded digest while it is read: the end of the
            data raises :exc:`DigestMismatchError` when they differ
        :param start: the first byte to read
        :param end: the byte before which to stop; ``None`` for the end of the item
        :raises ImageUnknownError: when there is no such image
        :raises BigDataUnknownError: when its record does not list the item
        :raises BigDataMissingError: when its record lists the item, but the content is missing
        :raises DigestUnknownError: with ``verify``, when no digest is recorded
        :raises InvalidDigestError: with ``verify``, when what is recorded is no digest
        :raises ValueError: when the range is none, or is to be verified
        """
        core = self._core
        core.check_open()
        check_type(ref, str, "a ref")
        check_key(key)
        check_type(start, int, "start")
        check_type(0 if end is None else end, int, "end")
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"start and end must be 0 <= start <= end: {start}, {end}")
        if verify and (start or end is not None):
            raise ValueError("a part of an item cannot be verified: read all of it")
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
        """Write data into the store that belongs to no image yet.

        What is not used inside the block is discarded at its end, and after a crash. ``data`` is
        durable when the block begins: a transaction that it is given to need not wait for that.

        :param data: what to write at once, as for :meth:`set_big_data`; ``None`` for nothing yet
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
            raise TypeError("this data is staged already: use it as it is")
        if data is not None:
            async with core.contents({"": data}, expectations, progress) as contents:
                core.check_open()  # it may have been closed meanwhile
                yield StagedItem(core, contents[""])
            return
        content = await core.stage()
        try:
            yield StagedItem(core, content)
        finally:
            await core.release(content)

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Make several changes that happen together or not at all (upstream: ``Lock``, ``Unlock``).

        The block holds the store's lock: keep it short. It commits once, when the block ends; an
        exception that leaves the block, or its cancellation, discards everything. Reads of the
        store give the last commit meanwhile. Cancelled while the end of the block commits, the
        commit completes. The lock is released however the block is left: by another task, or by
        the garbage collection of a generator.

        :raises RuntimeError: inside another transaction of this store
        :raises LockTimeoutError: when the lock was not free in time
        """
        self._check_writable()
        return TransactionBlock(self._core)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Watch]:
        """Iterate over what changes from now on, whoever changes it, podman included.

        Reads inside the block may be ahead of the iteration, never behind it. The kernel notifies
        of changes where it can; on network file systems, and where inotify cannot be used, the
        store is polled once a second. :class:`Watch` says what comes, and in what order.

        :raises StoreCorruptError: in the iteration, when images.json is damaged by then
        """
        core = self._core
        core.check_open()
        feed = await self._read_whole(core.engine.reader.watch, dispose=lambda feed: feed.close())
        core.own(feed, feed.close)
        watch = Watch(core, feed)
        core.on_closing(watch.end)
        try:
            yield watch
        finally:
            core.not_on_closing(watch.end)
            try:
                await watch.aclose()
            finally:
                await core.release(feed)

    async def refresh(self) -> bool:
        """Load what others have changed, which every call does by itself (upstream: ``Load``).

        :returns: whether anything had changed
        """
        self._core.check_open()
        return await self._read_whole(self._core.engine.reader.refresh)

    async def modified(self) -> bool:
        """Return whether others changed the store since the last read (upstream: ``Modified``).

        Loads nothing.
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
        if when.tzinfo is None:
            raise ValueError("when must be an aware datetime: give it a tzinfo, such as UTC")
        self._core.check_open()
        return await self._core.threads.run_abandonable(
            self._core.engine.reader.touched_since, when
        )

    async def collect_garbage(
        self, *, dry_run: bool = False, progress: Progress | None = None
    ) -> Report:
        """Remove what belongs to no image and to no living writer.

        In a directory these are directories with 64-hex names that no record has, files that no
        record lists, and temporary files of dead writers; everything else stays, a directory in
        which something is mounted as well: its finding says so. On a cluster
        these are objects that no image has, or has had for as long as the grace period. The lock
        is held for one piece at a time.

        Cancelled, it has removed some of it.

        :param dry_run: only report what would be removed
        :param progress: called with the number of things removed, and of those found so far
        :returns: what was removed, and how many bytes that freed
        :raises StoreCorruptError: when the index is missing or blank beside images
        :raises LockTimeoutError: when the lock was not free in time
        """
        self._check_writable()
        core = self._core
        report = Report()
        removals = core.engine.writer.garbage(dry_run=dry_run)
        while removal := await core.threads.run_abandonable(next, removals, None):
            before = len(report.findings)
            async with core.hold() as grant:
                steps = Stepper(removal(grant), core.threads, grant)
                report += await steps.run(_shifted(progress, before))
        return report

    async def usage(self) -> Usage:
        """Measure what each image takes, what only it has, and what the whole store takes.

        Takes no lock. What others change meanwhile may be counted as it was, or as it is then.
        The layers of podman's images are not in this store, nor are images of additional stores.

        Cancelled, it stops at once.

        :raises StoreCorruptError: when the store's index is damaged, or podman's list of layers or
            containers beside it
        """
        self._core.check_open()
        return await usage_of(self._core)

    async def prune(
        self,
        policy: PrunePolicy,
        *,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> PruneResult:
        """Delete the images that a policy does not keep.

        The images are deleted in several commits, between which others get the lock. Each is looked
        at again under the lock: one that was changed meanwhile, by a name or a flag for instance,
        is kept, and so is one that a container uses by then. If nothing changes in between,
        ``dry_run`` says exactly what is then deleted and freed.

        Cancelled, it has deleted some of the images, and returns when the present commit is
        decided. Whatever ends it early, :meth:`PruneResult.of` returns what was deleted until then.

        Layers are not touched, as in :meth:`delete`: where podman keeps layers beside the store,
        those of the deleted images stay. ``podman image prune`` removes images with their layers.

        :param policy: which images to keep
        :param dry_run: only say what would be deleted; this works on a read-only store, too
        :param progress: called with the number of images looked at again, and of those to delete
        :raises StoreCorruptError: when the store's index is damaged, or podman's list of layers or
            containers beside it
        :raises LockTimeoutError: when the lock was not free in time
        """
        check_type(policy, PrunePolicy, "policy")
        if dry_run:
            return await Pruning(self._core).forecast(policy)
        self._check_writable()
        return await Pruning(self._core).run(policy, progress)


def core_of(store: ImageStore) -> StoreCore:
    """Return what is behind a store, for the library's own functions that work on stores."""
    return store._core


def _shifted(progress: Progress | None, before: int) -> Callable[[int, int], object] | None:
    """Report the progress of a part as that of the whole, of which so much was done before."""
    if progress is None:
        return None
    return lambda done, total: progress(before + done, before + total)
