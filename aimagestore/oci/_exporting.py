"""Exports images into a layout, from a store or from another layout."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias, TypeVar, get_args

from .._async.loop import EventLoop
from .._async.staging import Expectations, Pouring, Progress
from .._async.store import ImageStore
from .._async.threads import Call, Threads
from .._core.digest import digest_of, hasher
from .._core.image import Image
from .._core.names import check_names, check_text
from .._core.plain import PlainType
from .._core.references import full_name
from .._directory.output import is_special, open_output
from .._engine.items import CHUNK
from .._engine.workers import WorkerPool
from ..errors import InvalidLayoutError
from ._archive import ArchiveTarget
from ._foreign import docker_manifest, open_layout
from ._layout import LayoutFile
from ._naming import name_of
from ._plan import find_images
from ._platform import Platform
from ._progress import Meter
from ._sources import Source, from_layout, from_store
from ._steps import run_steps
from ._target import Content, DirTarget, LayoutTarget, Target

if TYPE_CHECKING:
    from hashlib import _Hash

T = TypeVar("T")

Transport: TypeAlias = Literal["oci", "oci-archive", "docker-archive", "dir"]
"""What to write, by skopeo's names."""

_OCI = ("oci", "oci-archive")
_ARCHIVES = ("oci-archive", "docker-archive")
_ARCHIVE_SUFFIX = ".tar"
_HELPERS = 4
# Pieces that one call in a thread reads. A cancellation waits for that call.
_PIECES = 16


@dataclass(frozen=True, slots=True)
class ExportResult(metaclass=PlainType):
    """What became of one image of a store.

    :ivar image: the image that was exported
    :ivar digest: the digest of its manifest or index, by which the layout lists it
    :ivar written: how many bytes of manifests and blobs were written; the layout had the others
    """

    image: Image
    digest: str
    written: int


@dataclass(frozen=True, slots=True)
class LayoutCopyResult(metaclass=PlainType):
    """What became of one image of a layout.

    :ivar name: what the destination calls it; ``""`` for no name
    :ivar digest: the digest of its manifest or index, by which the destination lists it
    :ivar written: how many bytes of manifests and blobs were written; the destination had the
        others
    """

    name: str
    digest: str
    written: int


