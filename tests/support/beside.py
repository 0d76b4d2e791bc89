"""An image store with podman's layers and containers beside it, written as podman writes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

DIGEST = "sha256:" + "d" * 64


def layer(layer_id: str, parent: str = "", size: int | None = 10, **fields: Any) -> dict[str, Any]:
    """Return a record of layers.json.

    :param size: the recorded size in bytes; ``None`` for a record without one
    """
    record: dict[str, Any] = {"id": layer_id, "created": "2024-01-01T00:00:00Z"}
    if parent:
        record["parent"] = parent
    if size is not None:
        record |= {"diff-digest": DIGEST, "diff-size": size}
    return record | fields


def container(container_id: str, image: str, *names: str) -> dict[str, Any]:
    """Return a record of containers.json."""
    record = {"id": container_id, "names": list(names), "image": image, "layer": "own"}
    return record | {"created": "2024-01-01T00:00:00Z"}


class Beside:
    """The layers and containers beside an image store of the driver vfs.

    :ivar images: the path of the image store
    """

    def __init__(self, root: Path) -> None:
        self.images = root / "vfs-images"
        self.layers = root / "vfs-layers"
        self.containers = root / "vfs-containers"
        self.layers.mkdir(parents=True)
        self.containers.mkdir()

    def write_layers(self, *records: Any, volatile: bool = False) -> None:
        """Replace the records of layers, or those of volatile ones."""
        self.write(self.layers, f"{'volatile-' * volatile}layers.json", json.dumps(records))

    def write_containers(self, *records: Any, volatile: bool = False) -> None:
        """Replace the records of containers, or those of volatile ones."""
        name = f"{'volatile-' * volatile}containers.json"
        self.write(self.containers, name, json.dumps(records))

    def write(self, directory: Path, name: str, text: str) -> None:
        """Replace a file as Go does, by a rename."""
        new = directory / ".tmp-new"
        new.write_text(text)
        os.replace(new, directory / name)
