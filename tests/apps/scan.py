"""A scanner: prints what podman has on this host, one image a line, as JSON.

Each image comes with its names, digests, size, layers (the lowest first) and the containers that
use it. podman may change the store meanwhile: all output is of one moment, and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import anyio

from aimagestore import Image, ImageStore, StoreCorruptError
from aimagestore.podman import PodmanSnapshot, locate, snapshot


def describe(image: Image, now: PodmanSnapshot) -> dict[str, Any]:
    """Return what a vulnerability scanner wants to know of an image."""
    return {
        "id": image.id,
        "names": image.names,
        "digests": image.digests,
        "created": None if image.created is None else image.created.isoformat(),
        "size": now.size_of(image.id),
        "containers": [container.name for container in now.containers_of(image.id)],
        "layers": [
            {"diff_id": layer.diff_digest, "size": layer.diff_size, "shared": is_shared}
            for layer in now.layers_of(image.id)
            for is_shared in [len(now.images_with(layer.id)) > 1]
        ],
    }


async def scan(path: str | None) -> None:
    """Print each image of a store; without a path, of podman's own store."""
    where = path or (await locate()).image_store
    async with ImageStore(where, read_only=True) as store:
        now = await snapshot(store)
    for image in now.images:
        try:
            print(json.dumps(describe(image, now)))
        except StoreCorruptError as error:
            print(error, file=sys.stderr)


def main() -> None:
    """Scan the store that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", nargs="?", help="such as /srv/graph/overlay-images")
    anyio.run(scan, parser.parse_args().store)


if __name__ == "__main__":
    main()
