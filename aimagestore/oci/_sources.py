"""The images that an export writes, from a store or from another layout."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

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
from .._engine.items import MANIFEST_MAX
from ..errors import BigDataUnknownError, InvalidLayoutError
from ._closure import Closure
from ._documents import Descriptor, blob_path, media_type_of
from ._layout import Layout
from ._naming import called
from ._plan import FoundImage
from ._target import Content


@dataclass(frozen=True, slots=True)
class Source:
    """An image to export.

    :ivar closure: its manifests, and all that they refer to
    :ivar entries: entries for an index, one for each of its names
    :ivar contents: its files
    :ivar open: opens the content of a file by its digest
    """

    closure: Closure
    entries: tuple[Descriptor, ...]
    contents: list[Content]
    open: Callable[[str], AbstractAsyncContextManager[Any]]


def _contents_of(closure: Closure) -> list[Content]:
    """Return the files of an image, its manifests first."""
    blobs = [blob for blob in closure.blobs.values() if blob.digest not in closure.documents]
    return [
        *(Content(digest, len(data), data) for digest, data in closure.documents.items()),
        *(Content(blob.digest, blob.size, None) for blob in blobs),
    ]


def from_layout(layout: Layout, found: FoundImage, name: str | None, threads: Threads) -> Source:
    """Return an image of a layout.

    :param name: its name in the destination; ``None`` for the one that it has, ``""`` for no name
    """
    contents = [each for each in _contents_of(found.closure) if each.digest not in found.lacking]
    entry = found.entry if name is None else called(found.entry, name)

    @asynccontextmanager
    async def open_blob(digest: str) -> AsyncIterator[Any]:
        file = await threads.run_abandonable(
            layout.open, blob_path(digest), dispose=lambda file: file.close()
        )
        try:
            yield file
        finally:
            await threads.run_shielded(file.close)

    return Source(found.closure, (entry,), contents, open_blob)


async def from_store(
    store: ImageStore, image: Image, names: Sequence[str], threads: Threads
) -> Source:
    """Return an image of a store.

    :param names: its names in the layout; empty for an entry without a name
    :raises BigDataUnknownError: when it lacks items that its manifests require
    """
    closure = await _closure_of(store, image, threads)
    root = closure.root
    plain = Descriptor(media_type=root.media_type, digest=root.digest, size=root.size)
    items = set(image.big_data_names)
    contents = [
        each
        for each in _contents_of(closure)
        if each.document is not None
        or each.digest in items
        or not closure.blobs[each.digest].is_optional
    ]
    if missing := [c.digest for c in contents if c.document is None and c.digest not in items]:
        raise _lacking(store, image, missing)
    return Source(
        closure,
        tuple(called(plain, name) for name in names or [""]),
        contents,
        lambda digest: store.open_big_data(image.id, digest, verify=True),
    )


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
            # The layout that was imported may have lacked what an index lists beside its images.
            if key not in image.big_data_names and descriptor.is_beside_images:
                closure.skip()
                continue
            data = await _read_manifest(store, image, key)
        await threads.run(closure.add, data)
    return closure


def _digest_in(image: Image, manifest: bytes) -> str:
    """Return the digest in the key of the image's manifest, whatever its algorithm is."""
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
    elif image.read_only:
        advice = "podman keeps layers beside its stores: use skopeo copy containers-storage:… oci:…"
    return BigDataUnknownError(
        f"image {image.id} cannot be exported, because it lacks the items {', '.join(keys)}; "
        f"{advice}",
        id=image.id,
        key=keys[0],
    )
