"""Big-data items of any engine: found, opened and measured, blocking."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any, NamedTuple

from .._core.content import Content, InlineContent
from .._core.digest import (
    CANONICAL,
    check_digest,
    digest_of,
    hasher,
    is_manifest_key,
    signed_payload,
)
from .._core.image import Image
from .._core.names import check_key
from .._core.record import Record
from .._core.view import View
from ..errors import (
    BigDataUnknownError,
    DigestMismatchError,
    DigestUnknownError,
    ImageUnknownError,
)
from .digesting import Digester
from .protocol import Engine, StagedContent

CHUNK = 1024 * 1024
"""Bytes moved in one go."""

MANIFEST_MAX = 4 * 1024 * 1024
"""Larger manifests are none, registries say."""


def require_item(image: Image, key: str) -> None:
    """Check that the record lists the item.

    :raises InvalidBigDataNameError: when no item can have this key
    :raises BigDataUnknownError: when it lists none of this key
    """
    check_key(key)
    if key not in image.big_data_names:
        raise BigDataUnknownError(
            f"image {image.id} has no item {key!r}, but {list(image.big_data_names)}",
            id=image.id,
            key=key,
        )


def open_item(engine: Engine, ref: str, key: str) -> tuple[Image, io.RawIOBase]:
    """Open an item, and return it with the record that describes this very content.

    No lock is taken: when the record turns out to have changed meanwhile, the item is opened
    anew.

    :raises FileNotFoundError: when the record lists the item, but it has no content
    """
    image = engine.read(lambda view: view.get(ref))
    while True:
        require_item(image, key)
        file: io.RawIOBase | None = None
        missing: FileNotFoundError | None = None
        try:
            file = engine.open_item(image, key)
        except FileNotFoundError as error:
            missing = error
        try:
            record = engine.read(partial(_record_of, image_id=image.id))
        except BaseException:
            if file is not None:
                file.close()
            raise
        if record is None and missing is not None:
            raise ImageUnknownError(f"the image {image.id} was deleted meanwhile", ref=ref)
        if record is None or _describes_alike(record.image, image, key):
            if file is None:
                assert missing is not None
                raise missing
            return image, file
        if file is not None:
            file.close()
        image = record.image


def _record_of(view: View, image_id: str) -> Record | None:
    return view.record_of(image_id)


def _describes_alike(one: Image, other: Image, key: str) -> bool:
    return one.big_data_digests.get(key) == other.big_data_digests.get(
        key
    ) and one.big_data_sizes.get(key) == other.big_data_sizes.get(key)


def read_item(engine: Engine, ref: str, key: str) -> bytes:
    """The whole content of an item."""
    _, file = open_item(engine, ref, key)
    with file:
        return file.readall()


def open_source(engine: Engine, ref: str, key: str, verify: bool) -> tuple[Image, Source]:
    """Open an item to be streamed, and return it with the record that describes it.

    :raises DigestUnknownError: when it cannot be verified, for want of a digest
    :raises InvalidDigestError: when it cannot be verified, for what is recorded is no digest
    """
    image, file = open_item(engine, ref, key)
    try:
        digest = image.big_data_digests.get(key, "")
        if verify and not digest:
            raise DigestUnknownError(
                f"no digest is recorded for item {key!r}: big_data_digest computes it",
                id=image.id,
                key=key,
            )
        expected = check_digest(digest) if verify else None
        return image, Source(file, key, expected, engine.helpers)
    except BaseException:
        file.close()
        raise


def put_on_disk(engine: Engine, contents: Mapping[str, Content]) -> dict[str, StagedContent]:
    """Make contents durable: those still in memory, and those staged, which stay what they are."""
    ready: dict[str, StagedContent] = {}
    made: list[StagedContent] = []
    try:
        for key, content in contents.items():
            staged: Any = content
            if isinstance(content, InlineContent):
                staged = engine.stage()
                made.append(staged)
                staged.sink.write(content.data)
            staged.finish()
            ready[key] = staged
    except BaseException:
        discard_all(made)
        raise
    return ready


def discard_all(contents: Iterable[StagedContent]) -> None:
    """Let go of contents that were not published."""
    for content in contents:
        content.discard()


class Measured(NamedTuple):
    """What an item's file was found to be."""

    size: int
    digest: str


def measure_item(engine: Engine, ref: str, key: str, progress: Callable[[int], object]) -> Measured:
    """Read an item through for its size and digest."""
    _, file = open_item(engine, ref, key)
    with file:
        return measure_file(file, progress)


def measure_file(
    file: io.RawIOBase, progress: Callable[[int], object] = lambda _: None
) -> Measured:
    """Read a file through for its size and digest.

    :param progress: told of the bytes read so far
    """
    digest = hashlib.new(CANONICAL)
    size = 0
    while piece := file.read(CHUNK):
        digest.update(piece)
        size += len(piece)
        progress(size)
    return Measured(size, digest_of(digest))


class Source(io.BufferedIOBase):
    """An open item to read from, digested beside that where it is wanted.

    :ivar size: its length in bytes
    """

    def __init__(
        self, file: io.RawIOBase, key: str, expected: str | None, helpers: Executor
    ) -> None:
        self._file = file
        self._key = key
        self._expected = expected
        self._digester = Digester(helpers, expected) if expected else None
        self._seen = 0
        self.size: int = file.seek(0, io.SEEK_END)
        file.seek(0)
        # The digest of a signed manifest is not that of its file: keep the file to tell.
        keeps = expected is not None and is_manifest_key(key) and self.size <= MANIFEST_MAX
        self._kept: bytearray | None = bytearray() if keeps else None

    @property
    def is_verified(self) -> bool:
        """Whether its data is compared with a digest."""
        return self._digester is not None

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Read up to so many bytes, all that are left if negative.

        :raises DigestMismatchError: at the end of the data, when it is not what was expected
        """
        wanted = -1 if size is None else size
        data = self._file.readall() if wanted < 0 else (self._file.read(wanted) or b"")
        self._seen += len(data)
        if self._digester is not None:
            self._digester.add(data)
            if self._kept is not None:
                self._kept += data
            if self._seen >= self.size or (wanted and not data):
                self._digester.settle()
                self._verify(self._digester.digest)
        return data

    def _verify(self, actual: str) -> None:
        expected = self._expected
        if actual == expected or expected is None:
            return
        payload = signed_payload(bytes(self._kept)) if self._kept is not None else None
        if payload is not None:
            state = hasher(expected)
            state.update(payload)
            if digest_of(state) == expected:
                return
        raise DigestMismatchError(
            f"item {self._key!r} has the digest {actual}, its record says {expected}: "
            "its file was altered",
            key=self._key,
            expected=expected,
            actual=actual,
        )

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place in the data.

        :raises ValueError: when the data is verified, which takes all of it in order
        """
        if self._digester is not None:
            raise ValueError("data that is verified is read in order: open it without verify")
        return self._file.seek(offset, whence)

    def close(self) -> None:
        if self._digester is not None:
            self._digester.settle()
        self._file.close()
        super().close()
