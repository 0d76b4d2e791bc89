"""The store as its users see it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from itertools import count
from types import TracebackType
from typing import Any, Self, TypeVar

from anyio import CancelScope
from anyio.lowlevel import current_token

from .._core import mutations
from .._core.catalog import Catalog
from .._core.content import Buffer, Content, InlineContent
from .._core.image import Image
from .._core.mutations import Mutation
from .._core.names import check_key
from .._core.report import Report
from .._core.snapshot import Snapshot, snapshot_of
from .._core.transaction import Transaction
from .._core.view import View
from .._engine import items
from .._engine.protocol import Engine, StagedContent
from ..errors import (
    BigDataUnknownError,
    DigestUnknownError,
    ImageUnknownError,
    SizeUnknownError,
    StoreClosedError,
    StoreReadOnlyError,
)
from .engines import engine_of
from .pipeline import Pipeline
from .streams import (
    BigDataReader,
    Expectations,
    Progress,
    Readers,
    Staged,
    as_bytes,
    chunks_of,
    is_buffer,
    pour,
)
from .threads import Threads
from .walking import Walk
from .watching import Changes

T = TypeVar("T")

# Which process this is, counted in forks: asking the kernel costs more than a lookup.
_forks = count(1)
_process = 0

# Images that are cheaper to decode here than a hop to a thread would be.
_FEW_IMAGES = 64


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: globals().update(_process=next(_forks)))

_transactions: ContextVar[tuple[_HandedOver, ...]] = ContextVar(
    "aimagestore_transactions", default=()
)


class _HandedOver:
    """Staged data in the hands of a call or a transaction, until that is over."""

    def __init__(self, store: ImageStore) -> None:
        self.store = store
        self.is_active = True
        self._staged: list[Staged] = []

    def content(self, data: object) -> Content:
        """The content of bytes or of staged data."""
        if isinstance(data, Staged):
            content = data._give()
            self._staged.append(data)
            return content
        if is_buffer(data):
            return InlineContent.of(as_bytes(data))
        raise TypeError(f"expected bytes or staged data, not {type(data).__name__}")

    def take_back(self) -> None:
        """Be over: what was not used may be handed over again."""
        self.is_active = False
        for staged in self._staged:
            staged._take_back()


class ImageStore:
    """A store of image records and their big data (upstream: ``ImageStore``).

    Used as an async context manager: entering opens the store, leaving closes it. Any number of
    tasks may use it at once, and any number of stores, processes and containers/storage programs
    the same directory.

    Reads give the last commit, whoever made it. They never wait for a writer, take no lock, and
    pass no checkpoint where nothing has changed on disk since the read before. Changes return
    when they are durable; a change that fails, or that is cancelled before it is under way,
    changes nothing.

    A **ref** is an ID, a name, or a prefix that only one ID has, looked for in that order.

    :param path: the directory that holds images.json, such as ``…/overlay-images``; anything new
        becomes a new store. Or an engine for this store alone, such as
        :class:`aimagestore.cluster.ClusterEngine`, that keeps images elsewhere
    :param read_only: write nothing, not even what opening would put right
    :param lock_timeout: seconds a change waits for the store's lock; ``None`` waits for ever
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Engine,
        *,
        read_only: bool = False,
        lock_timeout: float | None = None,
    ) -> None:
        if lock_timeout is not None and not lock_timeout >= 0:
            raise ValueError(f"lock_timeout must be None or at least 0 seconds: {lock_timeout}")
        self._engine = engine_of(path)
        self._engine.read_only = read_only
        self._lock_timeout = lock_timeout
        self._is_open = False
        self._was_opened = False
        self._readers = Readers()
        self._watches: set[Changes] = set()
        self._process = -1
        self._loop: object = None

    @property
    def read_only(self) -> bool:
        """Whether the store was opened read-only (upstream: ``IsReadWrite``, the other way)."""
        return self._engine.read_only

    def __repr__(self) -> str:
        mode = ", read_only=True" if self.read_only else ""
        return f"<ImageStore({self._engine.name!r}{mode}) {'open' if self._is_open else 'closed'}>"

    # Opening and closing

    async def __aenter__(self) -> Self:
        if self._was_opened:
            raise StoreClosedError("a store is opened once: make another ImageStore")
        self._was_opened = True
        self._threads = Threads()
        self._pipeline = Pipeline(self._engine, self._threads, self._lock_timeout)
        self._loop = current_token()
        self._process = _process
        await self._threads.run(self._engine.open)
        self._is_open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the store; later calls raise :exc:`StoreClosedError`. Idempotent.

        A commit or transaction under way is finished, cancelled or not; calls that wait for the
        lock are turned away.

        :raises RuntimeError: inside a transaction of this store
        """
        if not self._is_open:
            return
        self._refuse_inside_transaction()
        self._is_open = False
        if self._process != _process:
            return
        for watched in self._watches:
            watched._end()
        with CancelScope(shield=True):
            await self._pipeline.close()
            await self._threads.finish(self._engine.close)

    def _check_open(self) -> None:
        if self._process != _process and self._is_open:
            raise StoreClosedError(
                f"the store {self._engine.name} was opened before this process was forked: "
                "open it again here"
            )
        if not self._is_open:
            raise StoreClosedError(f"the store {self._engine.name} is not open")

    def _check_here(self) -> None:
        """Check what every call needs that uses more than memory."""
        self._check_open()
        if current_token() != self._loop:
            raise RuntimeError("a store belongs to the event loop that opened it")

    def _check_can_write(self) -> None:
        self._check_here()
        if self.read_only:
            raise StoreReadOnlyError(
                f"the store {self._engine.name} was opened read-only", path=self._engine.name
            )

    def _check_writable(self) -> None:
        self._check_can_write()
        self._refuse_inside_transaction()

    def _is_inside_transaction(self) -> bool:
        around = _transactions.get()
        return bool(around) and any(held.is_active and held.store is self for held in around)

    def _refuse_inside_transaction(self) -> None:
        if self._is_inside_transaction():
            raise RuntimeError(
                "the store's lock is held by the transaction around this call: change the store "
                "through the transaction"
            )

    # Reading

    def _current(self) -> Catalog | None:
        """The last snapshot, if it can be seen at once that nothing has changed."""
        if not self._is_open or self._process != _process:
            self._check_open()
        return self._engine.current() if self._engine.checks_instantly else None

    async def _look(self, look: Callable[[View], T]) -> T:
        """Look in a worker thread, for it may take some time."""
        self._check_here()
        return await self._threads.run(self._engine.read, look)

    async def _read(self, look: Callable[[View], T]) -> T:
        """Look at the store as it is now, at once where that can be done."""
        snapshot = self._current()
        return await self._look(look) if snapshot is None else look(snapshot)

    async def snapshot(self) -> Snapshot:
        """All images as they are now, to be looked at without ``await``.

        It stays as it is, whatever happens to the store, and holds no lock. It holds all records
        in memory: of a store that does not, such as a cluster's, it is loaded for each call.
        """
        return snapshot_of(await self._read(lambda view: view.freeze()))

    async def get(self, ref: str) -> Image:
        """The image that the ref stands for (upstream: ``Get``).

        :raises ImageUnknownError: when there is none
        :raises AmbiguousImageError: when the ref is a prefix of several IDs
        """
        snapshot = self._current()
        if snapshot is None:
            return await self._look(lambda view: view.get(ref))
        return snapshot.get(ref)

    async def lookup(self, ref: str) -> str:
        """The full ID of the image that the ref stands for (upstream: ``Lookup``).

        :raises ImageUnknownError: when there is none
        :raises AmbiguousImageError: when the ref is a prefix of several IDs
        """
        return await self._read(lambda view: view.lookup(ref))

    async def exists(self, ref: str) -> bool:
        """Whether the ref stands for an image (upstream: ``Exists``)."""
        return await self._read(lambda view: ref in view)

    async def images(self) -> list[Image]:
        """All images, in the order of images.json (upstream: ``Images``)."""
        snapshot = self._current()
        if snapshot is None or not (snapshot.are_images_decoded or len(snapshot) <= _FEW_IMAGES):
            return list(await self._look(lambda view: view.images))
        return list(snapshot.images)

    async def by_digest(self, digest: str) -> list[Image]:
        """The images with this digest, their own or a manifest's (upstream: ``ByDigest``).

        :raises ImageUnknownError: when there is none
        :raises InvalidDigestError: when the digest is malformed
        """
        return await self._read(lambda view: view.by_digest(digest))

    async def metadata(self, ref: str) -> str:
        """The image's metadata (upstream: ``Metadata``).

        :raises ImageUnknownError: when there is no such image
        """
        return (await self.get(ref)).metadata

    # Changing records

    async def _change(self, change: Mutation) -> Image:
        image = await self._submit(change)
        assert image is not None, "this change returns an image"
        return image

    async def _submit(self, change: Mutation) -> Image | None:
        self._check_writable()
        return await self._pipeline.submit(change)

    async def create(
        self,
        id: str | None = None,
        *,
        names: Iterable[str] = (),
        layer: str = "",
        metadata: str = "",
        created: datetime | None = None,
        digest: str | None = None,
        flags: Mapping[str, Any] | None = None,
        big_data: Mapping[str, Any] | None = None,
    ) -> Image:
        """Make a new image, with its big data, in one step (upstream: ``Create``).

        Cancelled, the image is there with all its items, or it is not there at all.

        :param id: its ID; ``None`` gives it 64 random hex digits
        :param names: its names
        :param layer: the ID of its topmost layer
        :param metadata: text to keep with it
        :param created: an aware time; ``None`` for now
        :param digest: a digest to be found by, besides those of its manifests
        :param flags: any JSON values
        :param big_data: key to bytes or :class:`Staged`
        :raises DuplicateIDError: when there is an image with this ID
        :raises DuplicateNameError: when a name belongs to another image
        :raises InvalidIDError: when the ID could not name a directory
        :raises InvalidBigDataNameError: when a key could not name a file
        :raises InvalidDigestError: when the digest is malformed
        :raises ValueError: when something is what containers/storage could not read back
        :raises LockTimeoutError: when the lock was not free in time
        """
        self._check_writable()
        async with self._on_disk(big_data or {}) as contents:
            change = mutations.create(
                id,
                names=names,
                top_layer=layer,
                metadata=metadata,
                created=created,
                digest=digest,
                flags=flags,
                big_data=contents,
            )
            return await self._change(change)

    async def set_names(self, ref: str, names: Iterable[str]) -> Image:
        """Give the image these names instead of those it has (upstream: ``SetNames``).

        A name that another image has moves here.

        :raises ImageUnknownError: when there is no such image
        :raises LockTimeoutError: when the lock was not free in time
        """
        return await self._change(mutations.set_names(ref, names))

    async def add_names(self, ref: str, names: Iterable[str]) -> Image:
        """Give the image these names before those it has (upstream: ``AddNames``).

        A name that another image has moves here.

        :raises ImageUnknownError: when there is no such image
        :raises LockTimeoutError: when the lock was not free in time
        """
        return await self._change(mutations.add_names(ref, names))

    async def remove_names(self, ref: str, names: Iterable[str]) -> Image:
        """Take these names from the image, where it has them (upstream: ``RemoveNames``).

        :raises ImageUnknownError: when there is no such image
        :raises LockTimeoutError: when the lock was not free in time
        """
        return await self._change(mutations.remove_names(ref, names))

    async def set_metadata(self, ref: str, metadata: str) -> Image:
        """Give the image other metadata (upstream: ``SetMetadata``).

        :raises ImageUnknownError: when there is no such image
        :raises LockTimeoutError: when the lock was not free in time
        """
        return await self._change(mutations.set_metadata(ref, metadata))

    async def set_flag(self, ref: str, flag: str, value: Any) -> Image:
        """Set a flag to any JSON value (upstream: ``SetFlag``).

        Integers beyond 2**53 are kept as they are, but podman rounds them when it saves.

        :raises ImageUnknownError: when there is no such image
        :raises ValueError: for numbers that are not finite, and 1,000 levels of nesting or more
        :raises LockTimeoutError: when the lock was not free in time
        """
        return await self._change(mutations.set_flag(ref, flag, value))

    async def clear_flag(self, ref: str, flag: str) -> Image:
        """Remove a flag, if it is set (upstream: ``ClearFlag``).

        :raises ImageUnknownError: when there is no such image
        :raises LockTimeoutError: when the lock was not free in time
        """
        return await self._change(mutations.clear_flag(ref, flag))

    async def delete(self, ref: str) -> None:
        """Delete an image and its big data (upstream: ``Delete``).

        :raises ImageUnknownError: when there is no such image
        :raises LockTimeoutError: when the lock was not free in time
        """
        await self._submit(mutations.delete(ref))

    async def wipe(self) -> None:
        """Delete all images; damaged records stay (upstream: ``Wipe``).

        :raises LockTimeoutError: when the lock was not free in time
        """
        await self._submit(mutations.wipe())

    # Big data

    async def big_data(self, ref: str, key: str) -> bytes:
        """The whole content of an item, in memory (upstream: ``BigData``).

        :raises ImageUnknownError: when there is no such image
        :raises BigDataUnknownError: when its record does not list the item
        :raises FileNotFoundError: when the item's file is missing
        """
        self._check_here()
        return await self._threads.run(items.read_item, self._engine, ref, key)

    @asynccontextmanager
    async def open_big_data(
        self, ref: str, key: str, *, verify: bool = False
    ) -> AsyncIterator[BigDataReader]:
        """Open an item to read it in pieces.

        :param verify: compare the data with its recorded digest while it is read; the end of
            the data raises :exc:`DigestMismatchError` when it is another
        :raises ImageUnknownError: when there is no such image
        :raises BigDataUnknownError: when its record does not list the item
        :raises DigestUnknownError: with ``verify``, when no digest is recorded
        :raises InvalidDigestError: with ``verify``, when what is recorded is no digest
        :raises FileNotFoundError: when the item's file is missing
        """
        self._check_here()
        image, source = await self._threads.run(items.open_source, self._engine, ref, key, verify)
        digest = image.big_data_digests.get(key, "")
        try:
            with self._readers.one_more():
                yield BigDataReader(source, digest, self._readers, self._threads)
        finally:
            await self._threads.finish(source.close)

    async def set_big_data(
        self,
        ref: str,
        key: str,
        data: Any,
        *,
        expected_digest: str | None = None,
        expected_size: int | None = None,
        progress: Progress | None = None,
    ) -> Image:
        """Give the image an item, new or instead of the one it has (upstream: ``SetBigData``).

        The data is written, digested and made durable before the store's lock is taken; it is
        published with its record in one step. Cancelled, the item is there whole or as it was
        before.

        :param data: bytes-like, :class:`Staged`, an object with async ``read(n)`` or
            ``receive()``, an async iterable, or a plain one (iterated in a worker thread)
        :param progress: called with the number of bytes written so far
        :raises ImageUnknownError: when there is no such image, or not any more
        :raises DigestMismatchError: when the data has another digest than expected
        :raises SizeMismatchError: when the data has another size than expected
        :raises LockTimeoutError: when the lock was not free in time
        """
        self._check_writable()
        check_key(key)
        expectations = Expectations(expected_digest, expected_size)
        image_id = await self.lookup(ref)
        if isinstance(data, Staged):
            async with self._on_disk({key: data}) as contents:
                expectations.check(contents[key])
                return await self._change(mutations.set_big_data(image_id, key, contents[key]))
        source = chunks_of(data, self._threads)
        async with self._filled(source, expectations, progress) as content:
            return await self._change(mutations.set_big_data(image_id, key, content))

    @asynccontextmanager
    async def stage(
        self,
        data: Any = None,
        *,
        expected_digest: str | None = None,
        expected_size: int | None = None,
        progress: Progress | None = None,
    ) -> AsyncIterator[Staged]:
        """Put data on disk that belongs to no image yet.

        What is not handed over inside the block is gone after it, and after a crash. ``data`` is
        durable when the block begins: a transaction that it is handed to need not wait for that.

        :param data: what to write at once, as for :meth:`set_big_data`; ``None`` for nothing yet
        :raises DigestMismatchError: when ``data`` has another digest than expected
        :raises SizeMismatchError: when ``data`` has another size than expected
        """
        self._check_can_write()
        expectations = Expectations(expected_digest, expected_size)
        if data is None and (expected_digest is not None or expected_size is not None):
            raise ValueError("expected_digest and expected_size need data to check")
        source = None if data is None else chunks_of(data, self._threads)
        async with self._filled(source, expectations, progress) as content:
            yield Staged(content, self._threads)

    @asynccontextmanager
    async def _filled(
        self,
        source: AsyncIterator[Buffer] | None,
        expectations: Expectations,
        progress: Progress | None,
    ) -> AsyncIterator[StagedContent]:
        """New content with this data in it, durable; gone after the block unless published."""
        content = await self._threads.run(self._engine.stage)
        try:
            if source is not None:
                staged = Staged(content, self._threads)
                await pour(source, staged, expectations, progress, self._threads)
                expectations.check(content)
                await self._threads.run(content.finish)
            yield content
        finally:
            if content.is_open:
                await self._threads.finish(content.discard)

    @asynccontextmanager
    async def _on_disk(self, data: Mapping[str, Any]) -> AsyncIterator[Mapping[str, StagedContent]]:
        """The content of bytes and staged data, made durable, for as long as the block takes."""
        for key in data:
            check_key(key)
        if not data:
            yield {}
            return
        handed = _HandedOver(self)
        try:
            given = {key: handed.content(item) for key, item in data.items()}
            ready = await self._threads.run(items.put_on_disk, self._engine, given)
            try:
                yield ready
            finally:
                mine = [c for key, c in ready.items() if c is not given[key] and c.is_open]
                if mine:
                    await self._threads.finish(items.discard_all, mine)
        finally:
            handed.take_back()

    async def big_data_names(self, ref: str) -> list[str]:
        """The keys of the image's items, oldest first (upstream: ``BigDataNames``).

        :raises ImageUnknownError: when there is no such image
        """
        return list((await self.get(ref)).big_data_names)

    async def big_data_size(self, ref: str, key: str, *, progress: Progress | None = None) -> int:
        """The size of an item, in bytes (upstream: ``BigDataSize``).

        One that is not recorded is found out, and recorded if the store is writable.

        :param progress: called with the number of bytes read so far, where it has to be found out
        :raises ImageUnknownError: when there is no such image
        :raises BigDataUnknownError: when its record does not list the item
        :raises SizeUnknownError: when it is not recorded, and the item's file is missing
        """
        image = await self._listing(ref, key)
        size = image.big_data_sizes.get(key)
        if size is None:
            size = (await self._measure(image, key, SizeUnknownError, progress)).size
        return size

    async def big_data_digest(self, ref: str, key: str, *, progress: Progress | None = None) -> str:
        """The digest of an item (upstream: ``BigDataDigest``).

        One that is not recorded is computed, and recorded if the store is writable.

        :param progress: called with the number of bytes read so far, where it has to be computed
        :raises ImageUnknownError: when there is no such image
        :raises BigDataUnknownError: when its record does not list the item
        :raises DigestUnknownError: when it is not recorded, and the item's file is missing
        """
        image = await self._listing(ref, key)
        digest = image.big_data_digests.get(key)
        return digest or (await self._measure(image, key, DigestUnknownError, progress)).digest

    async def _listing(self, ref: str, key: str) -> Image:
        image = await self.get(ref)
        items.require_item(image, key)
        return image

    async def _measure(
        self,
        image: Image,
        key: str,
        unknown: type[SizeUnknownError | DigestUnknownError],
        progress: Progress | None,
    ) -> items.Measured:
        """Find out what an item is of which less is recorded than is asked for, and record it."""
        self._check_here()
        try:
            reporter = self._threads.reporter(progress)
            measured = await self._threads.run(
                items.measure_item, self._engine, image.id, key, reporter
            )
        except FileNotFoundError as error:
            raise unknown(
                f"item {key!r} of image {image.id} is not described, and its file is missing",
                id=image.id,
                key=key,
            ) from error
        if not self.read_only and not self._is_inside_transaction():
            # Another writer may have changed or deleted the image: then there is nothing to note.
            with suppress(ImageUnknownError, BigDataUnknownError):
                await self._submit(mutations.note_big_data(image.id, key, measured))
        return measured

    # The lock, and what others do

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Several changes that happen together or not at all (upstream: ``Lock``, ``Unlock``).

        The block holds the store's lock: keep it short. It is saved once, when the block ends;
        an exception that leaves the block, or its cancellation, undoes everything. Reads of the
        store give the last commit meanwhile.

        :raises RuntimeError: inside another transaction of this store
        :raises LockTimeoutError: when the lock was not free in time
        """
        self._check_writable()
        async with self._pipeline.hold():
            draft = await self._threads.finish(self._engine.draft)
            handed = _HandedOver(self)
            transaction = Transaction(draft, handed.content)
            outer = _transactions.get()
            _transactions.set((*outer, handed))
            try:
                try:
                    yield transaction
                finally:
                    transaction._end()
                await self._threads.finish(self._engine.publish, draft)
            finally:
                _transactions.set(outer)
                handed.take_back()

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Changes]:
        """Iterate over what changes from here on, whoever changes it, podman included.

        Reads inside the block may be ahead of the iteration, never behind it. The kernel tells of
        changes where it can; on network file systems, and where inotify is not to be had, the
        store looks once a second. See :class:`Changes` for what comes, and in what order.

        :raises StoreCorruptError: in the iteration, when images.json is damaged by then
        """
        self._check_here()
        watch = await self._threads.run(self._engine.watch)
        watched = Changes(watch, self._threads)
        self._watches.add(watched)
        try:
            yield watched
        finally:
            self._watches.discard(watched)
            watched._end()
            await self._threads.finish(watch.close)

    async def refresh(self) -> bool:
        """Load what others have changed, which every call does on its own (upstream: ``Load``).

        :returns: whether anything had changed
        """
        self._check_here()
        return await self._threads.run(self._engine.refresh)

    async def modified(self) -> bool:
        """Whether the store has changed since the last call (upstream: ``Modified``).

        Loads nothing.
        """
        self._check_here()
        return await self._threads.run(self._engine.modified)

    async def touch(self) -> None:
        """Leave a writer's mark and change nothing else (upstream: ``Touch``).

        :raises LockTimeoutError: when the lock was not free in time
        """
        self._check_writable()
        async with self._pipeline.hold():
            await self._threads.finish(self._engine.touch)

    async def collect_garbage(
        self, *, progress: Callable[[int, int], object] | None = None
    ) -> Report:
        """Remove what is left over: orphaned directories, unlisted items, dead temporaries.

        An orphan is a directory that no record belongs to and that holds nothing but what an
        image's directory holds; whatever else lies in the store stays. What living writers have
        under way stays too: the store's lock is held meanwhile. On a cluster it is objects that no
        image has, or has had for as long as the engine's ``grace``.

        Cancelled, what was begun is finished.

        :param progress: called with the number of things removed, and of those found so far
        :returns: what was removed, and how many bytes that were
        :raises StoreCorruptError: when the index is missing or blank beside images
        :raises LockTimeoutError: when the lock was not free in time
        """
        self._check_writable()
        report = Report()
        async for removal in Walk(self._engine.garbage(), self._threads):
            done = len(report.findings)
            tell = None if progress is None else _further(progress, done)
            async with self._pipeline.hold():
                report += await self._threads.finish(removal, self._threads.reporter(tell))
        return report

    async def touched_since(self, when: datetime) -> bool:
        """Whether a writer has left its mark after that time (upstream: ``TouchedSince``).

        :param when: an aware time
        """
        if when.tzinfo is None:
            raise ValueError("when must be an aware datetime: give it a tzinfo, UTC for instance")
        self._check_here()
        return await self._threads.run(self._engine.touched_since, when)


def _further(progress: Callable[[int, int], object], before: int) -> Callable[[int, int], object]:
    """Tell of a part's progress as that of the whole, of which so much was done before it."""
    return lambda done, total: progress(before + done, before + total)
