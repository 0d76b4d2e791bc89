"""Checks what podman keeps beside an image store, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from .._core.layers import Container, Layer
from .._core.report import Finding, FindingKind
from .._core.view import View
from ..errors import StoreCorruptError
from .beside import PodmanFiles
from .record_file import RecordFiles

_ADVICE = (
    "podman refuses the store: restore the file from a backup, or begin anew with podman system "
    "reset, which removes all images and containers"
)


def check_beside(files: PodmanFiles, images: View) -> Iterator[Finding]:
    """Iterate over what is wrong with layers and containers.

    :param images: the images of the store, read before
    """
    yield from _check_files(files.layers, FindingKind.LAYERS_DAMAGED)
    yield from _check_files(files.containers, FindingKind.CONTAINERS_DAMAGED)
    for file in files.containers:
        with suppress(StoreCorruptError):
            for container in file.read().records:
                if container.image and images.record_of(container.image) is None:
                    yield _without_image(container, file.path)


def _check_files(
    files: RecordFiles[Layer] | RecordFiles[Container], kind: FindingKind
) -> Iterator[Finding]:
    for file in files:
        try:
            for element in file.read().damaged:
                record = element[:100].decode(errors="replace")
                yield Finding(kind, path=file.path, detail=f"a damaged record, {record}: {_ADVICE}")
        except StoreCorruptError as error:
            yield Finding(kind, path=file.path, detail=f"{error}: {_ADVICE}")


def _without_image(container: Container, path: str) -> Finding:
    detail = (
        f"container {container.name} was made from it; unless an additional store has it, podman "
        f"rm --force {container.name} removes the container"
    )
    return Finding(FindingKind.IMAGE_MISSING, container.image, path=path, detail=detail)
