"""Several changes in one commit."""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar

from .._core.content import Content, InlineContent
from .._core.draft import Draft
from .._core.image import Image
from .._core.mutations import Mutation
from .._core.names import check_key
from .._core.view import View
from .._engine import items
from .._engine.items import Measured
from .._engine.lock import AnyGrant
from .._engine.protocol import Copying, StagedContent
from ..errors import StoreClosedError
from .core import StoreCore, transactions
from .methods import ImageMethods
from .staging import BigDataSource, Expectations, Progress, StagedItem, is_buffer
from .threads import Stepper

T = TypeVar("T")

_SMALL = 64 * 1024
"""Bytes that are hashed faster than a worker thread is reached."""


class Transaction(ImageMethods):
    """Reads and changes a store while its lock is held; committed once, at the end of the block.

    Has the reading and changing methods of :class:`ImageStore`, with the same parameters and
    errors. Reads see the transaction's own changes. A method that raises changes nothing, and the
    transaction goes on; an exception that leaves the block discards all changes.

    Other writers wait for the whole block, and so for all that is done in it. On a cluster, big
    data that is given as bytes is uploaded while the lock is held, and big data is read so: stage
    what is to be added, and read what is needed, before the transaction. What was staged with its
    data, as in ``store.stage(data)``, is durable then, and the transaction waits for the database
    only.
    """

    def __init__(self, core: StoreCore, draft: Draft) -> None:
        self._core = core
        self._draft: Draft | None = draft
        # Held while a thread uses the draft. A task that was cancelled leaves its thread behind.
        self._mutex = threading.Lock()
        self._used: list[StagedItem] = []
        self._staged: list[StagedContent] = []
        self._copies: list[Copying] = []

    def _is_open(self) -> bool:
        return self._draft is not None

    def _open_draft(self) -> Draft:
        if self._draft is None:
            raise _over()
        self._core.check_here()
        return self._draft

    def _end(self) -> None:
        self._draft = None

    def _view(self) -> View | None:
        draft = self._open_draft()
        return draft if self._core.engine.reader.keeps_catalog else None

    async def _read(self, look: Callable[[View], T], *, is_slow: bool = False) -> T:
        view = self._view()
        # A thread may be in the middle of a change, or of reading an item: wait in a thread too.
        if view is not None and not is_slow and self._mutex.acquire(blocking=False):
            try:
                return look(view)
            finally:
                self._mutex.release()
        return await self._with_draft(look)

    async def _with_draft(self, look: Callable[[Draft], T]) -> T:
        self._open_draft()

        def locked() -> T:
            with self._mutex:
                return look(self._draft_in_thread())

        return await self._core.threads.run_abandonable(locked)

    def _draft_in_thread(self) -> Draft:
        # It may have ended since the task looked: a change made now would not be committed.
        if self._draft is None:
            raise _over()
        return self._draft

    async def _change(self, mutation: Mutation) -> Image | None:
        return await self._core.with_copies(mutation, self._make, kept=self._copies)

    async def _make(self, mutation: Mutation) -> Image | None:
        prepare = self._core.engine.writer.prepare

        def apply(is_wanted: Callable[[], bool]) -> Image | None:
            with self._mutex:
                draft = self._draft_in_thread()
                draft.prefetch(mutation.refs, mutation.names)
                plan = mutation(draft)
                prepare(plan, draft)
                # Applied after its task has left, it would come after what that does next.
                if is_wanted():
                    draft.apply(plan)
            return plan.image

        view = self._view()
        if view is not None and mutation.copies is None:
            draft = self._open_draft()
            if self._mutex.acquire(blocking=False):
                try:
                    plan = mutation(draft)
                    if not (plan.deleted or plan.files or plan.created):
                        draft.apply(plan)
                        return plan.image
                finally:
                    self._mutex.release()
        return await self._core.threads.run_deciding(apply)

    def _check_writable(self) -> None:
        self._open_draft()

    @asynccontextmanager
    async def _contents(
        self,
        data: Mapping[str, BigDataSource],
        expectations: Expectations,
        progress: Progress | None,
    ) -> AsyncIterator[Mapping[str, Content]]:
        contents: dict[str, Content] = {}
        used: list[StagedItem] = []
        try:
            for key, item in data.items():
                check_key(key)
                if isinstance(item, StagedItem):
                    staged = item.use(self._core)
                    used.append(item)
                    expectations.check(staged)
                    contents[key] = staged
                else:
                    contents[key] = await self._content_of(item, expectations)
                if progress is not None:
                    progress(contents[key].size, contents[key].size)
            yield contents
        except BaseException:
            for item in used:
                item.unuse()
            raise
        self._used += used

    async def _content_of(self, data: object, expectations: Expectations) -> Content:
        if not is_buffer(data):
            raise TypeError(
                "in a transaction big data is bytes or a StagedItem, not "
                f"{type(data).__name__}: stage it before the transaction"
            )
        if memoryview(data).nbytes <= _SMALL and expectations.is_empty:  # type: ignore[arg-type]
            return InlineContent.of(data)  # type: ignore[arg-type]
        # Large data goes to the store at once: neither memory nor the event loop has to hold it.
        content = await self._core.stage(expectations)
        self._staged.append(content)
        await self._core.fill(content, data, expectations, None)  # type: ignore[arg-type]
        return content

    async def _read_item(self, image: Image, key: str) -> bytes:
        engine = self._core.engine

        def read(draft: Draft) -> bytes:
            content = draft.files.get((image.id, key))
            if content is not None:
                return content.read()
            return items.read_item(engine.items_of(draft, image.id), image.id, key)

        return await self._with_draft(read)

    async def _measure(self, image: Image, key: str, progress: Progress | None) -> Measured:
        engine = self._core.engine
        kept = await self._with_draft(lambda draft: engine.items_of(draft, image.id))
        steps = items.measure_item(kept, image.id, key)
        measured = await Stepper(steps, self._core.threads).run(progress)
        await self._record(image, key, measured)
        return measured


