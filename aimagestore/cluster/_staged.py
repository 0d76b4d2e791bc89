"""Big data that is being uploaded to the object store."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, InvalidStateError, wait
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID, uuid4

from .._core.content import Buffer
from .._engine.digesting import Digester
from .._engine.items import CHUNK
from ..errors import StoreUnavailableError
from ._blob_reader import BlobReader
from ._blobs import FAILURES, PART, Blobs

if TYPE_CHECKING:
    from obstore import WritableFile

logger = logging.getLogger("aimagestore")

_MOMENT = 0.25
"""Seconds that a discarded object's removal is waited for, and an interrupted upload. Longer, they
go on by themselves."""

# Seconds after which an object is not believed to be there still: a collection of garbage may have
# removed it. This clock need not be right, because a commit that refers to one fails as well.
_YOUNG = 60.0

# Seconds after which the database need not know any more that a collection removed an object: half
# of the time for which it keeps that.
_OLD = 30 * 86400.0

T = TypeVar("T")


class StoredBlob(NamedTuple):
    """An object that an item has."""

    id: UUID
    size: int
    digest: str


class Search(NamedTuple):
    """The result of a search for content that the store has.

    :ivar found: the object
    :ivar is_certain: whether the store had none, so that one that it has later is a new one
    """

    found: StoredBlob | None
    is_certain: bool = False


class _Sink(io.BufferedIOBase):
    """Passes on what is written, and digests it beside that."""

    def __init__(
        self, begin: Callable[[], None], append: Callable[[bytes], None], helpers: Executor
    ) -> None:
        self._begin = begin
        self._append = append
        self.size = 0
        self.digester = Digester(helpers)

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:  # type: ignore[override]
        # The writer keeps the data until it is sent; the caller may change it before that.
        piece = data if isinstance(data, bytes) else bytes(data)
        self._begin()
        self.digester.add(piece)
        self._append(piece)
        self.size += len(piece)
        return len(piece)

    def flush(self) -> None:
        self.digester.finish()


class StagedBlob:
    """An object that no record refers to yet; see :class:`aimagestore._engine.StagedContent`.

    Where the store has the content already, it is the object of another item. When its process
    dies, ``collect_garbage`` removes what was written.

    :param uploaders: threads that wait for the object store
    :param removers: threads that remove what is discarded
    :param search: looks for content that the store has, by its digest and size
    :param stored: the content, where the store has it
    :ivar id: the object
    :ivar is_stored: whether it is the object of an item
    :ivar may_share: whether an item that has the content by now has got it since it was looked for
    """

    def __init__(
        self,
        blobs: Blobs,
        helpers: Executor,
        uploaders: Executor,
        removers: Executor,
        *,
        search: Callable[[str, int], Search],
        stored: StoredBlob | None = None,
    ) -> None:
        self.id: UUID = uuid4() if stored is None else stored.id
        self.is_stored = stored is not None
        self.may_share = False
        # Where nothing was written: what the content is.
        self._stored = stored
        self._search = search
        self._blobs = blobs
        self._uploaders = uploaders
        self._removers = removers
        # Held while the writer is used: a cancelled write may still be in its thread.
        self._mutex = threading.Lock()
        self._writer = blobs.writer(self.id if stored is None else uuid4())
        self._sink = _Sink(self._begin, self._append, helpers)
        self._finished: float | None = None if stored is None else time.time()
        self._is_broken = False
        self._is_open = True
        self._is_in_doubt = False
        # A call of the writer that did not end in time.
        self._overdue: Future[Any] | None = None
        # Done when the present write is to end soon.
        self._interruption: Future[None] = Future()

    def _begin(self) -> None:
        if self._finished is not None:
            with self._writing():
                self._begin_again()

    def _append(self, piece: bytes) -> None:
        with self._writing():
            self._upload(lambda: self._writer.write(piece))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._mutex:
            if self._is_broken:
                raise _broken()
            try:
                yield
            finally:
                self._interruption = Future()

    def _upload(self, call: Callable[[], object]) -> None:
        """Call the writer, with a deadline. It blocks while earlier parts are being sent.

        :raises StoreUnavailableError: when the object store is unavailable; nothing more can be
            written then
        """
        try:
            self._wait(call)
        except StoreUnavailableError:
            self._is_broken = True
            raise

    def _wait(self, call: Callable[[], T]) -> T:
        """Wait for a call of the object store, until its deadline or :meth:`interrupt`.

        :raises StoreUnavailableError: when the object store is unavailable
        """
        interruption = self._interruption
        future: Future[T] = self._uploaders.submit(call)
        either: list[Future[Any]] = [future, interruption]
        wait(either, self._blobs.deadline, FIRST_COMPLETED)
        try:
            return future.result(_MOMENT if interruption.done() else 0)
        except TimeoutError:
            self._overdue = future
            raise StoreUnavailableError(
                f"{self._blobs.name}: an upload made no progress for {self._blobs.deadline:g} s"
            ) from None
        except FAILURES as error:
            raise self._blobs.unavailable(error) from None

    def _begin_again(self) -> None:
        """Continue in another object that begins with the finished one: objects never change."""
        longer = uuid4()
        writer = self._blobs.writer(longer)
        with BlobReader(self._blobs, self.id) as reader:
            while piece := reader.read(CHUNK):
                self._upload(partial(writer.write, piece))
                if self._stored is not None:
                    self._sink.digester.add(piece)
                    self._sink.size += len(piece)
        if not self.is_stored:
            self._blobs.delete([self.id])
        self.id, self._writer, self._finished = longer, writer, None
        self.is_stored, self._stored = False, None

    @property
    def sink(self) -> io.BufferedIOBase:
        return self._sink

    @property
    def size(self) -> int:
        stored = self._stored
        return self._sink.size if stored is None else stored.size

    @property
    def digest(self) -> str:
        stored = self._stored
        if stored is not None:
            return stored.digest
        self._sink.flush()
        return self._sink.digester.digest

    @property
    def is_open(self) -> bool:
        return self._is_open

    def finish(self) -> None:
        """Complete the object, so that it is durable; if it was complete, check that it is there.

        Where the store has the content, that is used instead.

        :raises ValueError: when a write has failed before, or the object was collected
        :raises StoreUnavailableError: when it could not be stored
        """
        self._sink.flush()
        with self._writing():
            if self._finished is None:
                if not self._use_stored():
                    self._upload(self._writer.close)
            elif self.is_young:
                return
            elif not self._wait(lambda: self._blobs.exists(self.id)):
                raise collected()
            self._finished = time.time()

    def _use_stored(self) -> bool:
        """Use an object of the store instead, and return whether it has one."""
        try:
            found, self.may_share = self._wait(partial(self._search, self.digest, self.size))
        except StoreUnavailableError:
            return False
        if found is None:
            return False
        if self._sink.size >= PART:
            self._remove_soon(self.id, self._writer)
        self.id, self.is_stored = found.id, True
        return True

    @property
    def is_finished(self) -> bool:
        """Whether the object is complete."""
        return self._finished is not None

    @property
    def is_young(self) -> bool:
        """Whether the object was there so lately that no collection can have taken it since."""
        return self._finished is not None and 0 <= time.time() - self._finished < _YOUNG

    @property
    def is_old(self) -> bool:
        """Whether only the object store can tell if the object is there still."""
        return self._finished is not None and time.time() - self._finished > _OLD

    def interrupt(self) -> None:
        """Make a write that waits for the object store in another thread end within a moment."""
        with suppress(InvalidStateError):
            self._interruption.set_result(None)

    def read(self) -> bytes:
        """Return what was written; finishes the object."""
        self.finish()
        with BlobReader(self._blobs, self.id) as reader:
            return reader.readall()

    def mark_in_doubt(self) -> None:
        """Note that a commit which may be made refers to it."""
        self._is_in_doubt = True

    def mark_undone(self) -> None:
        """Note that the commit was not made."""
        self._is_in_doubt = False

    def mark_committed(self, *, is_needed: bool) -> None:
        """Note that a commit was made: from now on the object belongs to the store.

        :param is_needed: whether an item has it; otherwise the item has another with its content
        """
        self._is_open = False
        if not is_needed and not self.is_stored:
            self._remove_soon(self.id, None)

    def discard(self) -> None:
        """Remove the object, unless a commit may refer to it.

        Returns after a moment, even when the object store does not answer: the removal goes on in
        another thread, and what it leaves behind is garbage.
        """
        is_mine = self._is_open and not self._is_in_doubt and not self.is_stored
        self._is_open = False
        # What fits into one part is not sent before it is finished.
        if not is_mine or (self._finished is None and self._sink.size < PART):
            return
        with suppress(TimeoutError, RuntimeError):  # RuntimeError: the store has been closed
            self._removers.submit(self._remove).result(_MOMENT)

    def _remove_soon(self, blob: UUID, writer: WritableFile | None) -> None:
        """Remove an object that is not needed, completing its upload first."""

        def remove() -> None:
            try:
                if writer is not None:
                    with suppress(*FAILURES):
                        writer.close()
                self._blobs.delete([blob])
            except StoreUnavailableError as error:
                logger.warning("left to collect_garbage: %s", error)

        with suppress(RuntimeError):  # the store has been closed
            self._removers.submit(remove)

    def _remove(self) -> None:
        try:
            with self._mutex:
                if self._overdue is not None:
                    with suppress(*FAILURES):
                        self._overdue.result()
                if self._finished is None:
                    # This client cannot abort an upload in parts: complete it, then remove it.
                    with suppress(*FAILURES):
                        self._writer.close()
                self._blobs.delete([self.id])
        except StoreUnavailableError as error:
            logger.warning("left to collect_garbage: %s", error)


def collected() -> ValueError:
    """Return what to raise for data that a collection of garbage has removed."""
    return ValueError(
        "the data was staged longer ago than the grace period, and was collected as garbage: "
        "stage it again"
    )


def _broken() -> ValueError:
    return ValueError("a write to this staged data has failed: stage it again")
