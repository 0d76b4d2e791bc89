"""Images from one store into another, whatever keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from anyio import create_task_group

from .._core import mutations
from .._core.digest import is_digest
from .._core.mutations import has_same_items
from .._core.names import check_names
from .._core.record import Record
from .._core.view import View
from ..errors import BigDataUnknownError, ImageUnknownError
from .store import ImageStore
from .streams import Staged

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of a copy.

    :ivar images: how many images were copied, or brought up to date
    :ivar present: how many were there already, as they are in the source
    :ivar bytes: how many bytes of big data were copied
    """

    images: int = 0
    present: int = 0
    bytes: int = 0


async def copy_images(
    source: ImageStore,
    destination: ImageStore,
    refs: Iterable[str] | None = None,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> Copied:
    """Copy images with all that is recorded of them, from and to a store of either kind.

    Records are copied as they are spelled, in no certain order, and items compared with their
    digests on the way. Each image is there wholly or not at all. One that is in the destination
    already becomes what it is in the source, and names move to the copied images; other images
    stay as they are. What the source gets or loses meanwhile may be copied or not.

    Cancelled, or cut off in any other way, it has copied some images, or none. Called again, it
    goes on with the others: what is there already is not copied again.

    :param source: where they are; may be open read-only
    :param refs: which images; ``None`` for all
    :param progress: called with the bytes dealt with and the bytes in all, as recorded
    :raises ImageUnknownError: when the source has no image for one of the refs
    :raises DigestMismatchError: when an item is not what the source's record says
    :raises FileNotFoundError: when the source has not all items of an image
    :raises StoreReadOnlyError: when the destination was opened read-only
    :raises ValueError: when both are one store
    """
    if source is destination:
        raise ValueError("a store is copied into another one")
    destination._check_writable()
    wanted = None if refs is None else check_names(refs)
    found = await source._look(partial(_find, refs=wanted))
    return await _Copying(source, destination, found, progress).run()


def _find(view: View, refs: tuple[str, ...] | None) -> dict[str, int]:
    """The IDs of the images that are wanted, and what their items take."""
    records = view.records() if refs is None else map(view.find, refs)
    return {record.id: record.size for record in records}


class _Copying:
    """One copy, by several tasks."""

    def __init__(
        self,
        source: ImageStore,
        destination: ImageStore,
        found: dict[str, int],
        progress: Callable[[int, int], object] | None,
    ) -> None:
        self._source = source
        self._destination = destination
        self._found = found
        self._total = sum(found.values())
        self._progress = progress
        self._dealt_with = 0
        # What is done of the items that are being copied.
        self._parts: dict[tuple[str, str], int] = {}
        self._error: Exception | None = None
        self._images = self._present = self._bytes = 0

    async def run(self) -> Copied:
        waiting = iter(self._found.items())
        async with create_task_group() as tasks:

            async def copy_some() -> None:
                try:
                    await self._copy_all(waiting)
                except Exception as error:  # noqa: BLE001 (raised below, by itself)
                    self._error = self._error or error
                    tasks.cancel_scope.cancel()

            for _ in range(min(_AT_ONCE, len(self._found))):
                tasks.start_soon(copy_some)
        if self._error is not None:
            raise self._error
        return Copied(self._images, self._present, self._bytes)

    async def _copy_all(self, waiting: Iterator[tuple[str, int]]) -> None:
        for image_id, size in waiting:
            while not await self._copy(image_id):
                pass  # it was changed meanwhile, there or here
            self._dealt_with += size
            self._report()

    def _report(self) -> None:
        if self._progress is not None:
            done = self._dealt_with + sum(self._parts.values())
            self._progress(min(done, self._total), self._total)

    async def _copy(self, image_id: str) -> bool:
        """Copy an image as it is now; whether that is done."""
        look = partial(_record_of, image_id=image_id)
        record = await self._source._read(look)
        if record is None:
            return True
        present = await self._destination._read(look)
        if present is not None and bytes(present.raw) == bytes(record.raw):
            self._present += 1
            return True
        if present is not None and has_same_items(present.image, record.image):
            try:
                await self._destination._submit(mutations.replace(record, None))
            except ImageUnknownError:
                return False
            self._images += 1
            return True
        return await self._copy_with_items(record)

    async def _copy_with_items(self, record: Record) -> bool:
        try:
            async with AsyncExitStack() as stack:
                staged: dict[str, Staged] = {}
                for key in record.image.big_data_names:
                    item = await self._stage(stack, record, key)
                    if item is None:
                        return False
                    staged[key] = item
                async with self._destination._on_disk(staged) as contents:
                    await self._destination._submit(mutations.replace(record, contents))
        finally:
            for key in record.image.big_data_names:
                self._parts.pop((record.id, key), None)
        self._images += 1
        self._bytes += sum(item.size for item in staged.values())
        return True

    async def _stage(self, stack: AsyncExitStack, record: Record, key: str) -> Staged | None:
        """Put an item on the destination's disk; ``None`` when it is another one by now."""

        def report(done: int) -> None:
            self._parts[record.id, key] = done
            self._report()

        digest = record.image.big_data_digests.get(key, "")
        item = self._source.open_big_data(record.id, key, verify=is_digest(digest))
        try:
            async with item as reader:
                if reader.digest != digest:
                    return None
                staged = self._destination.stage(reader, progress=report)
                return await stack.enter_async_context(staged)
        except (ImageUnknownError, BigDataUnknownError):
            return None


def _record_of(view: View, image_id: str) -> Record | None:
    return view.record_of(image_id)
