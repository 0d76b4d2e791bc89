"""The items of several stores."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from .._core.image import Image
from .._core.usage import StoredContent
from .._core.view import View
from .._engine.protocol import Engine, StagedContent, Steps
from ..errors import ImageUnknownError
from .reader import StackedReader
from .reading import reading
from .views import Stack, as_read_only


class StackedItems:
    """Opens and stages content; see :class:`aimagestore._engine.protocol.Items`.

    :param engines: the writable store, and the additional ones
    """

    def __init__(self, engines: Sequence[Engine], reader: StackedReader) -> None:
        self._engines = engines
        self._own = engines[0].items
        self._reader = reader

    @property
    def helpers(self) -> Executor:
        """Threads for work beside a stream."""
        return self._own.helpers

    @property
    def inline_limit(self) -> int:
        """Content of fewer bytes is given to the writer in memory."""
        return self._own.inline_limit

    def stage(self) -> StagedContent:
        return self._own.stage()

    def stage_stored(
        self, digest: str, size: int | None, check: Callable[[], object]
    ) -> StagedContent | None:
        return self._own.stage_stored(digest, size, check)

    def open(self, ref: str, key: str) -> tuple[Image, io.RawIOBase]:
        while True:
            image_id, number = self._reader.read(lambda view: _locate(view, ref))
            engine = self._engines[number]
            try:
                with reading(engine):
                    image, file = engine.items.open(image_id, key)
            except ImageUnknownError:
                continue  # it was deleted meanwhile
            if image.id == image_id:
                return as_read_only(image) if number else image, file
            file.close()  # it was deleted meanwhile, and its ID is a prefix of another

    def is_same(self, one: io.RawIOBase, other: io.RawIOBase) -> bool:
        raise NotImplementedError("each additional store compares its own items")

    def usage(self) -> Steps[StoredContent]:
        return self._own.usage()


def _locate(view: View, ref: str) -> tuple[str, int]:
    """Return the ID of an image, and the number of the store that has it."""
    assert isinstance(view, Stack), "the reader's views are of several stores"
    image_id = view.lookup(ref)
    return image_id, view.number_of(image_id)
