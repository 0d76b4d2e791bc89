"""Copies images from one store into another, of any kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from anyio import Event

from .._core import mutations
from .._core.digest import is_canonical, is_digest
from .._core.image import Image
from .._core.mutations import has_same_items
from .._core.names import check_names, check_type
from .._core.plain import PlainType
from .._core.record import Record
from .._core.view import View, without_hidden_names
from ..errors import BigDataUnknownError, ImageUnknownError
from .parallel import for_each
from .staging import Expectations, Progress, StagedItem
from .store import ImageStore, core_of


@dataclass(frozen=True, slots=True)
class CopyResult(metaclass=PlainType):
    """What a copy did.

    :ivar images: the number of images that were copied or updated
    :ivar present: the number of images that the destination had already, unchanged
    :ivar bytes: the bytes of big data that were copied, without those that the destination had
    """

    images: int = 0
    present: int = 0
    bytes: int = 0


async def copy_images(
    source: ImageStore,
    destination: ImageStore,
    refs: Iterable[str] | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> CopyResult:
    """Copy images with their whole records and all of their items, between stores of any kind.

    Each image is copied as a whole or not at all, in no particular order. Its record is copied byte
    for byte, and its items are verified against their digests. An image that the destination has
    already becomes as it is in the source. Names move to the copied images; other images stay as
    they are. Changes in the source meanwhile may be copied or not. Content that any image of the
    destination has already is neither read nor stored again.

    If cancelled, or ended by an error, it has copied some of the images. Another call copies the
    rest.

    :param source: the store to copy from; may be open read-only
    :param destination: the store to copy into
    :param refs: the images to copy; ``None`` for all
    :param force: into podman's store, copy images even if podman cannot read them: ``podman
        images`` fails from then on
    :param progress: called with the bytes done and the total, as recorded
    :raises PodmanFailsError: when the destination is podman's store, and podman cannot read an
        image
    :raises AmbiguousImageError: when one of the refs stands for several images
    :raises ImageUnknownError: when the source has no image for one of the refs
    :raises DigestMismatchError: when an item differs from what the source's record says
    :raises BigDataMissingError: when the content of an item is missing in the source
    :raises StoreReadOnlyError: when the destination was opened read-only
    :raises ValueError: when the source is the destination
    """
    check_type(source, ImageStore, "source")
    check_type(destination, ImageStore, "destination")
    check_type(force, bool, "force")
    if source is destination:
        raise ValueError("the source is the destination: give two stores")
    core_of(destination).check_writable()
    wanted = None if refs is None else check_names(refs, "refs")
    found = await core_of(source).read(partial(_find, refs=wanted), is_slow=True)
    return await _Copying(source, destination, found, progress, force=force).run()


def _find(view: View, refs: tuple[str, ...] | None) -> dict[str, int]:
    """Return the IDs of the images to copy, and the sizes of their items."""
    records = view.records() if refs is None else map(view.find, refs)
    return {record.id: record.size for record in records}


class _Copying:
    """One copy, by several tasks."""

    def __init__(
        self,
        source: ImageStore,
        destination: ImageStore,
        found: dict[str, int],
        progress: Progress | None,
        *,
        force: bool,
    ) -> None:
        self._source = source
        self._destination = destination
        self._read_source = core_of(source).read
        self._core = core_of(destination)
        self._found = found
        self._total = sum(found.values())
        self._progress = progress
        self._force = force
        self._done = 0
        # The bytes that are done of the items that are being copied.
        self._parts: dict[tuple[str, str], int] = {}
        # The digests of what a task copies now, so that no other task does, and of what was copied.
        self._under_way: dict[str, Event] = {}
        self._copied: set[str] = set()
        self._images = self._present = self._bytes = 0

    async def run(self) -> CopyResult:
        await for_each(self._found.items(), self._copy_until_done)
        return CopyResult(self._images, self._present, self._bytes)

    async def _copy_until_done(self, found: tuple[str, int]) -> None:
        image_id, size = found
        while not await self._copy(image_id):
            pass  # it was changed meanwhile, in one of the stores
        self._done += size
        self._report()

    def _report(self) -> None:
        if self._progress is not None:
            done = self._done + sum(self._parts.values())
            self._progress(min(done, self._total), self._total)

    async def _copy(self, image_id: str) -> bool:
        """Copy an image as it is now; return ``False`` if it was changed meanwhile."""
        seen = await self._read_source(partial(_seen, image_id=image_id))
        if seen is None:
            return True
        record = seen.record
        present = await self._core.read(partial(_record_of, image_id=image_id))
        if present is not None and bytes(present.raw) == bytes(record.raw):
            self._present += 1
            return True
        if present is not None and has_same_items(present.image, record.image):
            try:
                await self._core.submit(mutations.replace(record, None))
            except ImageUnknownError:
                return False
            self._images += 1
            return True
        return await self._copy_with_items(seen)

    async def _copy_with_items(self, seen: _Seen) -> bool:
        digests = {digest for _, (digest, _) in _contents(seen.record.image)} - self._copied
        while under_way := [e for digest in digests if (e := self._under_way.get(digest))]:
            # Afterwards, the destination has what the other task copies.
            await under_way[0].wait()
            digests -= self._copied
        event = Event()
        self._under_way |= dict.fromkeys(digests, event)
        try:
            is_copied = await self._copy_items(seen)
        finally:
            for digest in digests:
                del self._under_way[digest]
            event.set()
        if is_copied:
            self._copied |= digests
        return is_copied

    async def _copy_items(self, seen: _Seen) -> bool:
        record = seen.record
        try:
            async with AsyncExitStack() as stack:
                wanted = dict(_contents(record.image))
                stored = await stack.enter_async_context(self._core.stored(wanted))
                staged = dict(stored)
                for key in record.image.big_data_names:
                    if key in stored:
                        self._parts[record.id, key] = stored[key].size
                        continue
                    item = await self._stage(stack, seen.image, key)
                    if item is None:
                        return False
                    staged[key] = item
                contents = await stack.enter_async_context(
                    self._core.contents(staged, Expectations(None, None))
                )
                await self._core.submit(mutations.replace(record, contents, force=self._force))
        finally:
            for key in record.image.big_data_names:
                self._parts.pop((record.id, key), None)
        self._images += 1
        self._bytes += sum(item.size for key, item in staged.items() if key not in stored)
        return True

    async def _stage(self, stack: AsyncExitStack, image: Image, key: str) -> StagedItem | None:
        """Stage an item in the destination; return ``None`` if its image has changed meanwhile."""

        def report(done: int, total: int | None) -> None:
            self._parts[image.id, key] = done
            self._report()

        digest = image.big_data_digests.get(key, "")
        item = self._source.open_big_data(image.id, key, verify=is_digest(digest))
        try:
            async with item as reader:
                if reader.image != image:
                    return None
                staged = self._destination.stage(reader, progress=report)
                return await stack.enter_async_context(staged)
        except (ImageUnknownError, BigDataUnknownError):
            return None


class _Seen(NamedTuple):
    """An image in the source.

    :ivar record: its record, without names that stand for other images
    :ivar image: the image as the source shows it, with those names
    """

    record: Record
    image: Image


def _contents(image: Image) -> Iterator[tuple[str, tuple[str, int]]]:
    """Iterate over the keys, digests and sizes of the items that have a SHA-256 digest."""
    for key in image.big_data_names:
        digest, size = image.big_data_digests.get(key, ""), image.big_data_sizes.get(key)
        # The size is needed because the digest of a signed manifest is that of a part of it.
        if size is not None and is_digest(digest) and is_canonical(digest):
            yield key, (digest, size)


def _record_of(view: View, image_id: str) -> Record | None:
    return view.record_of(image_id)


def _seen(view: View, image_id: str) -> _Seen | None:
    record = view.record_of(image_id)
    if record is None:
        return None
    copied = without_hidden_names(view, record) if record.read_only else record
    return _Seen(copied, record.image)
