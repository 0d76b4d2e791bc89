"""Several open stores as one engine."""

from __future__ import annotations

from collections.abc import Sequence

from .._core.draft import Draft
from .._engine.lock import AnyLine
from .._engine.protocol import Engine, Items, PodmanReader
from .draft import StackedDraft
from .items import StackedItems
from .podman import StackedPodman
from .reader import StackedReader
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
        """The line for the readers' lock of the writable store; an error names that of others."""
        return self._own.read_lock

    @property
    def writer(self) -> StackedWriter:
        """Writes the writable store."""
        return self._writer

    @property
    def items(self) -> StackedItems:
        """The items of all of them."""
        return self._items

    def items_of(self, draft: Draft, image_id: str) -> Items:
        """Return the items of the store in which a draft sees an image."""
        assert isinstance(draft, StackedDraft), "it was made here"
        return draft.engine_of(image_id, self._own).items

    @property
    def layer_store(self) -> str | None:
        """The directory of the layers of the first store that has one."""
        found = (engine.layer_store for engine in self._engines)
        return next((each for each in found if each is not None), None)

    @property
    def podman(self) -> PodmanReader | None:
        """What reads the layers of all of them, and the containers of the writable store."""
        return self._podman

    def close(self) -> None:
        """Release everything."""
        for engine in reversed(self._engines):
            engine.close()
