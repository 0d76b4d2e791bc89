"""Big data that is being uploaded to the object store."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple, TypeVar
from uuid import UUID

from .._core.content import Buffer
from .._engine.closing import LastUse
from .._engine.digesting import Digester
from .._engine.items import CHUNK
from ..errors import StoreUnavailableError
from ._blob_reader import BlobReader
from ._blobs import Blobs
from ._removers import Removers
from ._upload import Interruption, Upload, wait_for

logger = logging.getLogger("aimagestore")

# Seconds after which an object is looked for again: a garbage collection may have removed it. This
# clock need not be right, because a commit that refers to a removed object fails as well.
_YOUNG = 60.0

# Seconds after which the database may have forgotten that a garbage collection removed an object:
# half of the time for which it keeps tombstones.
_OLD = 30 * 86400.0

T = TypeVar("T")


class StoredBlob(NamedTuple):
    """An object that an item has, with its size in bytes and its digest."""

    id: UUID
    size: int
    digest: str


class Search(NamedTuple):
    """The result of a search for content that the store has.

    :ivar found: the object, if there is one
    :ivar is_certain: whether there was none, not even a lost one, so that one found later is new
    """

    found: StoredBlob | None
    is_certain: bool = False


class _Sink(io.BufferedIOBase):
    """Passes on what is written, and digests it in another thread.

    :param begin: called before each write
    :param append: called with each piece
    """

    def __init__(
        self, begin: Callable[[], None], append: Callable[[memoryview], None], helpers: Executor
    ) -> None:
        self._begin = begin
        self._append = append
        self.size = 0
        self.digester = Digester(helpers)

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:  # type: ignore[override]
        piece = memoryview(data).cast("B")
        self._begin()
        self.digester.add(piece)
        try:
            self._append(piece)
            self.size += len(piece)
        finally:
            if not isinstance(data, bytes):
                self.flush()  # from here on, the caller may change the data
        return len(piece)

    def flush(self) -> None:
        self.digester.finish()


class StagedBlob:
    """Content for items; see :class:`aimagestore._engine.protocol.StagedContent`.

    It is a new object, or that of another item with the same content. When the process dies,
    ``collect_garbage`` removes what was written.

    :param uploaders: threads that wait for the object store
    :param removers: remove what is discarded
    :param search: looks for content that the store has, by its digest and size
    :param stored: the object of another item; ``None`` for a new one
    :ivar id: the object
    :ivar is_stored: whether it is the object of another item
    :ivar may_share: whether a commit may use an object with this content that another commit has
        added since the search
    """

    def __init__(
        self,
        blobs: Blobs,
        helpers: Executor,
        uploaders: Executor,
        removers: Removers,
        *,
        search: Callable[[str, int], Search],
        stored: StoredBlob | None = None,
    ) -> None:
        self._upload = Upload(blobs, uploaders)
        self.id: UUID = self._upload.id if stored is None else stored.id
        self.is_stored: bool = stored is not None
        self.may_share: bool = False
        # The object of another item, as long as nothing is written to it.
        self._stored = stored
        self._search = search
        self._blobs = blobs
        self._uploaders = uploaders
        self._removers = removers
        self._last_use = LastUse()
        self._sink = _Sink(self._begin, self._append, helpers)
        self._finished: float | None = None if stored is None else time.time()
        self._is_broken = False
        self._is_open = True
        self._is_in_doubt = False
        # Done when the present write is to end.
        self._interruption: Interruption = Future()

    def _begin(self) -> None:
        if self._finished is not None:
            with self._writing():
                self._begin_again()

    def _append(self, piece: memoryview) -> None:
        with self._writing(), self._breaking():
            self._upload.write(piece, self._interruption)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Use the upload in the block, which :meth:`interrupt` ends.

        :raises ValueError: when a write has failed before
        """
        with self._last_use.in_use(self._close):
            if self._is_broken:
                raise _broken()
            try:
                yield
            finally:
                self._interruption = Future()

    def _close(self) -> None:
        self._upload.close()

    @contextmanager
    def _breaking(self) -> Iterator[None]:
        """Refuse all further writes when the block fails."""
        try:
            yield
        except BaseException:
            self._is_broken = True
            raise

    def _wait(self, call: Callable[[], T]) -> T:
        """Call in another thread, and wait until the deadline or :meth:`interrupt`.

        :raises StoreUnavailableError: when a server is unavailable
        """
        until = time.monotonic() + self._blobs.deadline
        return wait_for(self._uploaders.submit(call), until, self._interruption, self._blobs)

    def _begin_again(self) -> None:
        """Continue in a new object that begins with the finished one: objects never change."""
        former, is_mine = self._upload, not self.is_stored
        longer = Upload(self._blobs, self._uploaders)
        try:
            with BlobReader(self._blobs, self.id) as reader:
                while piece := reader.read(CHUNK):
                    longer.write(memoryview(piece), self._interruption)
                    if self._stored is not None:
                        self._sink.digester.add(piece)
                        self._sink.size += len(piece)
        except BaseException:
            self._is_broken = True
            self._remove_soon(longer)
            raise
        self._upload, self.id, self._finished = longer, longer.id, None
        self.is_stored, self._stored = False, None
        if is_mine:
            self._remove_soon(former)

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

        If the store has the content, its object is used instead.

        :raises ValueError: when a write has failed before, or the object was collected
        :raises StoreUnavailableError: when the object store is unavailable, or refuses
        """
        self._sink.flush()
        with self._writing():
            if self._finished is None:
                if not self._use_stored():
                    with self._breaking():
                        self._upload.complete(self._interruption)
            elif self.is_young:
                return
            elif self._wait(lambda: self._blobs.size_of(self.id)) is None:
                raise collected()
            self._finished = time.time()

    def _use_stored(self) -> bool:
        """Use an object of the store instead; return whether it has one."""
        try:
            found, self.may_share = self._wait(partial(self._search, self.digest, self.size))
        except StoreUnavailableError:
            return False
        if found is None:
            return False
        self._remove_soon(self._upload)
        self.id, self.is_stored = found.id, True
        return True

    @property
    def is_finished(self) -> bool:
        """Whether the object is complete."""
        return self._finished is not None

    @property
    def is_young(self) -> bool:
        """Whether the object was there so lately that no garbage collection has taken it since."""
        return self._finished is not None and 0 <= time.time() - self._finished < _YOUNG

    @property
    def is_old(self) -> bool:
        """Whether the database cannot tell any more if a garbage collection took the object."""
        return self._finished is not None and time.time() - self._finished > _OLD

    def interrupt(self) -> None:
        """Make a write that waits in another thread end within :data:`MOMENT`. Does not block."""
        with suppress(InvalidStateError):
            self._interruption.set_result(None)

    def read(self) -> bytes:
        """Return what was written; finishes the object."""
        self.finish()
        with BlobReader(self._blobs, self.id) as reader:
            return reader.readall()

    def mark_in_doubt(self) -> None:
        """Note that a commit refers to it whose outcome is not known."""
        self._is_in_doubt = True

    def mark_undone(self) -> None:
        """Note that the commit was not made."""
        self._is_in_doubt = False

    def mark_committed(self, *, is_needed: bool) -> None:
        """Note that a commit was made, so that the object belongs to the store.

        :param is_needed: whether an item has it; otherwise its item has another object with the
            same content, and this one is removed
        """
        self._is_open = False
        if not is_needed and not self.is_stored:
            self._remove_soon(self._upload)

    def discard(self, *, waits: bool = True) -> None:
        """Remove the object, unless a commit may refer to it. Idempotent.

        Waits a moment for the removal, which continues in another thread. If it fails,
        ``collect_garbage`` removes the object.

        :param waits: whether to wait at all
        """
        is_mine = self._is_open and not self._is_in_doubt and not self.is_stored
        self._is_open = False
        # A write may still send something, in a thread whose task was cancelled.
        is_mine &= not self._last_use.is_unused() or self._upload.is_sent
        self._last_use.end(self._close)
        if is_mine:
            self._removers.remove(self._remove_unused, waits=waits)

    def _remove_unused(self) -> None:
        """Remove the object once no write uses it."""
        with self._last_use.in_use(self._close):
            self._remove(self._upload)

    def _remove_soon(self, upload: Upload) -> None:
        """Have a remover remove an object that is not needed."""
        upload.close()
        if upload.is_sent:
            self._removers.remove(partial(self._remove, upload), waits=False)

    def _remove(self, upload: Upload) -> None:
        try:
            upload.remove()
        except StoreUnavailableError as error:
            path = self._blobs.path_of(upload.id)
            logger.warning("%s is left to collect_garbage: %s", path, error)


def collected() -> ValueError:
    """Return what to raise for staged data that a garbage collection has removed."""
    return ValueError(
        "the data was staged longer ago than the grace period, and was collected as garbage: "
        "stage it again"
    )


def _broken() -> ValueError:
    return ValueError("a write to this staged data has failed: stage it again")