class TransactionBlock:
    """The ``async with`` block of a transaction.

    The lock is the store's: the block only says when to commit, and when to release it. So it
    may be left by any task, and even not at all: a block that is garbage-collected while its
    transaction is open has it discarded.
    """

    def __init__(self, core: StoreCore) -> None:
        self._core = core
        self._transaction: Transaction | None = None
        self._finalizer: weakref.finalize[Any, TransactionBlock] | None = None

    async def __aenter__(self) -> Transaction:
        core = self._core
        if self._transaction is not None:
            raise RuntimeError("a transaction is entered once: call transaction() again")
        grant = await core.acquire()
        try:
            draft = await core.read_whole(
                lambda: core.threads.run(grant.run, core.engine.writer.draft, grant)
            )
        except BaseException:
            await core.release_grant(grant)
            raise
        self._grant = grant
        self._transaction = Transaction(core, draft)
        self._finalizer = weakref.finalize(self, _drop, core, grant, self._transaction)
        self._finalizer.atexit = False
        transactions.set((*transactions.get(), (core, self._transaction._is_open)))
        return self._transaction

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        transaction, core = self._transaction, self._core
        assert transaction is not None, "the block was entered"
        draft = transaction._draft
        transaction._end()
        transactions.set(tuple(each for each in transactions.get() if each[1]()))
        if draft is None or self._finalizer is None or self._finalizer.detach() is None:
            return
        finish = self._discard if error is not None else lambda: self._commit(transaction, draft)
        # Begun before anything is awaited, and owned by the store from then on.
        call = core.threads.start(finish)
        try:
            if kind is None or not issubclass(kind, GeneratorExit):
                await core.threads.finish(call)
        finally:
            for item in transaction._used:
                item.unuse()
            core.end_hold()
            await core.release(*transaction._staged, *transaction._copies)

    def _discard(self) -> None:
        self._grant.release()

    def _commit(self, transaction: Transaction, draft: Draft) -> None:
        try:
            with transaction._mutex:
                self._core.engine.writer.publish(self._grant, draft)
        finally:
            self._grant.release()


def _over() -> StoreClosedError:
    return StoreClosedError("the transaction is over: begin another one")


def _drop(core: StoreCore, grant: AnyGrant, transaction: Transaction) -> None:
    """Discard a transaction whose block was garbage-collected. In any thread."""
    transaction._end()
    core.drop_grant(grant)
