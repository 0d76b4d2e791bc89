"""What podman keeps beside several stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .._core.layers import Container, Layer
from .._engine.protocol import PodmanReader


class StackedPodman:
    """The layers of all stores, and the containers of the writable one.

    A layer may have its parent in another store. Of two layers with one ID, the first counts. See
    :class:`aimagestore._engine.protocol.PodmanReader`.

    :param own: reads what is beside the writable store
    :param additional: read what is beside the additional stores, in order
    """

    def __init__(self, own: PodmanReader | None, additional: Sequence[PodmanReader]) -> None:
        self.others: Sequence[PodmanReader] = ()
        found = (reader.layer_store for reader in [*([] if own is None else [own]), *additional])
        self.layer_store = next((each for each in found if each is not None), None)
        self._own = own
        self._readers = [*([] if own is None else [own]), *additional]
        self._no_containers: Mapping[str, Container] = {}
        # The last layers of each store, and of all together. One attribute, because several
        # threads read at once.
        self._last: tuple[Sequence[Mapping[str, Layer]], Mapping[str, Layer]] = ((), {})

    def read_layers(self) -> Mapping[str, Layer]:
        parts = [reader.read_layers() for reader in self._readers]
        last_parts, found = self._last
        if list(map(id, parts)) != list(map(id, last_parts)):
            found = {i: layer for part in reversed(parts) for i, layer in part.items()}
            self._last = parts, found
        return found

    def read_containers(self) -> Mapping[str, Container]:
        return self._no_containers if self._own is None else self._own.read_containers()
