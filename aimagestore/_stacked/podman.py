"""What podman keeps beside several stores."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Final

from .._core.layers import Layer, PodmanRecords
from .._engine.protocol import PodmanReader

_NONE: Final = PodmanRecords()


class StackedPodman:
    """Reads the layers of all stores; see :class:`aimagestore._engine.protocol.PodmanReader`.

    :param own: what reads those of the writable store, and its containers; ``None`` for none
    :param additional: what reads those of the additional stores
    """

    def __init__(self, own: PodmanReader | None, additional: Sequence[PodmanReader]) -> None:
        self._own = own
        self._additional = additional
        self._last: tuple[Sequence[PodmanRecords], PodmanRecords] = (), _NONE

    def read(self) -> PodmanRecords:
        own = _NONE if self._own is None else self._own.read()
        found = [own, *(reader.read() for reader in self._additional)]
        known, merged = self._last
        if len(known) == len(found) and all(map(operator.is_, known, found)):
            return merged
        layers: dict[str, Layer] = {}
        for records in reversed(found):
            layers |= records.layers
        merged = PodmanRecords(layers, own.containers)
        self._last = found, merged
        return merged
