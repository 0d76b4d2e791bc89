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
from .._engine.items import Measured, measure_file
from .._engine.lock import AnyGrant
from .._engine.protocol import Copying, StagedContent, Steps
from ..errors import StoreClosedError
from .core import StoreCore, transactions
from .loop import is_coroutine_closing
from .methods import ImageMethods
from .staging import BigDataSource, Expectations, Progress, StagedItem, is_buffer
from .threads import Stepper

T = TypeVar("T")

_SMALL = 64 * 1024
"""Bytes that take no longer to hash than a worker thread takes to start on them."""


class Transaction(ImageMethods):
    """Several changes of a store, made under its lock and committed at the end of the block.

    :meth:`ImageStore.transaction` begins one. It has the reading and changing methods of
    :class:`ImageStore`, with the same parameters and errors. Reads see the transaction's own
    changes. A method that raises changes nothing, and the transaction can go on; an exception that
    leaves the block discards all changes.

    Other writers wait until the block ends. On a cluster, big data that is read here or given as
    bytes makes them wait for the object store too: read what is needed, and stage what is added,
    before the transaction. What ``store.stage(data)`` has staged is durable already, so that the
    transaction waits for the database only. If the object store does not answer, a transaction
    that waits for it fails at the deadline, and the others go on.
    """

    def __init__(self, core: StoreCore, draft: Draft) -> None:
        self._core = core
        self._draft: Draft | None = draft
        # Held while the draft is used. A cancelled task may leave a thread that still uses it.
        self._mutex = threading.Lock()
        # What the changes refer to, released when the transaction has ended.
        self._used: list[StagedItem] = []
        self._staged: list[StagedContent] = []
        self._copies: list[Copying] = []

    def __repr__(self) -> str:
        state = "open" if self._is_open() else "over"
        return f"<Transaction of {self._core.location.name!r}: {state}>"

    def _is_open(self) -> bool:
        return self._draft is not None

    def _open_draft(self) -> Draft:
        if self._draft is None:
            raise _over()
        self._core.check_here()
        return self._draft

    def _end(self) -> None:
        self._draft = None

    def _view(self) -> None:
        return None  # a thread may be changing the draft

    def _draft_in_memory(self) -> Draft | None:
        draft = self._open_draft()
        return draft if self._core.engine.reader.keeps_catalog else None

    async def _read(self, look: Callable[[Draft], T], *, is_slow: bool = False) -> T:
        draft = self._draft_in_memory()
        # If another thread uses the draft, wait in a thread as well.
        if draft is not None and not is_slow and self._mutex.acquire(blocking=False):
            try:
                return look(draft)
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
        # Checked again, because the transaction may have ended before the thread got here.
        if self._draft is None:
            raise _over()
        return self._draft

    async def _change(self, mutation: Mutation) -> Image | None:
        copies: list[Copying] = []
        try:
            return await self._core.with_copies(mutation, self._make, kept=copies)
        finally:
            if self._is_open():
                self._copies += copies
            else:  # another task has ended the block meanwhile
                await self._core.release(*copies)

    async def _make(self, mutation: Mutation) -> Image | None:
        prepare = self._core.engine.writer.prepare

        def apply(is_wanted: Callable[[], bool]) -> Image | None:
            with self._mutex:
                draft = self._draft_in_thread()
                draft.prefetch(mutation.refs, mutation.names)
                plan = mutation(draft)
                prepare(plan, draft)
                # The next change of an interrupted task must not come before this one.
                if is_wanted():
                    draft.apply(plan)
            return plan.image

        draft = self._draft_in_memory()
        if draft is not None and mutation.copies is None and self._mutex.acquire(blocking=False):
            try:
                plan = mutation(draft)
                # A change of records alone needs no preparation, which would take a thread.
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
        size = 0
        try:
            # Before anything is read: a stream that was read cannot be given again.
            self._core.use_all(data.values(), used)
            for key, item in data.items():
                if isinstance(item, StagedItem):
                    staged = item._content
                    expectations.check(staged)
                    contents[key] = staged
                else:
                    contents[key] = await self._content_of(item, expectations, size > _SMALL)
                    size += contents[key].size
                if progress is not None:
                    progress(contents[key].size, contents[key].size)
            yield contents
        except BaseException:
            for item in used:
                item._unuse()
            raise
        if self._is_open():
            self._used += used
        else:  # another task has ended the block meanwhile
            for item in used:
                item._unuse()

    async def _content_of(
        self, data: object, expectations: Expectations, in_thread: bool
    ) -> Content:
        """Return the content of an item.

        :param in_thread: whether a thread hashes it, because the event loop has hashed enough
        """
        if not is_buffer(data):
            raise TypeError(
                "in a transaction, big data must be bytes or a StagedItem, not "
                f"{type(data).__name__}: stage it before the transaction"
            )
        if memoryview(data).nbytes <= _SMALL and expectations.is_empty:  # type: ignore[arg-type]
            if in_thread:
                return await self._core.threads.run_abandonable(InlineContent.of, data)  # type: ignore[arg-type]
            return InlineContent.of(data)  # type: ignore[arg-type]
        # Large data is written at once, so that memory need not keep it until the commit.
        async with self._core.turn_to_stage(data):  # type: ignore[arg-type]
            content = await self._core.stage(expectations)
            self._staged.append(content)
            try:
                self._open_draft()
                await self._core.fill(content, data, expectations, None)  # type: ignore[arg-type]
            except Exception:
                if self._is_open():
                    raise
                # Another task has ended the block meanwhile, and this content with it, or before.
                await self._core.release(content)
                raise _over() from None
        return content

    async def _read_item(self, image: Image, key: str) -> bytes:
        def read(draft: Draft) -> bytes:
            content = draft.files.get((image.id, key))
            if content is not None:
                return content.read()
            with self._core.engine.open_item(draft, image.id, key) as file:
                return file.readall()

        return await self._core.read_whole(lambda: self._with_draft(read))

    async def _measure(self, image: Image, key: str, progress: Progress | None) -> Measured:
        core = self._core

        def steps() -> Steps[Measured]:
            with self._mutex:
                file = core.engine.open_item(self._draft_in_thread(), image.id, key)
            with file:
                return (yield from measure_file(file))

        measured = await core.read_whole(lambda: Stepper(steps(), core.threads).run(progress))
        await self._record(image, key, measured)
        return measured


class TransactionBlock:
    """The ``async with`` block of a transaction.

    The store holds the lock; the block only tells it when to commit or to release the lock. So any
    task may leave the block. If no task does, the transaction is discarded when the block is
    garbage-collected.
    """

    def __init__(self, core: StoreCore) -> None:
        self._core = core
        self._transaction: Transaction | None = None
        self._finalizer: weakref.finalize[Any, TransactionBlock] | None = None

    async def __aenter__(self) -> Transaction:
        core = self._core
        if self._transaction is not None:
            raise RuntimeError("a transaction is entered only once: call transaction() again")
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
        if not core.is_here() and not is_coroutine_closing():
            if not core.is_inherited:  # else the lock is the parent's
                core.drop_grant(self._grant)
            if error is None:
                core.check_here()
            return
        finish = self._discard if error is not None else lambda: self._commit(transaction, draft)
        # The threads own the call before anything is awaited.
        call = core.threads.start(finish)
        try:
            if kind is None or not issubclass(kind, GeneratorExit):  # then nothing can be awaited
                await core.threads.finish(call)
        finally:
            for item in transaction._used:
                item._unuse()
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
