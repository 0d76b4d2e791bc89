"""Imports images from a layout into a store."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import BinaryIO, TypeAlias

from .._async.loop import EventLoop
from .._async.methods import ImageMethods
from .._async.parallel import for_each
from .._async.staging import Progress, StagedItem
from .._async.store import ImageStore, core_of
from .._async.threads import Threads
from .._async.transaction import Transaction
from .._core.digest import is_canonical
from .._core.image import Image
from .._core.names import check_names, check_type
from .._core.plain import PlainType
from ..errors import ImageStoreError, ImageUnknownError, StoreReadOnlyError
from ._closure import check_content
from ._documents import Descriptor, blob_path
from ._foreign import open_layout
from ._index import listed
from ._layout import Layout, read_up_to
from ._plan import Item, PlannedImage, plan
from ._platform import Platform
from ._progress import Meter
from ._steps import run_steps

logger = logging.getLogger("aimagestore")

_Group: TypeAlias = "list[tuple[PlannedImage, dict[str, Item]]]"

_OPEN_FILES_MAX = 512
_SMALL = 64 * 1024


@dataclass(frozen=True, slots=True)
class ImportResult(metaclass=PlainType):
    """What became of one image of a layout.

    :ivar image: the image in the store
    :ivar is_new: whether it was not there before
    :ivar stored: how many bytes of big data were written for it
    :ivar layers_left_out: how many layers were left out, because another program keeps them
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
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[ImportResult, ...]:
    """Import images from an OCI image layout, or from what other programs write.

    The content decides which format it is, not the name: a layout in a directory (skopeo's
    ``oci:``) or a tar file (``oci-archive:``), what ``docker save`` writes (of Docker's old and new
    format), podman's ``docker-archive:``, and skopeo's ``dir:``. Tar files may be compressed with
    gzip, bzip2, xz or zstd; before Python 3.14 the last needs the extra ``aimagestore[zstd]``.

    An image's ID is the hex part of its config's digest, as in podman's store. An image of several
    platforms is one record with all of them. Its ID is the hex part of its index's digest, and it
    is found by the digest of each platform as well. The big data are the manifests, under
    ``manifest`` and ``manifest-<digest>``, and the configs and layers, under their digests. All are
    verified, and stored byte for byte as the layout has them. A ``docker-archive`` has no
    manifests: its images get those that podman makes for them.

    An image that the store has already gets the items and names that it lacks. Content that the
    store has, in this image or in another, is neither read nor written again.

    Where podman keeps layers beside the store, layers are left out, and a warning in the log says
    so. podman lists such an image, but can neither run, load nor pull it before it is removed.
    What podman cannot read at all, such as an artifact, is refused there.

    What a layout has beside images (artifacts, attestations, content of unknown types) does not
    stop the import. If a layout has the content of only one platform of an index, that platform
    is imported. If one name stands for several images, nothing is imported.

    A layout beyond these limits is refused: 64 MiB for index.json and manifest.json, 4 MiB for
    each manifest, index and config; for one image 10,000 manifests and blobs, 32 MiB of manifests
    and indexes, and indexes nested 8 deep; for a tar file 500,000 members.

    Images are published in groups, each image as a whole. After a cancelled or failed call some of
    them may be imported; another call imports the rest. New content takes an open file for each
    item of a group: for an image with more items than a process may open, raise that limit.

    :param layout: a directory, a tar file, or a tar file that is open for reading in binary
        (read from its beginning; it needs a descriptor, so no pipe)
    :param names: the image's names, used as they are; ``None`` for what the layout calls it
        (``io.containerd.image.name``, else ``org.opencontainers.image.ref.name``), made full as
        podman does. A name that another image in the store has moves to this one
    :param ref: import only the image with this name (whole, or short if that is clear), digest,
        ``name@digest``, or ``@`` and its position, from 0; ``None`` for all
    :param platform: import only the image that suits ``os/architecture[/variant]`` best, or
        ``local`` for this machine; variants are matched as podman does
    :param force: also import what podman cannot read into a store that it keeps layers beside;
        ``podman images`` fails from then on
    :param progress: called with the bytes done and the total
    :returns: what became of each image, in the order of the layout
    :raises ImageUnknownError: when the layout has no image of that ref or platform
    :raises AmbiguousImageError: when a ref, or a name in the layout, stands for several images, or
        only some platforms of an image are there; its ``candidates`` tell them apart
    :raises InvalidLayoutError: when it is not a layout, or is damaged or hostile
    :raises PodmanFailsError: when podman could not read an image in its store
    :raises DigestMismatchError: when a manifest or blob has another digest
    :raises SizeMismatchError: when one is longer or shorter than its descriptor says
    :raises ValueError: when ``platform`` is not spelled like one, or ``names`` are given for
        several images
    :raises FileNotFoundError: when nothing is at the path
    :raises StoreReadOnlyError: when the store was opened read-only
    :raises LockTimeoutError: when the store's lock was not free in time
    """
    given = None if names is None else check_names(names)
    check_type(force, bool, "force")
    wanted = None if platform is None else Platform.parse(platform)
    if store.read_only:
        raise StoreReadOnlyError(f"{store!r} was opened read-only: images cannot be imported")
    threads = Threads(EventLoop())
    try:
        return await _import(
            store,
            layout,
            threads,
            Meter(progress),
            names=given,
            ref=ref,
            platform=wanted,
            force=force,
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
    force: bool,
) -> tuple[ImportResult, ...]:
    layers = store.layer_store
    source = await threads.run_while_wanted(
        partial(open_layout, layout), dispose=lambda opened: opened.close()
    )
    try:
        steps = plan(source, ref, platform, with_layers=layers is None, force=force)
        images = await run_steps(steps, threads)
        if names is not None and len(images) > 1:
            raise ValueError(
                f"{source.place} has {len(images)} images, and names are for one: select it by its "
                f"ref, one of {listed([image.label for image in images])}"
            )
        if names is not None:
            images = [replace(image, names=names) for image in images]
        done = await _Import(store, source, images, threads, meter, force=force).run()
    finally:
        await threads.run_shielded(source.close)
    for imported in done:
        if imported.layers_left_out and not imported.image.top_layer:
            logger.warning(
                "%s: left out %d layers of image %s, because those of this store are kept in %s",
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
        *,
        force: bool,
    ) -> None:
        self._store = store
        self._force = force
        self._layout = layout
        self._images = images
        self._threads = threads
        self._meter = meter
        # Image ID and key to content, durable before the transaction: it holds the lock briefly.
        self._staged: dict[tuple[str, str], StagedItem] = {}
        # Those of the staged items whose content the store had already.
        self._stored: set[tuple[str, str]] = set()

    async def run(self) -> tuple[ImportResult, ...]:
        """Stage and publish what the store lacks, one group of images after another."""
        lacking = [(image, await self._lacking(image)) for image in self._images]
        self._meter.total = sum(item.size for _, items in lacking for item in items.values())
        done: list[ImportResult] = []
        for group in _groups(lacking):
            done += await self._import_group(group)
        return tuple(done)

    async def _lacking(self, planned: PlannedImage) -> dict[str, Item]:
        """Return the items that the store lacks, by their keys."""
        image = await _find(self._store, planned.id)
        if image is None:
            return dict(planned.items)
        return {
            key: item
            for key, item in planned.items.items()
            if not (_lists(image, key, item) and await self._is_stored(image, key, item))
        }

    async def _import_group(self, group: _Group) -> list[ImportResult]:
        images = [image for image, _ in group]
        self._staged = {}
        self._stored = set()
        async with AsyncExitStack() as stack:
            for image, items in group:
                await self._stage_all(stack, image, items)
            while True:
                async with self._store.transaction() as tx:
                    lacking = [image for image in images if await self._lacks(tx, image)]
                    if not lacking:
                        return [await self._publish(tx, image) for image in images]
                # Another program has deleted items that the store had.
                for image in lacking:
                    items = await self._lacking(image)
                    self._meter.total += sum(item.size for item in items.values())
                    await self._stage_all(stack, image, items)
        raise AssertionError("for type checkers")  # pragma: no cover

    async def _stage_all(
        self, stack: AsyncExitStack, image: PlannedImage, items: Mapping[str, Item]
    ) -> None:
        new = {key: item for key, item in items.items() if (image.id, key) not in self._staged}
        wanted = {k: (i.digest, i.size) for k, i in new.items() if is_canonical(i.digest)}
        stored = await stack.enter_async_context(core_of(self._store).stored(wanted))
        for key, content in stored.items():
            self._staged[image.id, key] = content
            self._stored.add((image.id, key))
            self._meter.end(new.pop(key).size)
        small = {key: item for key, item in new.items() if item.size <= _SMALL}
        read = await self._threads.run(self._read_all, image, small)

        async def stage_small(key: str) -> None:
            staged = self._store.stage(read[key])
            self._staged[image.id, key] = await stack.enter_async_context(staged)
            self._meter.end(new[key].size)

        await for_each(read, stage_small)
        for key in [key for key in new if key not in read]:
            self._staged[image.id, key] = await self._stage(stack, image, new[key])
            self._meter.end(new[key].size)

    def _read_all(self, image: PlannedImage, items: Mapping[str, Item]) -> dict[str, bytes]:
        """Return the content of small items by their keys, verified; blocking."""
        contents: dict[str, bytes] = {}
        for key, item in items.items():
            document = image.documents.get(item.source)
            if document is None:
                with closing(self._layout.open(blob_path(item.source))) as file:
                    document = read_up_to(file, item.size + 1)
                expected = Descriptor(digest=item.source, size=item.size)
                check_content(document, expected, self._layout.place)
            contents[key] = document
        return contents

    async def _is_stored(self, image: Image, key: str, item: Item) -> bool:
        """Return whether an item that the image lists has its file."""
        try:
            async with self._store.open_big_data(image.id, key) as reader:
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
        """Return whether an item of an image is neither staged nor in the store."""
        image = await _find(tx, planned.id)
        return any(
            (planned.id, key) not in self._staged
            and (image is None or not _lists(image, key, item))
            for key, item in planned.items.items()
        )

    async def _publish(self, tx: Transaction, planned: PlannedImage) -> ImportResult:
        items = ((key, self._staged.get((planned.id, key))) for key in planned.items)
        mine = {key: staged for key, staged in items if staged is not None}
        image = await _find(tx, planned.id)
        is_new = image is None
        if image is None:
            image = await tx.create(
                planned.id, created=planned.created, big_data=mine, force=self._force
            )
        else:
            for key, staged in mine.items():
                image = await tx.set_big_data(planned.id, key, staged)
        if missing := [name for name in planned.names if name not in image.names]:
            image = await tx.add_names(planned.id, missing)
        written = [key for key in mine if (planned.id, key) not in self._stored]
        stored = sum(planned.items[key].size for key in written)
        return ImportResult(image, is_new, stored, planned.layers_left_out)


