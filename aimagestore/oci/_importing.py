"""From an image layout into a store."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from os import PathLike
from typing import BinaryIO

from .._async.loop import EventLoop
from .._async.methods import ImageMethods
from .._async.staging import Progress, StagedItem
from .._async.store import ImageStore
from .._async.threads import Threads
from .._async.transaction import Transaction
from .._core.digest import is_canonical
from .._core.image import Image
from .._core.names import check_names
from ..errors import ImageStoreError, ImageUnknownError, StoreReadOnlyError
from ._documents import blob_path
from ._layout import Layout, open_layout
from ._plan import Item, PlannedImage, plan
from ._platform import Platform
from ._progress import Meter

logger = logging.getLogger("aimagestore")


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What became of one image of a layout.

    :ivar image: the image in the store
    :ivar is_new: whether it was not there before
    :ivar stored: how many bytes of big data were written for it
    :ivar layers_left_out: how many layers did not go in, for another program keeps them elsewhere
    """

    image: Image
    is_new: bool
    stored: int
    layers_left_out: int


async def import_layout(
    store: ImageStore,
    layout: str | PathLike[str] | BinaryIO,
    *,
    names: Iterable[str] | None = None,
    ref: str | None = None,
    platform: str | None = None,
    progress: Progress | None = None,
) -> tuple[ImportResult, ...]:
    """Import images from an OCI image layout, such as ``skopeo copy … oci:`` writes.

    An image's ID is the hex part of its config's digest, as podman has it. One of several
    platforms is one record with all of them, found by any of their digests; its ID is that of the
    index. The big data are the manifests, under ``manifest`` and ``manifest-<digest>``, and the
    configs and layers under their digests, byte for byte as they are in the layout, each verified.

    An image that is there already gets what it lacks, and the names; what it has is not read
    again. In a store whose layers another program keeps (podman), layers stay out.

    All is published in one step. Cancelled, or failed, nothing has happened. What is new takes an
    open file for each item until then.

    :param layout: a directory, a tar file, or a tar file that is open for reading in binary
        (read from its beginning; it needs a descriptor, so no pipe); told by what it is
    :param names: the image's names, used as they are; ``None`` for what the layout calls it
        (``io.containerd.image.name``, else ``org.opencontainers.image.ref.name``), made full as
        podman does. A name that another image has moves
    :param ref: import the image with this ``org.opencontainers.image.ref.name``; ``None`` for all
    :param platform: pick ``os/architecture[/variant]`` out of an index, and import that alone
    :param progress: called with the bytes done and the bytes in all
    :returns: what became of each image, in the order of the layout
    :raises ImageUnknownError: when the layout has no image of that ref or platform
    :raises InvalidLayoutError: when it is no layout, or is damaged or hostile
    :raises DigestMismatchError: when a manifest or blob is not what its digest says
    :raises SizeMismatchError: when one is longer or shorter than it should be
    :raises ValueError: when ``names`` are given for several images
    :raises FileNotFoundError: when there is nothing at the path
    :raises StoreReadOnlyError: when the store was opened read-only
    :raises LockTimeoutError: when the store's lock was not free in time
    """
    given = None if names is None else check_names(names)
    wanted = None if platform is None else Platform.parse(platform)
    if store.read_only:
        raise StoreReadOnlyError(f"{store!r} was opened read-only: images cannot be imported")
    threads = Threads(EventLoop())
    try:
        return await _import(
            store, layout, threads, Meter(progress), names=given, ref=ref, platform=wanted
        )
    finally:
        threads.when_idle(threads.shutdown)


async def _import(
    store: ImageStore,
    layout: str | PathLike[str] | BinaryIO,
    threads: Threads,
    meter: Meter,
    *,
    names: tuple[str, ...] | None,
    ref: str | None,
    platform: Platform | None,
) -> tuple[ImportResult, ...]:
    layers = store.layer_store
    source = await threads.run_abandonable(
        open_layout, layout, dispose=lambda opened: opened.close()
    )
    try:
        images = await threads.run(lambda: plan(source, ref, platform, with_layers=layers is None))
        if names is not None and len(images) > 1:
            raise ValueError(
                f"{source.place} has {len(images)} images, and names are for one: give the ref of "
                f"that as well, one of {[image.label for image in images]}"
            )
        if names is not None:
            images = [replace(image, names=names) for image in images]
        done = await _Import(store, source, images, threads, meter).run()
    finally:
        await threads.run_shielded(source.close)
    for imported in done:
        if imported.layers_left_out:
            logger.warning(
                "%s: left out %d layers of image %s, for those of this store are kept in %s",
                source.place,
                imported.layers_left_out,
                imported.image.id,
                layers,
            )
    return done


