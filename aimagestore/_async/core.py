"""What is behind :class:`ImageStore`: opening, closing, reading, committing, locking and staging.

Awaiting tasks own nothing. The store owns its engine, its threads and everything that is open
(``own``); the lock's line owns grants until they are taken; the group committer owns the changes
that it commits. A task asks for something and waits. If it is interrupted at any step, by anyio,
trio or asyncio itself, it leaves nothing behind.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, nullcontext
from contextvars import ContextVar
from enum import Enum, auto
from functools import partial
from itertools import count
from typing import Final, TypeVar, cast

from anyio import Event, Lock, Semaphore, current_time, move_on_after
from msgspec.structs import replace

from .._core.catalog import Catalog
from .._core.content import Content, InlineContent
from .._core.image import Image
from .._core.mutations import Mutation
from .._core.view import View
from .._engine.items import CHUNK, Source, discard_all, stage_all
from .._engine.lock import AnyGrant, AnyLine, Grant, Request
from .._engine.protocol import (
    ChangeUnderWayError,
    Copying,
    CopyNeededError,
    Engine,
    Location,
    StagedContent,
)
from ..errors import LockTimeoutError, StoreClosedError, StoreReadOnlyError
from .committer import GroupCommitter
from .loop import EventLoop, is_coroutine_closing
from .staging import (
    BigDataSource,
    Expectations,
    Pouring,
    Progress,
    StagedItem,
    check_source,
    is_buffer,
)
from .threads import Stepper, Threads

T = TypeVar("T")

_READ_AGAIN: Final = 0.05
"""Seconds that a reader waits for the lock before it tries again to read without it."""

_ALL_WRITTEN: Final = 16 * CHUNK
"""The memory for the chunks of all streams into a store, until each has the smallest size."""

_STAGED_AT_ONCE: Final = 32
"""The items of data in memory that are staged at a time: more than the worker threads."""

_CHUNKS: Final = 3
"""The chunks of a stream: two that are written and hashed, and the next one."""


def _call_all(functions: Iterable[Callable[[], object]]) -> None:
    """Call functions in order, each even if an earlier one has raised."""
    with ExitStack() as stack:
        for function in reversed(list(functions)):
            stack.callback(function)


# Which process this is, counted in forks: asking the kernel takes longer than most lookups.
_forks = count(1)
_process = 0

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: globals().update(_process=next(_forks)))


class _State(Enum):
    NEW = auto()
    OPENING = auto()
    OPEN = auto()
    CLOSING = auto()
    CLOSED = auto()


# A member of an enum takes Python 3.11 as long to look up as an image.
_OPEN: Final = _State.OPEN


transactions: ContextVar[tuple[tuple[StoreCore, Callable[[], bool]], ...]] = ContextVar(
    "aimagestore_transactions", default=()
)
"""The transactions around the present code: the store of each, and whether it is still open."""


class StoreCore:
    """One store, opened at most once.

    :ivar location: where it is
    :ivar read_only: whether it is opened read-only
    """

    engine: Engine
    threads: Threads

    def __init__(self, location: Location, *, read_only: bool, lock_timeout: float | None) -> None:
        self.location = location
        self.read_only = read_only
        self._lock_timeout = lock_timeout
        self._state = _State.NEW
        # Whether it was closed while it was still being opened.
        self._is_unwanted = False
        self._process = -1
        # What the store has open for its users, and how each is closed. Changed in the loop only.
        self._owned: dict[object, Callable[[], object]] = {}
        # Called in the event loop when closing begins.
        self._on_closing: set[Callable[[], object]] = set()
        # Requests for the lock, apart from the committer's.
        self._requests: set[Request[object]] = set()
        # The number of transactions and other calls that closing waits for.
        self._holds = 0
        # The searches for content that are under way, by digest: set when they end.
        self._searches: dict[str, Event] = {}

    # Opening and closing

    @property
    def is_open(self) -> bool:
        """Whether calls are accepted."""
        return self._state is _State.OPEN

    async def open(self) -> None:
        """Open the store. If interrupted, or closed meanwhile, it is closed.

        :raises StoreClosedError: when it was opened before, or is closed meanwhile
        """
        if self._state is not _State.NEW:
            raise StoreClosedError("a store is opened only once: make another ImageStore")
        self._state = _State.OPENING
        self._process = _process
        self._loop = EventLoop()
        self.threads = Threads(self._loop)
        self._closed = Event()
        self._no_holds = Event()
        # Held by the one task that loads what others have committed; the rest find it in memory.
        self._loading = Lock(fast_acquire=True)
        self._staging = Semaphore(_STAGED_AT_ONCE, fast_acquire=True)
        try:
            self.engine = await self.threads.run_abandonable(
                self._open_engine, dispose=lambda engine: engine.close()
            )
        except BaseException:
            self._state = _State.CLOSED
            self._closed.set()
            self.threads.when_idle(self.threads.shutdown)
            raise
        self._committer = GroupCommitter(
            self.engine.writer,
            self.engine.lock,
            self.threads,
            self._lock_timeout,
            lambda: self._lock_timeout_error(self.engine.lock),
        )
        self._state = _State.OPEN
        if self._is_unwanted:
            await self.close()
            raise self._closed_error()

    def _open_engine(self) -> Engine:
        return self.location.open(read_only=self.read_only)

    async def close(self) -> None:
        """Close the store. Concurrent and later calls return when it is closed.

        If interrupted while another task opens the store or has a transaction open, this returns at
        once, and the store closes when that ends. Otherwise, it waits until the store is closed.

        :raises RuntimeError: in another event loop than the one that opened the store
        """
        if self.is_inherited or self._state in {_State.NEW, _State.CLOSED}:
            return
        if not is_coroutine_closing():
            self.check_here()
        if self._state is _State.OPENING:
            self._is_unwanted = True
            await self._closed.wait()
        if self._state is _State.OPEN:
            self._begin_closing()
        if self._state is _State.CLOSING:
            if self._holds:
                await self._no_holds.wait()
            await self._loop.wait_through(self._closed)

    def _begin_closing(self) -> None:
        self._state = _State.CLOSING
        for notify in list(self._on_closing):
            notify()
        self._committer.close()
        self.engine.lock.fail(self._requests, self._closed_error)
        self._close_if_unheld()

    def _close_if_unheld(self) -> None:
        if self._state is _State.CLOSING and not self._holds:
            self._no_holds.set()
            self.threads.when_idle(lambda: self.threads.spawn(self._close))

    def _close(self) -> None:
        """Release everything. In a worker thread, when no other call is under way."""
        try:
            _call_all([*self._owned.values(), self.engine.close])
        finally:
            self._loop.post(self._note_closed)
            self.threads.shutdown()

    def _note_closed(self) -> None:
        self._owned.clear()
        self._state = _State.CLOSED
        self._closed.set()

    def _closed_error(self) -> StoreClosedError:
        return StoreClosedError(
            f"the store {self.location.name} is not open: use it inside its 'async with' block"
        )

    def check_open(self) -> None:
        """Check that the caller may use the store.

        :raises StoreClosedError: when it is not open, or was opened before a fork
        :raises RuntimeError: in another event loop
        """
        if self._state is not _OPEN:
            raise self._closed_error()
        self.check_here()

    @property
    def is_inherited(self) -> bool:
        """Whether this process is a fork of the one that opened the store, which still uses it."""
        return self._process != _process

    def is_here(self) -> bool:
        """Return whether the caller is in the process and the event loop that opened the store."""
        return self._process == _process and self._loop.is_running_here()

    def check_here(self) -> None:
        """Check that the caller is in the process and the event loop that opened the store.

        A transaction needs no other check, because its store does not close before it ends.

        :raises StoreClosedError: after a fork
        :raises RuntimeError: in another event loop
        """
        if self.is_here():
            return
        if self.is_inherited:
            raise StoreClosedError(
                f"the store {self.location.name} was opened before this process was forked: "
                "open it again in the child"
            )
        raise RuntimeError(
            f"the store {self.location.name} was opened in another event loop: "
            "open it again in this one"
        )

    def is_inside_transaction(self) -> bool:
        """Return whether the caller is inside a transaction of this store."""
        around = transactions.get()
        return bool(around) and any(core is self and is_open() for core, is_open in around)

    def check_writable(self) -> None:
        """Check that the caller may change the store.

        :raises StoreClosedError: when it is not open
        :raises StoreReadOnlyError: when it was opened read-only
        :raises RuntimeError: inside a transaction of this store, or in another event loop
        """
        self.check_open()
        if self.is_inside_transaction():
            raise RuntimeError(
                "the transaction around this call holds the store's lock: use the transaction's "
                "own methods, and make any other call before it or after it"
            )
        if self.read_only:
            raise StoreReadOnlyError(
                f"the store {self.location.name} was opened read-only: "
                "open it without read_only=True to change it",
                path=self.location.name,
            )

    # What is open

    @property
    def readers(self) -> int:
        """The number of open readers, which share the memory for chunks."""
        return sum(isinstance(each, Source) for each in self._owned)

    def own(self, resource: object, close: Callable[[], object]) -> None:
        """Have a resource closed with the store, unless :meth:`release` closes it before."""
        self._owned[resource] = close
        if self.threads.is_over:  # the store closes what it owns, and may have missed this
            del self._owned[resource]
            self.threads.spawn(close)

    async def release(self, *resources: object) -> None:
        """Close those of the resources that the store owns, even if interrupted."""
        if self.is_inherited:
            return
        owned = [(r, c) for r in resources if (c := self._owned.pop(r, None)) is not None]
        # A commit closes the content that it has published.
        closes = [close for resource, close in owned if getattr(resource, "is_open", True)]
        if not closes:
            return
        try:
            call = self.threads.start(_call_all, closes)
        except StoreClosedError:  # the store closes what it owns, and may have missed these
            self.threads.spawn(lambda: _call_all(closes))
        else:
            await self.threads.finish(call)

    def turn_to_stage(self, data: BigDataSource) -> AbstractAsyncContextManager[object]:
        """Have few files open at a time for data in memory, for the duration of a block.

        A stream may have to wait for anything, so no other one waits for its end.
        """
        return self._staging if is_buffer(data) else nullcontext()

    async def stage(self, expectations: Expectations | None = None) -> StagedContent:
        """Begin new content, which the store owns. If interrupted, nothing is left behind.

        :param expectations: what the data will be; if the store has such content, that is returned
        """
        known = None if expectations is None else expectations.content
        content = None if known is None else await self._stage_stored(*known)
        if content is None:
            content = await self.threads.run_abandonable(
                self.engine.items.stage, dispose=lambda content: content.discard()
            )
            self.own(content, content.discard)
        return content

    async def _stage_stored(self, digest: str, size: int | None) -> StagedContent | None:
        async with self._alone_with(digest):
            content = await self.threads.run_while_wanted(
                partial(self.engine.items.stage_stored, digest, size), dispose=_discard
            )
        if content is not None:
            self.own(content, content.discard)
        return content

    @asynccontextmanager
    async def _alone_with(self, digest: str) -> AsyncIterator[None]:
        """Be the only task that looks for content with a digest, for the duration of a block.

        The content found may have to be read to verify it. The other tasks wait here, because
        waiting in worker threads would keep those busy.
        """
        while (other := self._searches.get(digest)) is not None:
            await other.wait()
        self._searches[digest] = done = Event()
        try:
            yield
        finally:
            del self._searches[digest]
            done.set()

    @asynccontextmanager
    async def stored(
        self, wanted: Mapping[str, tuple[str, int]]
    ) -> AsyncIterator[Mapping[str, StagedItem]]:
        """Provide those of the contents that the store has, for the duration of a block.

        :param wanted: SHA-256 digests and sizes, by key
        """
        found: dict[str, StagedContent] = {}
        try:
            for key, (digest, size) in wanted.items():
                content = await self._stage_stored(digest, size)
                if content is not None:
                    found[key] = content
            yield {key: StagedItem(self, content) for key, content in found.items()}
        finally:
            await self.release(*found.values())

    async def fill(
        self,
        content: StagedContent,
        data: BigDataSource,
        expectations: Expectations,
        progress: Progress | None,
    ) -> None:
        """Write data into new content, check it, and make it durable.

        If it is content that the store has already, no data is read.
        """
        pouring = Pouring(data, self.threads, expectations, progress)
        if content.is_stored:
            pouring.skip(content)
        else:
            await pouring.into(content, self._write_size())
        expectations.check(content)
        await self.finish(content)

    def _write_size(self) -> int:
        """Return how many bytes to write at a time: less, the more streams share the memory."""
        writers = max(len(self._owned) - self.readers, 1)
        return max(CHUNK // 4, min(_ALL_WRITTEN // _CHUNKS // writers, CHUNK))

    async def finish(self, content: StagedContent) -> None:
        """Make content durable, or find that the store has such content."""
        async with self._alone_with(content.digest):
            await self.threads.run(content.finish, interrupt=content.interrupt)

    def contents(
        self,
        data: Mapping[str, BigDataSource],
        expectations: Expectations,
        progress: Progress | None = None,
    ) -> AbstractAsyncContextManager[Mapping[str, Content]]:
        """Provide the content of big data for a commit, by key, for the duration of a block.

        Staged items are in use until the block ends. Little data stays in memory, and the commit
        writes it. All other data is written here, and discarded at the end unless a commit has
        published it.
        """
        return self._contents(data, expectations, progress, self.engine.items.inline_limit)

    @asynccontextmanager
    async def staged(
        self, data: BigDataSource, expectations: Expectations, progress: Progress | None
    ) -> AsyncIterator[StagedContent]:
        """Provide durable staged content for the duration of a block."""
        async with self._contents({"": data}, expectations, progress, 0) as contents:
            yield cast("StagedContent", contents[""])

    @asynccontextmanager
    async def _contents(
        self,
        data: Mapping[str, BigDataSource],
        expectations: Expectations,
        progress: Progress | None,
        inline_limit: int,
    ) -> AsyncIterator[Mapping[str, Content]]:
        contents: dict[str, Content] = {}
        used: list[StagedItem] = []
        small: dict[str, bytes] = {}
        staged: list[StagedContent] = []
        inline_size = 0
        try:
            # Before anything is read: a stream that was read cannot be given again.
            self.use_all(data.values(), used)
            for key, source in data.items():
                if isinstance(source, StagedItem):
                    contents[key] = content = source._content
                    expectations.check(content)
                    await self.finish(content)
                    if progress is not None:
                        progress(content.size, content.size)
                elif progress is None and expectations.is_empty and _is_small(source):
                    piece = bytes(source)  # type: ignore[arg-type]
                    # The sum counts, because all of it is hashed here, in the event loop.
                    if inline_size + len(piece) < inline_limit:
                        inline_size += len(piece)
                        contents[key] = InlineContent.of(piece)
                    else:
                        small[key] = piece
                else:
                    async with self.turn_to_stage(source):
                        contents[key] = content = await self.stage(expectations)
                        staged.append(content)
                        await self.fill(content, source, expectations, progress)
            if small:
                written = await self.threads.run_abandonable(  # all of them in one call
                    stage_all, self.engine.items, small, dispose=discard_all
                )
                for content in written.values():
                    self.own(content, content.discard)
                staged += written.values()
                contents |= written
            yield {key: contents[key] for key in data}
        finally:
            for item in used:
                item._unuse()
            await self.release(*staged)

    def use_all(self, data: Iterable[BigDataSource], used: list[StagedItem]) -> None:
        """Check that all data can be used, and use the staged items.

        :param used: gets each staged item that is in use from now on
        """
        for source in data:
            if isinstance(source, StagedItem):
                source._use(self)
                used.append(source)
            else:
                check_source(source)

    def on_closing(self, notify: Callable[[], object]) -> None:
        """Have a function called in the event loop when closing begins; at once if it has begun."""
        self._on_closing.add(notify)
        if self._state is not _State.OPEN:
            notify()

    def not_on_closing(self, notify: Callable[[], object]) -> None:
        """Undo :meth:`on_closing`."""
        self._on_closing.discard(notify)

    # Reading

    def current(self) -> Catalog | None:
        """Return the last commit if it is in memory and that is certain without blocking.

        :raises StoreClosedError: as :meth:`check_open`
        :raises RuntimeError: as :meth:`check_open`
        """
        # What check_open() checks, without a call: most of the time of a lookup is spent here.
        if (
            self._state is not _OPEN
            or self._process != _process
            or not self._loop.is_running_here()
        ):
            self.check_open()
        return self.engine.reader.current()

    async def read(self, look: Callable[[View], T], *, is_slow: bool = False) -> T:
        """Call ``look`` with a view of the last commit. If interrupted, this returns at once.

        :param is_slow: whether ``look`` takes long, so that it is called in a worker thread
        :raises LockTimeoutError: when another program was in the middle of a change for too long
        """
        catalog = self.current()
        if catalog is None:
            return await self.read_whole(lambda: self._load(look, is_slow=is_slow))
        if is_slow:
            return await self.threads.run_abandonable(look, catalog)
        return look(catalog)

    async def _load(self, look: Callable[[View], T], *, is_slow: bool) -> T:
        if not self.engine.reader.keeps_catalog:
            return await self.threads.run_abandonable(self.engine.reader.read, look)
        async with self._loading:
            catalog = self.current()
            if catalog is None:
                return await self.threads.run_abandonable(self.engine.reader.read, look)
        if is_slow:
            return await self.threads.run_abandonable(look, catalog)
        return look(catalog)

    async def read_whole(
        self, read: Callable[[], Awaitable[T]], *, waits_for_ever: bool = False
    ) -> T:
        """Make a call that reads, again when another program was in the middle of a change.

        If interrupted, this returns at once.

        :param read: makes the call, which may raise :exc:`ChangeUnderWayError`
        :param waits_for_ever: whether ``lock_timeout`` does not limit the wait
        :raises LockTimeoutError: when that program had not completed its change in time
        """
        try:
            return await read()
        except ChangeUnderWayError as error:
            line = error.read_lock or self.engine.read_lock
        self.check_open()
        timeout = None if waits_for_ever else self._lock_timeout
        deadline = math.inf if timeout is None else current_time() + timeout
        self._holds += 1
        try:
            while True:
                # Under the lock, the read succeeds, even beside writers that never pause. But a
                # writer of this library may get the lock first, and readers do not wait for those:
                # so this also reads without the lock, again and again.
                rest = deadline - current_time()
                grant = await acquire(
                    line,
                    self.threads,
                    max(0, min(rest, _READ_AGAIN)),
                    before_waiting=self.check_open,
                )
                try:
                    return await read()
                except ChangeUnderWayError as error:
                    next_line = error.read_lock or self.engine.read_lock
                finally:
                    if grant is not None:
                        await self.threads.run_shielded(grant.release)
                if rest <= 0:
                    raise await self._lock_timeout_error(line)
                line = next_line
        finally:
            self.end_hold()

    # Committing

    def submit(self, mutation: Mutation) -> Awaitable[Image | None]:
        """Have a mutation committed. If interrupted, it was committed or never will be.

        :returns: the image that the mutation returns, if it returns one
        :raises LockTimeoutError: when the lock was not free in time
        """
        self.check_writable()
        return self.with_copies(mutation, self._committer.submit)

    async def with_copies(
        self,
        mutation: Mutation,
        make: Callable[[Mutation], Awaitable[T]],
        *,
        kept: list[Copying] | None = None,
    ) -> T:
        """Make a mutation; if it changes an image of an additional store, copy its items for that.

        The items are copied without the lock, then the mutation is made again.

        :param make: makes the mutation
        :param kept: gets the copies that the mutation used, for the caller to release; without it,
            they are released here
        """
        try:
            return await make(mutation)
        except (CopyNeededError, ChangeUnderWayError) as error:
            failure = error
        copying: Copying | None = None
        try:
            while True:
                if isinstance(failure, ChangeUnderWayError):
                    await self.read_whole(
                        lambda: self.threads.run_abandonable(self.engine.reader.refresh)
                    )
                else:
                    if copying is not None:
                        await self.release(copying)
                    copying = failure.begin()
                    self.own(copying, copying.close)
                    await self.read_whole(partial(self._copy, copying))
                    mutation = replace(mutation, copies=copying)
                try:
                    result = await make(mutation)
                except (CopyNeededError, ChangeUnderWayError) as error:
                    failure = error
                else:
                    if copying is not None and kept is not None:
                        kept.append(copying)
                        copying = None
                    return result
        finally:
            if copying is not None:
                await self.release(copying)

    async def _copy(self, copying: Copying) -> None:
        await Stepper(copying.steps(), self.threads).run()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[AnyGrant]:
        """Hold the store's lock inside the block, and keep the store from closing."""
        grant = await self.acquire()
        try:
            yield grant
        finally:
            await self.release_grant(grant)

    async def acquire(self) -> AnyGrant:
        """Acquire the lock; :meth:`release_grant` must follow. If interrupted, nothing is held.

        The store does not close before the lock is released.

        :raises LockTimeoutError: when it was not free in time
        :raises StoreClosedError: when the store was closed meanwhile
        :raises RuntimeError: inside a transaction, which would wait for its own lock
        """
        # A store that is closing gets no new holds, so that it closes in the end.
        self.check_writable()
        self._holds += 1
        try:
            grant = await acquire(
                self.engine.lock,
                self.threads,
                self._lock_timeout,
                requests=self._requests,
                before_waiting=self.check_open,
            )
            if grant is None:
                raise await self._lock_timeout_error(self.engine.lock)
            if self._state is not _State.OPEN:
                await self.threads.run_shielded(grant.release)
                raise self._closed_error()
        except BaseException:
            self.end_hold()
            raise
        return grant

    async def release_grant(self, grant: AnyGrant) -> None:
        """Release the lock, even if interrupted."""
        try:
            await self.threads.run_shielded(grant.release)
        finally:
            self.end_hold()

    def drop_grant(self, grant: AnyGrant) -> None:
        """Release a lock for an owner that is not in the event loop. Callable in any thread."""
        # In a new thread, because the collector may run while this one holds a mutex.
        threading.Thread(target=grant.release, daemon=True).start()
        self._loop.post(self.end_hold)

    def end_hold(self) -> None:
        """End a hold whose lock is released, or whose release has begun."""
        self._holds -= 1
        self._close_if_unheld()

    async def _lock_timeout_error(self, line: AnyLine) -> LockTimeoutError:
        return await lock_timeout_error(line, self.threads, self._lock_timeout)


