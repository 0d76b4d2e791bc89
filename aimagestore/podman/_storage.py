"""Where a podman keeps its images, layers and containers."""

from __future__ import annotations

from dataclasses import dataclass

from .._core.plain import PlainType


@dataclass(frozen=True, slots=True)
class PodmanStorage(metaclass=PlainType):
    """The directories of a podman. None of them need exist.

    :ivar graph_root: the directory of everything that is kept
    :ivar run_root: the directory of everything that is lost when the machine stops
    :ivar driver: the storage driver, such as ``"overlay"``
    :ivar image_store: the image store, for :class:`aimagestore.ImageStore`
    :ivar additional_image_stores: the image stores that podman reads besides, in this order
    :ivar layer_store: the directory of the image store's layers
    :ivar container_store: the directory of the containers' records
    :ivar is_rootless: whether podman works without root's privileges
    :ivar sources: the files that all this comes from, in the order in which they were read
    """

    graph_root: str
    run_root: str
    driver: str
    image_store: str
    additional_image_stores: tuple[str, ...]
    layer_store: str
    container_store: str
    is_rootless: bool
    sources: tuple[str, ...]
