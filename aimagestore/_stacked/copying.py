"""Copies the items of an additional store's image into the store, before the lock is acquired.

The copies must belong to the version of the image that the commit finds, not to one that looks like
it. So each item stays open in the additional store until the commit, which opens it again: if both
are one file or one object, the item was not replaced in between.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from .._core.content import Content
from .._core.digest import is_canonical, is_digest
from .._core.record import Record
from .._engine.closing import LastUse
from .._engine.items import CHUNK, Source
from .._engine.protocol import Engine, Items, StagedContent, Steps
from ..errors import BigDataMissingError, BigDataUnknownError, ImageUnknownError
from .reading import reading
from .views import as_read_only

_CHANGED = (ImageUnknownError, BigDataUnknownError, BigDataMissingError)


class _Item:
    """One item and its copy.

    :ivar file: the item, open in the additional store
    :ivar source: reads the file
    :ivar staged: the copy
    """

    def __init__(self, file: io.RawIOBase, source: Source, staged: StagedContent) -> None:
        self.file = file
        self.source = source
        self.staged = staged

    def close(self) -> None:
        try:
            self.staged.discard()
        finally:
            self.source.close()


class ItemCopies:
    """The copies of an image's items; see :class:`aimagestore._engine.protocol.Copying`.

    :param engine: the additional store
    :param record: the image's record there
    :param keys: the keys of the items to copy
    :param items: copies them into the store
    """

    def __init__(self, engine: Engine, record: Record, keys: Sequence[str], items: Items) -> None:
        self._engine = engine
        self._record = record
        self._keys = keys
        self._target = items
        self._items: dict[str, _Item] = {}
        self._last_use = LastUse()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._last_use.in_use(self._close):
            self._check_open()
            yield

    def _check_open(self) -> None:
        if self._last_use.is_over:
            raise ValueError("the copying has ended")

    def steps(self) -> Steps[None]:
        """Copy the items, and verify them. Content that the store has already is not read.

        :raises BigDataMissingError: when the content of an item is missing
        :raises DigestMismatchError: when an item is damaged
        """
        sizes = self._record.image.big_data_sizes
        total = sum(sizes.get(key, 0) for key in self._keys)
        done = 0
        for key in self._keys:
            if key in self._items:
                continue  # copied before another program's change held up the next one
            try:
                with self._in_use(), reading(self._engine):
                    self._open(key)
            except (ImageUnknownError, BigDataUnknownError):
                return  # changed meanwhile: the commit finds that it needs other copies
            item = self._items[key]
            if item.staged.is_stored:
                done += item.staged.size
                yield done, max(done, total)
                continue
            while True:
                with self._in_use():
                    piece = item.source.read(CHUNK)
                    item.staged.sink.write(piece)
                done += len(piece)
                yield done, max(done, total)
                if not piece:
                    break
            with self._in_use():
                item.staged.finish()

    def _open(self, key: str) -> None:
        items = self._engine.items
        image, file = items.open(self._record.id, key)
        try:
            digest = image.big_data_digests.get(key, "")
            source = Source(file, key, digest if is_digest(digest) else None, items.helpers)
            staged = self._known(digest, image.big_data_sizes.get(key)) or self._target.stage()
            self._items[key] = _Item(file, source, staged)
        except BaseException:
            file.close()
            raise

    def _known(self, digest: str, size: int | None) -> StagedContent | None:
        """Return the content of an item if the store has it already."""
        if size is None or not (is_digest(digest) and is_canonical(digest)):
            return None
        return self._target.stage_stored(digest, size, self._check_open)

    def contents_of(self, record: Record, keys: Sequence[str]) -> Mapping[str, Content] | None:
        if bytes(record.raw) != bytes(self._record.raw) or not self._items.keys() >= set(keys):
            return None
        with self._in_use():
            is_same = all(self._is_current(record, key) for key in keys)
        return {key: self._items[key].staged for key in keys} if is_same else None

    def _is_current(self, record: Record, key: str) -> bool:
        items = self._engine.items
        try:
            with reading(self._engine):
                image, file = items.open(record.id, key)
        except _CHANGED:
            return False
        with file:
            is_same = items.is_same(self._items[key].file, file)
            return is_same and as_read_only(image) == record.image

    def close(self) -> None:
        self._last_use.is_over = True  # so that no write begins after the interruption
        for item in list(self._items.values()):
            item.staged.interrupt()
        self._last_use.end(self._close)

    def _close(self) -> None:
        with ExitStack() as stack:  # closes each, even if another cannot be closed
            while self._items:
                stack.callback(self._items.popitem()[1].close)
