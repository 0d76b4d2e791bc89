"""Exports images from a store into a layout."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

from .._async.loop import EventLoop
from .._async.staging import Expectations, Pouring, Progress
from .._async.store import ImageStore
from .._async.threads import Threads
from .._core.digest import (
    MANIFEST,
    canonical_digest,
    digest_of,
    hasher,
    is_canonical,
    is_digest,
)
from .._core.image import Image
from .._core.names import check_text
from .._engine.items import CHUNK, MANIFEST_MAX
from .._engine.workers import WorkerPool
from ..errors import BigDataUnknownError, InvalidLayoutError
from ._archive import open_archive
from ._closure import Closure
from ._documents import Descriptor, media_type_of
from ._foreign import docker_manifest
from ._layout import LayoutFile
from ._naming import REF_NAME
from ._progress import Meter
from ._target import DirectoryTarget, Target

if TYPE_CHECKING:
    from hashlib import _Hash

T = TypeVar("T")

_ARCHIVE_SUFFIX = ".tar"
_HELPERS = 4
# Read in one hop to a thread, which a cancellation waits for.
_PIECES = 16


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export did.

    :ivar image: the image, as it was
    :ivar digest: the digest of its manifest or index, by which the layout lists it
    :ivar written: how many bytes of manifests and blobs were written; the layout had the others
    """

    image: Image
    digest: str
    written: int


class _Content(NamedTuple):
    """One file of the layout: a document that is in memory, or an item of the image."""

    digest: str
    size: int
    document: bytes | None


