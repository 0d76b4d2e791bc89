"""Several open stores as one engine."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import ExitStack

from .._core.draft import Draft
from .._engine.lock import AnyLine
from .._engine.protocol import Engine, PodmanReader
from .draft import StackedDraft
from .items import StackedItems
from .podman import StackedPodman
from .reader import StackedReader
from .reading import reading
from .writer import StackedWriter


class StackedEngine:
    """A store with additional ones; see :class:`aimagestore._engine.protocol.Engine`.

    :param own: the writable store
    :param additional: the additional stores, in order
    """

    def __init__(self, own: Engine, additional: Sequence[Engine]) -> None:
        self._own = own
        self._engines = [own, *additional]
        self._reader = StackedReader(self._engines)
        self._writer = StackedWriter(own, additional)
        self._items = StackedItems(self._engines, self._reader)
        podman = [engine.podman for engine in additional if engine.podman is not None]
        self._podman = StackedPodman(own.podman, podman) if podman else own.podman
        if own.podman is not None:
            own.podman.others = podman

    @property
    def name(self) -> str:
        """The name of the writable store."""
        return self._own.name

    @property
    def reader(self) -> StackedReader:
        """Reads all of them."""
        return self._reader

    @property
    def lock(self) -> AnyLine:
        """The line for the lock of the writable store."""
        return self._own.lock

    @property
    def read_lock(self) -> AnyLine:
        """The line for the readers' lock of the writable store.

        Where another store's is needed, the :exc:`ChangeUnderWayError` has it.
        """
        return self._own.read_lock

    @property
    def writer(self) -> StackedWriter:
        """Writes the writable store."""
        return self._writer

    @property
    def items(self) -> StackedItems:
        """The items of all of them."""
        return self._items

    def open_item(self, draft: Draft, image_id: str, key: str) -> io.RawIOBase:
        """Open an item in the store in which a draft sees the image."""
        assert isinstance(draft, StackedDraft), "the writer made it"
        engine = draft.engine_of(image_id, self._own)
        with reading(engine):
            return engine.items.open(image_id, key)[1]

    @property
    def layer_store(self) -> str | None:
        """The directory of the layers of the writable store: images are created in no other."""
        return self._own.layer_store

    @property
    def podman(self) -> PodmanReader | None:
        """What reads the layers of all of them, and the containers of the writable store."""
        return self._podman

    def close(self) -> None:
        """Release everything."""
        with ExitStack() as stack:  # closes each, even if another cannot be closed
            for engine in self._engines:
                stack.callback(engine.close)
