"""The methods that a store and a transaction share: the same names, parameters and errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime
from typing import TypeAlias, TypeVar, Union, cast

from .._core import mutations
from .._core.content import Content
from .._core.image import Image
from .._core.mutations import Mutation
from .._core.names import check_key, check_type
from .._core.view import View
from .._engine.items import Measured, require_item
from ..errors import (
    BigDataMissingError,
    BigDataUnknownError,
    DigestUnknownError,
    ImageUnknownError,
    SizeUnknownError,
)
from .staging import BigDataSource, Expectations, Progress

T = TypeVar("T")

JSONValue: TypeAlias = Union[  # noqa: UP007 (it refers to itself)
    bool, int, float, str, Sequence["JSONValue"], Mapping[str, "JSONValue"], None
]
"""The value of a flag: anything that JSON can represent."""


class ImageMethods(ABC):
    """Reads and changes the images of a store, or of a transaction on it.

    A **ref** is a full ID, a name, or a prefix that only one ID has, tried in that order; also
    ``sha256:<id>``, as ``podman images --no-trunc`` prints it, and ``name@sha256:<digest>``. The
    empty ref matches nothing.

    If a read is cancelled, it returns at once. If a change is cancelled, it has happened as a whole
    or never will, and the call returns when that is decided.
    """

    # What differs between stores and transactions

    @abstractmethod
    def _view(self) -> View | None:
        """Return the view to read if that never blocks and no thread changes it, else ``None``."""

    @abstractmethod
    async def _read(self, look: Callable[[View], T], *, is_slow: bool = False) -> T:
        """Call ``look`` with the view to read; in a worker thread if that blocks or is slow."""

    @abstractmethod
    def _change(self, mutation: Mutation) -> Awaitable[Image | None]:
        """Make a change, and return the image that the mutation returns, if any."""

    @abstractmethod
    def _check_writable(self) -> None:
        """Raise what keeps the caller from making changes."""

    @abstractmethod
    def _contents(
        self,
        data: Mapping[str, BigDataSource],
        expectations: Expectations,
        progress: Progress | None,
    ) -> AbstractAsyncContextManager[Mapping[str, Content]]:
        """Provide the content of big data, by key, for the duration of a block."""

    @abstractmethod
    async def _read_item(self, image: Image, key: str) -> bytes:
        """Return the content of an item that the image lists."""

    @abstractmethod
    async def _measure(self, image: Image, key: str, progress: Progress | None) -> Measured:
        """Read an item for its size and digest, and record them where that is possible."""

    # Reading

    async def get(self, ref: str) -> Image:
        """Return the image that a ref stands for (upstream: ``Get``).

        :raises ImageUnknownError: when there is none
        :raises AmbiguousImageError: when the ref is a prefix of several IDs
        """
        view = self._view()
        return await self._get(ref) if view is None else view.get(ref)

    async def _get(self, ref: str) -> Image:
        # Not in get(): a function that refers to the ref makes every call allocate a cell.
        return await self._read(lambda view: view.get(ref))

    async def lookup(self, ref: str) -> str:
        """Return the full ID of the image that a ref stands for (upstream: ``Lookup``).

        :raises ImageUnknownError: when there is none
        :raises AmbiguousImageError: when the ref is a prefix of several IDs
        """
        return await self._read(lambda view: view.lookup(ref))

    async def exists(self, ref: str) -> bool:
        """Return whether a ref stands for an image (upstream: ``Exists``)."""
        return await self._read(lambda view: view.exists(ref))

    async def images(self) -> list[Image]:
        """Return all images, in the order of images.json (upstream: ``Images``).

        Until it is looked at, an image of a large store shares the text of up to 512 KiB of the
        index with others. Keeping one keeps that text in memory.
        """
        return list(await self._read(lambda view: view.images, is_slow=True))

    async def by_digest(self, digest: str) -> list[Image]:
        """Return the images with a digest, their own or a manifest's (upstream: ``ByDigest``).

        :raises ImageUnknownError: when there is none
        :raises InvalidDigestError: when the digest is malformed
        """
        return await self._read(lambda view: view.by_digest(digest))

    async def metadata(self, ref: str) -> str:
        """Return the metadata of an image (upstream: ``Metadata``).

        :raises ImageUnknownError: when there is no such image
        """
        return (await self.get(ref)).metadata

    # Changing records

    def _changed(self, mutation: Mutation) -> Awaitable[Image]:
        """Make a change that returns an image."""
        return cast("Awaitable[Image]", self._change(mutation))

    async def create(
        self,
        id: str | None = None,
        *,
        names: Iterable[str] = (),
        top_layer: str = "",
        metadata: str = "",
        created: datetime | None = None,
        digest: str | None = None,
        flags: Mapping[str, JSONValue] | None = None,
        big_data: Mapping[str, BigDataSource] | None = None,
        force: bool = False,
    ) -> Image:
        """Create an image with its big data, in one commit (upstream: ``Create``).

        If cancelled, the image exists with all of its items, or does not exist.

        :param id: its ID; ``None`` for 64 random hex digits
        :param names: its names
        :param top_layer: the ID of its top layer
        :param metadata: text to keep with it
        :param created: an aware datetime; ``None`` for now
        :param digest: a digest by which to find it, besides those of its manifests
        :param flags: flag to any JSON value
        :param big_data: key to bytes, a :class:`StagedItem`, or, outside a transaction, any
            source that :meth:`set_big_data` takes
        :param force: in podman's store, create it even if podman cannot read it: ``podman images``
            fails from then on
        :raises PodmanFailsError: in podman's store, when podman cannot read the image: for
            instance, it has no manifest, or is an artifact. A transaction raises it at its end, so
            that a manifest can be added after the image
        :raises DuplicateIDError: when an image with this ID exists
        :raises DuplicateNameError: when a name belongs to another image
        :raises InvalidIDError: when the ID cannot name a directory
        :raises InvalidBigDataNameError: when a key cannot name a file
        :raises InvalidDigestError: when the digest is malformed
        :raises ValueError: when containers/storage could not read a value back
        :raises StoreCorruptError: when a damaged record may have this ID
        :raises LockTimeoutError: when the lock was not free in time
        """
        self._check_writable()
        data = {} if big_data is None else big_data
        # Before any data is read, this checks the arguments.
        creation = mutations.create(
            id,
            names=names,
            top_layer=top_layer,
            metadata=metadata,
            created=created,
            digest=digest,
            flags=flags,
            force=force,
        )
        check_type(data, Mapping, "big_data")
        for key in data:
            check_key(key)
        async with self._contents(data, Expectations(None, None), None) as contents:
            return await self._changed(creation.with_items(contents))

    async def set_metadata(self, ref: str, metadata: str) -> Image:
        """Replace the metadata of an image (upstream: ``SetMetadata``).

        :raises ImageUnknownError: when there is no such image
        :raises LockTimeoutError: when the lock was not free in time
        """
        return await self._changed(mutations.set_metadata(ref, metadata))

    async def set_names(self, ref: str, names: Iterable[str]) -> Image:
        """Replace the names of an image (upstream: ``SetNames``).

        A name on another image moves to this one.

        :raises ImageUnknownError: when there is no such image
        :raises LockTimeoutError: when the lock was not free in time
        """
        return await self._changed(mutations.set_names(ref, names))

    async def add_names(self, ref: str, names: Iterable[str]) -> Image:
        """Add names to an image, before those that it has (upstream: ``AddNames``).

        A name on another image moves to this one.

        :raises ImageUnknownError: when there is no such image
        :raises LockTimeoutError: when the lock was not free in time
        """
        return await self._changed(mutations.add_names(ref, names))

    async def remove_names(self, ref: str, names: Iterable[str]) -> Image:
        """Remove names from an image (upstream: ``RemoveNames``).

        Names that it does not have are ignored.

        :raises ImageUnknownError: when there is no such image
        :raises LockTimeoutError: when the lock was not free in time
        """
        return await self._changed(mutations.remove_names(ref, names))

    async def delete(self, ref: str, *, force: bool = False) -> None:
        """Delete an image and its big data (upstream: ``Delete``; podman's: ``DeleteImage``).

        The image's directory is removed with everything that podman keeps in it. Layers are not
        touched: in podman's store, use ``podman rmi``, which removes the image with its layers.
        No prune of podman's frees the layers of an image that was deleted here. ``podman system
        check --repair --max 0s`` and ``containers-storage check --repair --max 0s`` do; podman 4.3
        has neither.

        :param force: delete it even if a container uses it
        :raises ImageUnknownError: when there is no such image
        :raises ImageInUseError: in podman's store, when a container uses the image
        :raises OSError: when something is mounted in the image's directory
        :raises LockTimeoutError: when the lock was not free in time
        """
        await self._change(mutations.delete(ref, force=force))

    async def wipe(self) -> None:
        """Delete all images; damaged records stay (upstream: ``Wipe``).

        :raises OSError: when something is mounted in an image's directory
        :raises LockTimeoutError: when the lock was not free in time
        """
        await self._change(mutations.wipe())

    async def set_flag(self, ref: str, flag: str, value: JSONValue) -> Image:
        """Set a flag of an image to any JSON value (upstream: ``SetFlag``).

        Integers beyond 2**53 are kept as they are, but podman rounds them at its next save.

        :raises ImageUnknownError: when there is no such image
        :raises ValueError: when a number is not finite, or the value is nested 1,000 levels deep
            or more (400 on Python 3.11)
        :raises LockTimeoutError: when the lock was not free in time
        """
        return await self._changed(mutations.set_flag(ref, flag, value))

    async def clear_flag(self, ref: str, flag: str) -> Image:
        """Remove a flag of an image, if it is set (upstream: ``ClearFlag``).

        :raises ImageUnknownError: when there is no such image
        :raises LockTimeoutError: when the lock was not free in time
        """
        return await self._changed(mutations.clear_flag(ref, flag))

    # Big data

    async def big_data(self, ref: str, key: str) -> bytes:
        """Return the whole content of an item, in memory (upstream: ``BigData``).

        :raises ImageUnknownError: when there is no such image
        :raises BigDataUnknownError: when its record does not list the item
        :raises BigDataMissingError: when its record lists the item, but the content is missing
        """
        return await self._read_item(await self._listing(ref, key), key)

    async def set_big_data(
        self,
        ref: str,
        key: str,
        data: BigDataSource,
        *,
        expected_digest: str | None = None,
        expected_size: int | None = None,
        progress: Progress | None = None,
    ) -> Image:
        """Add an item to an image, or replace the content it has (upstream: ``SetBigData``).

        Content and record are committed in one step. In a directory, the commit also writes bytes
        of less than 16 KiB. All other data is written, hashed and made durable before the store's
        lock is acquired. If cancelled, the item has the new content, or is as it was before.

        :param data: bytes, a :class:`StagedItem`, or, outside a transaction, an object with an
            async ``read(n)`` or ``receive()``, an async iterable, a binary file, or a plain
            iterable; the last two are read in a worker thread
        :param expected_digest: the digest that the data must have
        :param expected_size: the size that it must have, in bytes
        :param progress: called with the bytes written, and with the total or ``None``
        :raises ImageUnknownError: when there is no such image, or it was deleted meanwhile
        :raises TypeError: when the data is not bytes
        :raises DigestMismatchError: when the data has another digest than expected
        :raises SizeMismatchError: when the data has another size than expected
        :raises LockTimeoutError: when the lock was not free in time
        """
        self._check_writable()
        check_key(key)
        expectations = Expectations(expected_digest, expected_size)
        image_id = await self.lookup(ref)
        async with self._contents({key: data}, expectations, progress) as contents:
            return await self._changed(mutations.set_big_data(image_id, key, contents[key]))

    async def big_data_names(self, ref: str) -> list[str]:
        """Return the keys of an image's items, oldest first (upstream: ``BigDataNames``).

        :raises ImageUnknownError: when there is no such image
        """
        return list((await self.get(ref)).big_data_names)

    async def big_data_size(self, ref: str, key: str, *, progress: Progress | None = None) -> int:
        """Return the size of an item in bytes (upstream: ``BigDataSize``).

        If no size is recorded, the item is read, and its size is recorded if the store is writable.

        :param progress: called with the bytes read and the total, if the item is read
        :raises ImageUnknownError: when there is no such image
        :raises BigDataUnknownError: when its record does not list the item
        :raises SizeUnknownError: when no size is recorded, and the content is missing
        :raises LockTimeoutError: when the lock was not free in time to record the size
        """
        image = await self._listing(ref, key)
        size = image.big_data_sizes.get(key)
        if size is not None:
            return size
        return (await self._measured(image, key, SizeUnknownError, progress)).size

    async def big_data_digest(self, ref: str, key: str, *, progress: Progress | None = None) -> str:
        """Return the digest of an item (upstream: ``BigDataDigest``).

        If no digest is recorded, the item is read, and its SHA-256 digest is recorded if the store
        is writable.

        :param progress: called with the bytes read and the total, if the item is read
        :raises ImageUnknownError: when there is no such image
        :raises BigDataUnknownError: when its record does not list the item
        :raises DigestUnknownError: when no digest is recorded, and the content is missing
        :raises LockTimeoutError: when the lock was not free in time to record the digest
        """
        image = await self._listing(ref, key)
        if digest := image.big_data_digests.get(key):
            return digest
        return (await self._measured(image, key, DigestUnknownError, progress)).digest

    async def _listing(self, ref: str, key: str) -> Image:
        """Return an image, and check that it lists the item."""
        image = await self.get(ref)
        require_item(image, key)
        return image

    async def _measured(
        self,
        image: Image,
        key: str,
        unknown: type[SizeUnknownError | DigestUnknownError],
        progress: Progress | None,
    ) -> Measured:
        try:
            return await self._measure(image, key, progress)
        except BigDataMissingError as error:
            raise unknown(
                f"nothing is recorded of item {key!r} of image {image.id}, and its content is "
                "missing: check the store",
                id=image.id,
                key=key,
            ) from error

    async def _record(self, image: Image, key: str, measured: Measured) -> None:
        """Record the size and digest that an item was found to have."""
        if image.read_only:
            return  # recording them would copy the image from its additional store
        # Another writer may have changed or deleted the image meanwhile.
        with suppress(ImageUnknownError, BigDataUnknownError):
            await self._change(mutations.note_big_data(image.id, key, measured))