class _Import:
    """One import: what is staged for it, and how it is published."""

    def __init__(
        self,
        store: ImageStore,
        layout: Layout,
        images: Sequence[PlannedImage],
        threads: Threads,
        meter: Meter,
    ) -> None:
        self._store = store
        self._layout = layout
        self._images = images
        self._threads = threads
        self._meter = meter
        self._staged: dict[tuple[str, str], StagedItem] = {}

    async def run(self) -> tuple[ImportResult, ...]:
        """Stage what the store lacks, and publish it."""
        async with AsyncExitStack() as stack:
            while True:
                await self._stage_lacking(stack)
                async with self._store.transaction() as tx:
                    # What was there may have been deleted since.
                    if not [each for each in self._images if await self._lacks(tx, each)]:
                        done = [await self._publish(tx, planned) for planned in self._images]
                        # One image of a layout may have taken a name of another's.
                        return tuple([replace(d, image=await tx.get(d.image.id)) for d in done])
        raise AssertionError("for type checkers")  # pragma: no cover

    async def _stage_lacking(self, stack: AsyncExitStack) -> None:
        lacking: list[tuple[PlannedImage, str, Item]] = []
        for planned in self._images:
            for key, item in planned.items.items():
                if (planned.id, key) not in self._staged and not await self._is_stored(
                    planned.id, key, item
                ):
                    lacking.append((planned, key, item))
        self._meter.total = self._meter.done + sum(item.size for _, _, item in lacking)
        for planned, key, item in lacking:
            self._staged[planned.id, key] = await self._stage(stack, planned, item)
            self._meter.end(item.size)

    async def _is_stored(self, image_id: str, key: str, item: Item) -> bool:
        """Whether the image has the item, and the item its file."""
        image = await _find(self._store, image_id)
        if image is None or not _lists(image, key, item):
            return False
        try:
            async with self._store.open_big_data(image_id, key) as reader:
                return reader.size == item.size
        except (ImageStoreError, FileNotFoundError):
            return False

    async def _stage(self, stack: AsyncExitStack, planned: PlannedImage, item: Item) -> StagedItem:
        document = planned.documents.get(item.source)
        if document is not None:
            return await stack.enter_async_context(
                self._store.stage(document, progress=self._meter.report)
            )
        file = await self._threads.run_abandonable(
            self._layout.open, blob_path(item.source), dispose=lambda file: file.close()
        )
        try:
            return await stack.enter_async_context(
                self._store.stage(
                    file,
                    expected_digest=item.source,
                    expected_size=item.size,
                    progress=self._meter.report,
                )
            )
        finally:
            await self._threads.run_shielded(file.close)

    async def _lacks(self, tx: Transaction, planned: PlannedImage) -> bool:
        """Whether something is neither staged nor in the store."""
        image = await _find(tx, planned.id)
        return any(
            (planned.id, key) not in self._staged
            and (image is None or not _lists(image, key, item))
            for key, item in planned.items.items()
        )

    async def _publish(self, tx: Transaction, planned: PlannedImage) -> ImportResult:
        mine = {key: staged for (i, key), staged in self._staged.items() if i == planned.id}
        image = await _find(tx, planned.id)
        is_new = image is None
        if image is None:
            image = await tx.create(planned.id, created=planned.created, big_data=mine)
        else:
            for key, staged in mine.items():
                image = await tx.set_big_data(planned.id, key, staged)
        if missing := [name for name in planned.names if name not in image.names]:
            image = await tx.add_names(planned.id, missing)
        stored = sum(staged.size for staged in mine.values())
        return ImportResult(image, is_new, stored, planned.layers_left_out)


async def _find(images: ImageMethods, image_id: str) -> Image | None:
    """Return the image with this very ID."""
    try:
        image = await images.get(image_id)
    except ImageUnknownError:
        return None
    return image if image.id == image_id else None


def _lists(image: Image, key: str, item: Item) -> bool:
    """Whether the image's record lists the item as it should be.

    A store records digests of one kind. What is called by another was compared with that when it
    came, and is its key.
    """
    recorded = image.big_data_digests.get(key)
    is_same = recorded == item.digest if is_canonical(item.digest) else key == item.digest
    return is_same and image.big_data_sizes.get(key) == item.size
