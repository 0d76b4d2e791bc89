"""Checks what podman keeps beside an image store, and changes nothing."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import suppress

from .._core.layers import Container as ContainerRecord, Layer
from .._core.report import Finding, FindingKind
from .._core.view import View
from ..errors import StoreCorruptError
from .beside import PodmanFiles
from .record_file import RecordFiles

_ADVICE = (
    "podman refuses the store, or takes the list for empty: restore the file from a backup, or "
    "start afresh with podman system reset, which removes all images and containers"
)


def images_of_containers(files: PodmanFiles) -> set[str]:
    """Return the IDs of the images that containers were made from, as far as they can be read."""
    return {container.image for container, _ in _containers(files)}


def check_beside(files: PodmanFiles, images: View, others: Container[str]) -> Iterator[Finding]:
    """Iterate over what is wrong with layers and containers.

    :param images: the images of the store, which were read before
    :param others: IDs of images of additional stores
    """
    yield from _check_files(files.layers, FindingKind.LAYERS_DAMAGED)
    yield from _check_files(files.containers, FindingKind.CONTAINERS_DAMAGED)
    for container, path in _containers(files):
        if images.record_of(container.image) is None and container.image not in others:
            yield _without_image(container, path)


def _containers(files: PodmanFiles) -> Iterator[tuple[ContainerRecord, str]]:
    """Iterate over the containers that were made from images, each with its file."""
    for file in files.containers:
        with suppress(StoreCorruptError):
            yield from ((found, file.path) for found in file.read().records if found.image)


def _check_files(
    files: RecordFiles[Layer] | RecordFiles[ContainerRecord], kind: FindingKind
) -> Iterator[Finding]:
    for file in files:
        try:
            for element in file.read().damaged:
                record = element[:100].decode(errors="replace")
                yield Finding(kind, path=file.path, detail=f"a damaged record, {record}: {_ADVICE}")
        except StoreCorruptError as error:
            yield Finding(kind, path=file.path, detail=f"{error}: {_ADVICE}")


def _without_image(container: ContainerRecord, path: str) -> Finding:
    detail = (
        f"container {container.name} was made from it; unless an additional store has it, podman "
        f"rm --force {container.name} removes the container"
    )
    return Finding(FindingKind.IMAGE_MISSING, container.image, path=path, detail=detail)
