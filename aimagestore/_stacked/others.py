"""What additional stores have, for a check or repair of the store that they are additional to."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Final

from .._core.layers import Layer
from .._core.report import Finding, FindingKind
from .._core.view import View
from .._engine.protocol import ChangeUnderWayError, Elsewhere, Engine, Steps
from ..errors import ImageStoreError

_READ_AGAIN: Final = 0.05
"""Seconds before a store is read again after another program was in the middle of a change."""


class AdditionalStores:
    """Additional stores; see :class:`aimagestore._engine.protocol.OtherStores`.

    :param stores: the name of each, and a function that opens it, or returns ``None`` if the store
        is missing and not required
    """

    def __init__(self, stores: Iterable[tuple[str, Callable[[], Engine | None]]]) -> None:
        self._stores = tuple(stores)

    def look(self, image_ids: Collection[str]) -> Steps[Elsewhere]:
        layers: dict[str, Layer] = {}
        images: set[str] = set()
        findings: list[Finding] = []
        for name, open_store in self._stores:
            while True:
                try:
                    engine = open_store()
                    if engine is not None:
                        _add(engine, image_ids, layers, images)
                    break
                except ChangeUnderWayError:
                    time.sleep(_READ_AGAIN)
                    yield 0, 0
                except (ImageStoreError, OSError) as error:
                    kind = FindingKind.STORE_UNREADABLE
                    findings.append(Finding(kind, path=name, detail=str(error)))
                    break
        return Elsewhere(layers, frozenset(images), tuple(findings))


def _add(
    engine: Engine, image_ids: Collection[str], layers: dict[str, Layer], images: set[str]
) -> None:
    """Add the layers of a store and those of the images that it has, and close it."""

    def found(view: View) -> list[str]:
        view.prefetch(image_ids, ())
        return [image_id for image_id in image_ids if view.record_of(image_id) is not None]

    try:
        images.update(engine.reader.read(found))
        if engine.podman is not None:
            layers.update(engine.podman.read_layers())
    finally:
        engine.close()