async def export_layout(
    store: ImageStore,
    ref: str,
    layout: str | PathLike[str] | BinaryIO,
    *,
    name: str | None = None,
    archive: bool | None = None,
    docker: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Export an image into an OCI image layout, as ``skopeo copy … oci:`` reads it.

    Every manifest, config and layer is verified on its way, and byte for byte what it is in the
    store; of an image of several platforms, all of them. Foreign layers that the store has not
    are left out.

    A directory that is a layout already gets one more image, or another one of that name; blobs
    that it has are kept. A tar file is replaced; with an image for one platform it is an archive
    of ``docker save`` as well, which every version of ``docker load`` and ``podman load`` reads.

    Cancelled, or failed, nothing has happened, except that an open file has had some of the
    archive written to it.

    :param layout: a directory, new, empty or a layout; a tar file; or a file that is open for
        writing in binary, for an archive
    :param name: what the layout calls the image (``org.opencontainers.image.ref.name``);
        ``None`` for the first name that it has, ``""`` for nothing
    :param archive: whether to make a tar file of a path; ``None`` if it ends in ``.tar``
    :param docker: whether ``docker load`` has to be able to read the archive
    :param progress: called with the bytes done and the bytes in all
    :raises ImageUnknownError: when there is no such image
    :raises BigDataUnknownError: when its manifest, or something that this refers to, is not among
        its items, as podman's layers are not
    :raises InvalidLayoutError: when its manifest is of no known kind; when the directory is not
        empty, and no layout; when ``docker load`` could not read it and has to
    :raises DigestMismatchError: when an item is not what its digest says
    :raises SizeMismatchError: when one is longer or shorter than it should be
    """
    threads = _ExportThreads(EventLoop())
    helpers = WorkerPool(_HELPERS, "aimagestore helper")
    try:

        def target(manifest: bytes | None) -> Target:
            if docker and manifest is None:
                raise InvalidLayoutError(
                    "docker load cannot read this image from an archive: it has several "
                    "platforms, is no image, or lacks layers"
                )
            return _open_target(layout, archive, helpers, manifest)

        return await _export(store, ref, target, threads, Meter(progress), name=name)
    finally:
        threads.when_idle(partial(_end, threads, helpers))


def _end(threads: Threads, helpers: Executor) -> None:
    threads.shutdown()
    helpers.shutdown()


class _ExportThreads(Threads):
    """Threads whose writes are waited for, because the target is closed after them.

    :ivar target: what they write to; a write that waits for a reader is given up
    """

    target: Target | None = None

    def run_in_executor(self, executor: object, function: Callable[[], T]) -> Awaitable[T]:
        return self.run_streaming(function, interrupt=self._stop)

    def _stop(self) -> None:
        if self.target is not None:
            self.target.stop()


async def _export(
    store: ImageStore,
    ref: str,
    open_target: Callable[[bytes | None], Target],
    threads: _ExportThreads,
    meter: Meter,
    *,
    name: str | None,
) -> ExportResult:
    image = await store.get(ref)
    closure = await _closure_of(store, image, threads)
    if name is None:
        name = next(iter(image.names), "")
    entry = _entry(closure.root, check_text(name, "name"))
    contents = _contents_of(store, image, closure)
    docker = docker_manifest(closure, name)
    target = await threads.run_abandonable(
        open_target, docker, dispose=lambda target: target.close()
    )
    threads.target = target
    try:
        written = await _Export(store, image, target, threads, meter).run(contents)
        await threads.run(target.complete, entry, interrupt=target.stop)
        await threads.run_shielded(target.commit, entry)
    finally:
        await threads.run_shielded(target.close)
    return ExportResult(image, closure.root.digest, written)


def _open_target(
    layout: Any, archive: bool | None, helpers: Executor, docker: bytes | None
) -> Target:
    if not isinstance(layout, str | PathLike):
        return open_archive(layout, helpers, docker)
    path = os.fspath(layout)
    if archive is None:
        archive = path.endswith(_ARCHIVE_SUFFIX) and not os.path.isdir(path)
    return open_archive(path, helpers, docker) if archive else DirectoryTarget(path, helpers)


def _entry(root: Descriptor, name: str) -> Descriptor:
    return Descriptor(
        media_type=root.media_type,
        digest=root.digest,
        size=root.size,
        annotations={REF_NAME: name} if name else None,
    )


# What is to be exported


async def _closure_of(store: ImageStore, image: Image, threads: Threads) -> Closure:
    """Read the image's manifest or index, and all manifests and indexes that it refers to."""
    place = f"image {image.id}"
    data = await _read_manifest(store, image, MANIFEST)
    media_type = await threads.run(media_type_of, data, f"item {MANIFEST!r}", place)
    digest = await threads.run(_digest_in, image, data)
    root = Descriptor(media_type=media_type, digest=digest, size=len(data))
    closure = Closure(root, place)
    while (descriptor := closure.next()) is not None:
        if descriptor.digest != digest:
            key = f"{MANIFEST}-{descriptor.digest}"
            # What an index lists beside its images may have been missing from the start.
            if key not in image.big_data_names and descriptor.is_beside:
                closure.skip()
                continue
            data = await _read_manifest(store, image, key)
        await threads.run(closure.add, data)
    return closure


def _digest_in(image: Image, manifest: bytes) -> str:
    """Return the digest by which the image knows its manifest, of whatever algorithm."""
    canonical = canonical_digest(manifest)
    if f"{MANIFEST}-{canonical}" in image.big_data_names:
        return canonical
    for key in image.big_data_names:
        digest = key.removeprefix(f"{MANIFEST}-")
        if digest != key and is_digest(digest) and not is_canonical(digest):
            state = hasher(digest)
            state.update(manifest)
            if digest_of(state) == digest:
                return digest
    return canonical


async def _read_manifest(store: ImageStore, image: Image, key: str) -> bytes:
    if key not in image.big_data_names:
        raise _lacking(store, image, [key])
    async with store.open_big_data(image.id, key, verify=True) as reader:
        if reader.size > MANIFEST_MAX:
            raise InvalidLayoutError(
                f"item {key!r} of image {image.id} has {reader.size} bytes: manifests have at "
                f"most {MANIFEST_MAX}",
                id=image.id,
                key=key,
            )
        return await reader.read()


def _lacking(store: ImageStore, image: Image, keys: list[str]) -> Exception:
    """Return the error that names what an image lacks."""
    layers = store.layer_store
    advice = "import it again"
    if layers is not None:
        advice = f"its layers are kept in {layers}: use skopeo copy containers-storage:… oci:…"
    return BigDataUnknownError(
        f"image {image.id} cannot be exported, because it lacks the items {', '.join(keys)}; "
        f"{advice}",
        id=image.id,
        key=keys[0],
    )


def _contents_of(store: ImageStore, image: Image, closure: Closure) -> list[_Content]:
    contents = [_Content(d, len(data), data) for d, data in closure.documents.items()]
    missing: list[str] = []
    for blob in closure.blobs.values():
        if blob.digest in closure.documents:
            continue  # listed both as a manifest and as a blob: one file
        if blob.digest in image.big_data_names:
            contents.append(_Content(blob.digest, blob.size, None))
        elif not blob.is_optional:
            missing.append(blob.digest)
    if missing:
        raise _lacking(store, image, missing)
    return contents


class _Export:
    """One export: what it copies, and what the target has already."""

    def __init__(
        self, store: ImageStore, image: Image, target: Target, threads: Threads, meter: Meter
    ) -> None:
        self._store = store
        self._image = image
        self._target = target
        self._threads = threads
        self._meter = meter

    async def run(self, contents: list[_Content]) -> int:
        """Write what the target lacks, and return the number of bytes written."""
        written = 0
        self._meter.total = sum(content.size for content in contents)
        for content in contents:
            if not await self._is_there(content):
                async with self._open(content) as source:
                    await self._copy(content, source)
                written += content.size
            self._meter.end(content.size)
        return written

    async def _is_there(self, content: _Content) -> bool:
        """Return whether the target has this blob; reads and verifies it."""
        file = await self._threads.run_abandonable(
            self._target.find, content.digest, content.size, dispose=_close
        )
        if file is None:
            return False
        try:
            state = hasher(content.digest)
            while await self._threads.run_streaming(_digest_some, file, state):
                pass
            return digest_of(state) == content.digest
        finally:
            await self._threads.run_shielded(file.close)

    @asynccontextmanager
    async def _open(self, content: _Content) -> AsyncIterator[Any]:
        if content.document is not None:
            yield content.document
            return
        item = self._store.open_big_data(self._image.id, content.digest, verify=True)
        async with item as reader:
            yield reader

    async def _copy(self, content: _Content, source: Any) -> None:
        expectations = Expectations(content.digest, content.size)
        staged = await self._threads.run(self._target.begin, content.digest, content.size)
        pouring = Pouring(source, self._threads, expectations, self._meter.report)
        await pouring.into(staged)
        expectations.check(staged)
        await self._threads.run(staged.finish, interrupt=staged.interrupt)


def _close(file: LayoutFile | None) -> None:
    if file is not None:
        file.close()


def _digest_some(file: LayoutFile, state: _Hash) -> bool:
    """Hash as much as one hop to a thread is worth, and return whether there may be more."""
    for _ in range(_PIECES):
        piece = file.read(CHUNK)
        if not piece:
            return False
        state.update(piece)
    return True