def _groups(lacking: Iterable[tuple[PlannedImage, dict[str, Item]]]) -> Iterator[_Group]:
    """Divide images into groups, each of which needs few open files.

    No two images of a group need the same large blob. The first one's group stores it, and the
    second one's group finds it in the store.
    """
    most = _open_files()
    group: _Group = []
    items = 0
    large: set[str] = set()
    stored: set[str] = set()
    for image, needed in lacking:
        blobs = {item.source for item in needed.values() if item.size > _SMALL}
        is_shared = not large.isdisjoint(blobs - stored)
        if group and (is_shared or items + len(needed) > most):
            yield group
            stored |= large
            group, items, large = [], 0, set()
        group.append((image, needed))
        items += len(needed)
        large |= blobs
    if group:
        yield group


def _open_files() -> int:
    """Return how many files an import may have open: no more than half of what the process may."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _OPEN_FILES_MAX if soft < 0 else min(_OPEN_FILES_MAX, max(soft // 2, 1))


async def _find(images: ImageMethods, image_id: str) -> Image | None:
    """Return the image with exactly this ID."""
    try:
        image = await images.get(image_id)
    except ImageUnknownError:
        return None
    return image if image.id == image_id else None


def _lists(image: Image, key: str, item: Item) -> bool:
    """Return whether the image's record lists the item with its digest and size.

    A store records SHA-256 digests. Content that a layout lists with another algorithm was compared
    with that digest when it was stored, and has it as its key.
    """
    recorded = image.big_data_digests.get(key)
    is_same = recorded == item.digest if is_canonical(item.digest) else key == item.digest
    return is_same and image.big_data_sizes.get(key) == item.size
