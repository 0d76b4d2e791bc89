"""Which containers use an image, as containers/storage records it beside the images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import msgspec

from ..errors import StoreCorruptError

_IMAGE_STORE = "-images"


class _Container(msgspec.Struct):
    id: str = ""
    names: list[str] | None = None
    image: str = ""


_decode = msgspec.json.Decoder(list[_Container]).decode


def sibling(path: str, kind: str) -> str | None:
    """Return the directory beside an image store that has the layers or containers of its driver.

    :param path: the image store, ``…/<driver>-images`` as containers/storage lays it out
    :param kind: ``"layers"`` or ``"containers"``
    """
    parent, name = os.path.split(os.path.realpath(path))
    driver = name.removesuffix(_IMAGE_STORE)
    directory = os.path.join(parent, f"{driver}-{kind}")
    return directory if driver not in {"", name} and os.path.isdir(directory) else None


def containers_of(path: str, image_ids: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """Return the containers that use each of these images; images without any are left out.

    :raises StoreCorruptError: when the list of containers cannot be read
    """
    wanted = set(image_ids)
    directory = sibling(path, "containers")
    if directory is None:
        return {}
    file = os.path.join(directory, "containers.json")
    try:
        with open(file, "rb") as opened:
            text = opened.read()
    except FileNotFoundError:
        return {}
    try:
        containers = _decode(text) if text.strip() else []
    except msgspec.DecodeError as error:
        raise StoreCorruptError(
            f"{file} cannot be read, so it is not known which images containers use: {error}; "
            "force=True deletes all the same",
            path=file,
        ) from error
    users: dict[str, list[str]] = {}
    for container in containers:
        if container.image in wanted:
            name = container.names[0] if container.names else container.id
            users.setdefault(container.image, []).append(name)
    return {image_id: tuple(names) for image_id, names in users.items()}
