"""Big-data items of any engine: opened, read, measured and staged. Everything here blocks."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from .._core.digest import (
    check_digest,
    digest_of,
    hasher,
    is_manifest_key,
    signed_digest,
)
from .._core.image import Image
from .._core.names import check_key
from ..errors import (
    BigDataUnknownError,
    DigestMismatchError,
    DigestUnknownError,
    StoreClosedError,
)
from .closing import LastUse
from .digesting import Digester
from .protocol import Items, StagedContent, Steps

CHUNK = 1024 * 1024
"""The number of bytes that are read or written at a time."""

MANIFEST_MAX = 4 * 1024 * 1024
"""The size in bytes of the largest manifest that registries accept."""


def require_item(image: Image, key: str) -> None:
    """Check that a record lists an item.

    :raises InvalidBigDataNameError: when no item can have this key
    :raises BigDataUnknownError: when the record lists none of this key
    """
    check_key(key)
    if key not in image.big_data_names:
        raise BigDataUnknownError(
            f"image {image.id} has no item {key!r}, only {list(image.big_data_names)}",
            id=image.id,
            key=key,
        )


def read_item(items: Items, ref: str, key: str) -> bytes:
    """Return the whole content of an item."""
    _, file = items.open(ref, key)
    with file:
        return file.readall()


def open_source(
    items: Items, ref: str, key: str, *, verify: bool, start: int, end: int | None
) -> tuple[Image, Source]:
    """Open an item to be streamed, and return it with the record that describes it.

    Raises also as :meth:`Items.open` does.

    :param start: the offset in bytes to begin at
    :param end: the offset in bytes to end before; ``None`` for the end of the item
    :raises DigestUnknownError: when it is to be verified, but no digest is recorded
    :raises InvalidDigestError: when it is to be verified, but the recorded digest is malformed
    """
    image, file = items.open(ref, key)
    try:
        digest = image.big_data_digests.get(key, "")
        if verify and not digest:
            raise DigestUnknownError(
                f"no digest is recorded for item {key!r}: big_data_digest computes it",
                id=image.id,
                key=key,
            )
        expected = check_digest(digest) if verify else None
        return image, Source(file, key, expected, items.helpers, start=start, end=end)
    except BaseException:
        file.close()
        raise


def stage_all(items: Items, data: Mapping[str, bytes]) -> dict[str, StagedContent]:
    """Stage some small items, durably. The caller discards them; after an error there are none."""
    staged: dict[str, StagedContent] = {}
    try:
        for key, content in data.items():
            staged[key] = items.stage()
            staged[key].sink.write(content)
            staged[key].finish()
    except BaseException:
        discard_all(staged)
        raise
    return staged


def discard_all(contents: Mapping[str, StagedContent]) -> None:
    """Release contents, and remove those that were not published, even if one of them fails."""
    with ExitStack() as stack:
        for content in contents.values():
            stack.callback(content.discard)


class Measured(NamedTuple):
    """The size and digest that the content of an item was found to have."""

    size: int
    digest: str


def measure_item(items: Items, ref: str, key: str) -> Steps[Measured]:
    """Read an item, and return its size and digest. In steps of bytes."""
    _, file = items.open(ref, key)
    with file:
        return (yield from measure_file(file))


def measure_file(file: io.RawIOBase) -> Steps[Measured]:
    """Read a file, and return its size and digest. In steps of bytes."""
    total = file.seek(0, io.SEEK_END)
    file.seek(0)
    state = hasher()
    size = 0
    while piece := file.read(CHUNK):
        state.update(piece)
        size += len(piece)
        yield size, max(size, total)
    return Measured(size, digest_of(state))


def run(steps: Steps[Measured]) -> Measured:
    """Run all steps in this thread, and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: Measured = stop.value
            return result


class Source(io.BufferedIOBase):
    """An open item, which is read and, with an expected digest, verified.

    Reads and the close may come from several threads: a task that was cancelled leaves its thread
    in a read, and closing then leaves the file to that thread.

    :param expected: the digest to compare with; ``None`` not to verify
    :param start: the offset in bytes to begin at
    :param end: the offset in bytes to end before; ``None`` for the end of the item
    :ivar size: the size of the whole item in bytes
    """

    def __init__(
        self,
        file: io.RawIOBase,
        key: str,
        expected: str | None,
        helpers: Executor,
        *,
        start: int = 0,
        end: int | None = None,
    ) -> None:
        self._file = file
        self._key = key
        self._expected = expected
        self._digester = Digester(helpers, expected) if expected else None
        self.size: int = file.seek(0, io.SEEK_END)
        self._end = self.size if end is None else min(end, self.size)
        self._position = file.seek(min(start, self._end))
        self._last_use = LastUse()
        # The digest of a signed manifest is that of a part of it, which is found at the end.
        keeps = expected is not None and is_manifest_key(key) and self.size <= MANIFEST_MAX
        self._kept: bytearray | None = bytearray() if keeps else None

    @property
    def is_verified(self) -> bool:
        """Whether its data is compared with a digest."""
        return self._digester is not None

    @property
    def path(self) -> str | None:
        """A path to its open file in this process; ``None`` where it is no file, or closed."""
        # Not within _in_use(), which would wait for a read in another thread.
        try:
            return f"/proc/self/fd/{self._file.fileno()}"
        except (OSError, ValueError):
            return None

    @property
    def closed(self) -> bool:
        """Whether it was closed, or will be when a read in another thread ends."""
        return self._last_use.is_over

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Read up to this number of bytes; all of the rest if it is negative or ``None``.

        :raises DigestMismatchError: at the end of the data, when its digest is not the expected one
        :raises StoreClosedError: when the item is closed
        """
        with self._in_use():
            return self._read(-1 if size is None else size)

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._last_use.in_use(self._close):
            if self.closed:
                raise StoreClosedError("the reader is closed: open the item again")
            yield

    def _read(self, wanted: int) -> bytes:
        rest = max(0, self._end - self._position)
        wanted = rest if wanted < 0 else min(wanted, rest)
        pieces = []
        missing = wanted
        while missing and (piece := self._file.read(missing)):
            pieces.append(piece)
            missing -= len(piece)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._position += len(data)
        if self._digester is not None:
            self._digester.add(data)
            if self._kept is not None:
                self._kept += data
            if self._position >= self.size or missing:
                self._digester.finish()
                self._verify(self._digester.digest)
        return data

    def _verify(self, actual: str) -> None:
        expected = self._expected
        if actual == expected or expected is None:
            return
        if self._kept is not None and signed_digest(bytes(self._kept), expected) == expected:
            return
        raise DigestMismatchError(
            f"item {self._key!r} has the digest {actual}, its record says {expected}: "
            "its content was altered",
            key=self._key,
            expected=expected,
            actual=actual,
        )

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, and return it.

        :raises ValueError: when the data is verified, which takes all of it in order
        :raises StoreClosedError: when the item is closed
        """
        if self._digester is not None:
            raise ValueError("data that is verified is read in order: open it without verify")
        with self._in_use():
            base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
            self._position = max(0, base + offset)
            # No file system has files as long as a position may be; at the end, nothing is read.
            self._file.seek(min(self._position, self.size))
            return self._position

    def close(self) -> None:
        """Close it. A read that is under way in another thread completes, then closes it."""
        self._last_use.end(self._close)

    def _close(self) -> None:
        if self._digester is not None:
            self._digester.finish()
        self._file.close()