def check_lock_timeout(timeout: object) -> None:
    """Check a ``lock_timeout`` that was given.

    :raises TypeError: when it is neither ``None`` nor a number
    :raises ValueError: when it is negative, or no float can be as large
    """
    if timeout is None:
        return
    if not isinstance(timeout, int | float) or isinstance(timeout, bool):
        raise TypeError(
            f"lock_timeout must be None or a number of seconds, not {type(timeout).__name__}"
        )
    if not (0 <= timeout <= sys.float_info.max or timeout == math.inf):
        raise ValueError(
            "lock_timeout must be None or a number of seconds, at least 0, that fits a float"
        )


async def acquire(
    line: AnyLine,
    threads: Threads,
    timeout: float | None,
    *,
    requests: set[Request[object]] | None = None,
    before_waiting: Callable[[], object] = lambda: None,
) -> AnyGrant | None:
    """Acquire a lock; return ``None`` if it was not free in time. If interrupted, nothing is held.

    :param timeout: seconds to wait; ``None`` waits for ever, 0 tries once
    :param requests: lists the request while it waits, for whoever may fail it
    :param before_waiting: called before the wait; what it raises is raised
    """
    grant = await threads.run_abandonable(line.try_acquire, dispose=_release)
    if grant is not None or timeout == 0:
        return grant
    before_waiting()
    decided = Event()

    def notify() -> None:
        if not threads.loop.post(decided.set):
            _release_request(request)  # the loop has ended, and no task takes the lock

    request: Request[object] = line.request(notify)
    if requests is not None:
        requests.add(request)
    try:
        if timeout is None:
            await decided.wait()
        else:
            with move_on_after(timeout):
                await decided.wait()
    except BaseException:
        if not request.cancel():
            await threads.run_shielded(_release_request, request)
        raise
    finally:
        if requests is not None:
            requests.discard(request)
    return None if not decided.is_set() and request.cancel() else request.take()


def _is_small(source: object) -> bool:
    return is_buffer(source) and memoryview(source).nbytes <= CHUNK  # type: ignore[arg-type]


def _discard(content: StagedContent | None) -> None:
    if content is not None:
        content.discard()


def _release(grant: Grant[object] | None) -> None:
    if grant is not None:
        grant.release()


def _release_request(request: Request[object]) -> None:
    try:
        grant = request.take()
    except Exception:  # noqa: BLE001 (nobody waits for the lock any more)
        return
    grant.release()


async def lock_timeout_error(
    line: AnyLine, threads: Threads, timeout: float | None
) -> LockTimeoutError:
    """Build the error that says who holds the lock."""
    holder = await threads.run_abandonable(line.describe_holder)
    return LockTimeoutError(
        f"{holder.lock} was not free within {timeout} s: {holder.description}; "
        "try again, or open the store with a longer lock_timeout",
        path=holder.lock,
        holder_pid=holder.process,
        last_writer_pid=holder.last_writer,
    )