async def export_layout(
    store: ImageStore,
    ref: str,
    layout: str | PathLike[str] | BinaryIO,
    *,
    name: str | None = None,
    transport: Transport | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Export an image into an OCI image layout, as ``skopeo copy … oci:`` does.

    Every manifest, config and layer is verified while it is copied, and is written byte for byte as
    the store has it. An image of several platforms is exported with all of them. Foreign layers
    that the store does not have are left out.

    A directory that is a layout gets one more image, in place of one with the same name, and keeps
    the blobs that it has. A ``dir:`` has one image, which is replaced. A tar file is replaced as
    well. With images for one platform it is also an archive of ``docker save``, which every version
    of ``docker load`` and ``podman load`` reads. A link stays, and what it leads to is written. A
    pipe or a device is written to as it is; this waits until a program reads from the pipe.

    A cancelled or failed export changes nothing, but an open file, a pipe or a device keeps what
    was written to it. A killed export leaves at most hidden files, which the next export to the
    same place removes.

    A cancelled write to an open file, a pipe or a socket ends within a moment. A write to a
    terminal, or to an object without a file descriptor, may wait for ever: it is left to its
    thread, which then calls ``write`` no more.

    :param layout: a directory, new, empty or a layout; a tar file; or a file that is open for
        writing in binary, for an archive. Its ``write`` must return how many bytes it took, and may
        take fewer than it is given.
    :param name: what the layout calls the image (``org.opencontainers.image.ref.name``);
        ``None`` for the image's first name, ``""`` for no name
    :param transport: what to write: ``oci``, a layout in a directory; ``oci-archive``, one in a tar
        file; ``docker-archive``, one that ``docker load`` can read; ``dir``, a directory as
        skopeo's ``dir:``. ``None`` for ``oci-archive`` if the path ends in ``.tar`` and is no
        directory, or leads to a pipe or a device, or if it is an open file; and for ``oci``
        otherwise.
    :param progress: called with the bytes done and the total
    :raises ImageUnknownError: when there is no such image
    :raises BigDataUnknownError: when its manifest, or something that the manifest refers to, is not
        among its items, as podman's layers are not
    :raises InvalidLayoutError: when its manifest is of no known kind; when the directory is not
        empty, and not of that kind; when it cannot be a ``docker-archive``
    :raises DigestMismatchError: when an item does not have its digest
    :raises SizeMismatchError: when an item is longer or shorter than its manifest says
    :raises TypeError: when an open file is given for a directory, or its ``write`` does not return
        a number of bytes
    :raises ValueError: when the transport is unknown
    """
    async with _exporting() as threads:
        image = await store.get(ref)
        if name is None:
            name = next(iter(image.names), "")
        names = [check_text(name, "name")] if name else []
        sources = [await from_store(store, image, names, threads)]
        (written,) = await _export(sources, layout, transport, threads, Meter(progress))
    return ExportResult(image, sources[0].closure.root.digest, written)


async def export_images(
    store: ImageStore,
    refs: Iterable[str],
    layout: str | PathLike[str] | BinaryIO,
    *,
    transport: Transport | None = None,
    progress: Progress | None = None,
) -> tuple[ExportResult, ...]:
    """Export several images as :func:`export_layout` does one, all of them or none.

    The layout calls an image by the names that it was given by, or else by its first name. Only the
    transport ``dir`` takes no more than one image.

    :returns: what became of each image, in the order in which they were given
    :raises ValueError: when no image is given, or several are given and the transport takes one
    """
    async with _exporting() as threads:
        images: dict[str, Image] = {}
        names: dict[str, dict[str, None]] = {}
        for ref in check_names(refs, "refs"):
            image = await store.get(ref)
            images[image.id] = image
            called = [name for name in (ref, full_name(ref)) if name in image.names]
            names.setdefault(image.id, {}).update(dict.fromkeys(called[:1] or image.names[:1]))
        sources = [
            await from_store(store, image, list(names[image.id]), threads)
            for image in images.values()
        ]
        written = await _export(sources, layout, transport, threads, Meter(progress))
    return tuple(
        ExportResult(image, source.closure.root.digest, size)
        for image, source, size in zip(images.values(), sources, written, strict=True)
    )


async def copy_layout(
    source: str | PathLike[str] | BinaryIO,
    layout: str | PathLike[str] | BinaryIO,
    *,
    ref: str | None = None,
    platform: str | None = None,
    name: str | None = None,
    transport: Transport | None = None,
    progress: Progress | None = None,
) -> tuple[LayoutCopyResult, ...]:
    """Copy images from one layout into another, byte for byte, without a store.

    The source is read and verified as by :func:`import_layout`. The destination is written as by
    :func:`export_layout`, with all images or none, and a cancelled copy leaves what that leaves.
    Entries of the index keep their annotations.

    :param ref: copy only the image with this name, digest, ``name@digest``, or ``@`` and its
        position, from 0; ``None`` for all
    :param platform: copy only the image that suits ``os/architecture[/variant]`` best
    :param name: what the destination calls the image; ``None`` for what the source calls it, ``""``
        for no name
    :returns: what became of each image, in the order of the source
    :raises ImageUnknownError: when the source has no image of that ref or platform
    :raises AmbiguousImageError: when a ref, or a name in the source, stands for several images
    :raises InvalidLayoutError: when one of them is not a layout, or is damaged or hostile
    :raises DigestMismatchError: when a manifest or blob has another digest
    :raises SizeMismatchError: when one is longer or shorter than its descriptor says
    :raises ValueError: when several images are selected, and a name is given or the transport takes
        one image
    """
    if name is not None:
        check_text(name, "name")
    wanted = None if platform is None else Platform.parse(platform)
    async with _exporting() as threads:
        opened = await threads.run_while_wanted(
            partial(open_layout, source, prefers_oci=transport in {None, *_OCI}),
            dispose=lambda opened: opened.close(),
        )
        try:
            found = await run_steps(find_images(opened, ref, wanted), threads)
            if name is not None and len(found) > 1:
                raise ValueError(
                    f"{opened.place} has {len(found)} images, and a name is for one: select it by "
                    "its ref"
                )
            sources = [from_layout(opened, each, name, threads) for each in found]
            written = await _export(sources, layout, transport, threads, Meter(progress))
        finally:
            await threads.run_shielded(opened.close)
    return tuple(
        LayoutCopyResult(name_of(each.entries[0].annotations).text, each.closure.root.digest, size)
        for each, size in zip(sources, written, strict=True)
    )


class _ExportThreads(Threads):
    """Threads in which a cancelled write is waited for, because its target is closed next.

    :ivar target: what they write to; it gives up a write that waits for a reader
    """

    target: Target | None = None

    async def leave(self, call: Call[Any]) -> None:
        await self._end(call, self.stop)

    def stop(self) -> bool:
        return self.target is None or self.target.stop()


@asynccontextmanager
async def _exporting() -> AsyncIterator[_ExportThreads]:
    threads = _ExportThreads(EventLoop())
    try:
        yield threads
    finally:
        threads.when_idle(threads.shutdown)


async def _export(
    sources: Sequence[Source],
    layout: str | PathLike[str] | BinaryIO,
    transport: Transport | None,
    threads: _ExportThreads,
    meter: Meter,
) -> list[int]:
    """Export images, and return the number of bytes written for each."""
    if not sources:
        raise ValueError("no image to export was given")
    helpers = WorkerPool(_HELPERS, "aimagestore helper")
    try:
        target = await threads.run_while_wanted(
            partial(_open_target, layout, transport, sources, helpers),
            dispose=lambda target: target.close(),
        )
        threads.target = target
        try:
            written = await _Export(target, threads, meter).run(sources)
            entries = [entry for source in sources for entry in source.entries]
            await threads.run(target.complete, entries, interrupt=target.stop)
            await threads.run_shielded(target.commit, entries)
        finally:
            await threads.run_shielded(target.close)
    finally:
        helpers.shutdown()
    return written


def _open_target(
    layout: Any,
    transport: Transport | None,
    sources: Sequence[Source],
    helpers: WorkerPool,
    check: Callable[[], object],
) -> Target:
    if transport not in {None, *get_args(Transport)}:
        raise ValueError(f"{transport!r} is none of {', '.join(get_args(Transport))}")
    file = os.fspath(layout) if isinstance(layout, str | PathLike) else layout
    if transport is None:
        is_path = isinstance(file, str)
        is_directory = is_path and (not file.endswith(_ARCHIVE_SUFFIX) or os.path.isdir(file))
        is_archive = not is_directory or is_special(file)
        transport = "oci-archive" if is_archive else "oci"
    if transport in _ARCHIVES:
        docker = docker_manifest((source.closure, _names_of(source)) for source in sources)
        if transport == "docker-archive" and docker is None:
            raise InvalidLayoutError(
                "docker load cannot read this from an archive, because it has several platforms, "
                "is not an image, or lacks layers: write an oci-archive"
            )
        return ArchiveTarget(open_output(file, helpers, check), helpers, docker)
    if not isinstance(file, str):
        raise TypeError(
            f"{transport}: is a directory: give the path of one, not a {type(file).__name__}"
        )
    if transport == "oci":
        return LayoutTarget(file, helpers)
    if len(sources) > 1:
        raise ValueError(f"dir: takes one image, not {len(sources)}")
    return DirTarget(file, helpers, sources[0].closure.root.digest)


def _names_of(source: Source) -> list[str]:
    return [name_of(entry.annotations).text for entry in source.entries]


class _Export:
    """One export: what it copies, and what the target has already."""

    def __init__(self, target: Target, threads: Threads, meter: Meter) -> None:
        self._target = target
        self._threads = threads
        self._meter = meter

    async def run(self, sources: Sequence[Source]) -> list[int]:
        """Write what the target lacks, and return the number of bytes written of each source."""
        written = []
        # Images share layers: each file is written once.
        done: set[str] = set()
        new: list[list[Content]] = []
        for source in sources:
            new.append([each for each in source.contents if each.digest not in done])
            done |= {each.digest for each in source.contents}
        self._meter.total = sum(content.size for contents in new for content in contents)
        for source, contents in zip(sources, new, strict=True):
            size = 0
            for content in contents:
                if not await self._is_there(content):
                    await self._write(content, source)
                    size += content.size
                self._meter.end(content.size)
            written.append(size)
        return written

    async def _is_there(self, content: Content) -> bool:
        """Return whether the target has this file, which is read and verified."""
        file = await self._threads.run_abandonable(self._target.find, content, dispose=_close)
        if file is None:
            return False
        try:
            state = hasher(content.digest)
            while await self._threads.run_streaming(_digest_some, file, state):
                pass
            return digest_of(state) == content.digest
        finally:
            await self._threads.run_shielded(file.close)

    async def _write(self, content: Content, source: Source) -> None:
        if content.document is not None:
            await self._copy(content, content.document)
            return
        async with source.open(content.digest) as opened:
            await self._copy(content, opened)

    async def _copy(self, content: Content, source: Any) -> None:
        expectations = Expectations(content.digest, content.size)
        stop = self._target.stop
        staged = await self._threads.run(self._target.begin, content, interrupt=stop)
        pouring = Pouring(source, self._threads, expectations, self._meter.report)
        await pouring.into(staged)
        expectations.check(staged)
        await self._threads.run(staged.finish, interrupt=stop)


def _close(file: LayoutFile | None) -> None:
    if file is not None:
        file.close()


def _digest_some(file: LayoutFile, state: _Hash) -> bool:
    """Hash the next pieces of a file, and return whether there may be more."""
    for _ in range(_PIECES):
        piece = file.read(CHUNK)
        if not piece:
            return False
        state.update(piece)
    return True
