"""An HPC node: prints how to start a job's container from an image that all nodes share.

The site's store is on a read-only mount, and each user has a store of their own in front of it. A
job may give the image another name: its record is then copied into the user's store, and its layers
stay where all nodes share them. podman with the same additionalimagestores sees the same images.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import anyio

from aimagestore import ImageStore
from aimagestore.podman import snapshot


async def describe(own: str, shared: str, name: str, alias: str | None) -> dict[str, Any]:
    """Find an image in the user's store or in the site's, and return what starts its container."""
    async with ImageStore(own, lock_timeout=30, additional_stores=[shared]) as store:
        if alias is not None:
            await store.add_names(name, [alias])
        image = await store.get(alias or name)
        manifest = json.loads(await store.big_data(image.id, "manifest"))
        config = json.loads(await store.big_data(image.id, manifest["config"]["digest"]))
        now = await snapshot(store)
    return {
        "id": image.id,
        "names": image.names,
        "shared": image.read_only,
        "size": now.size_of(image.id),
        "layers": [layer.id for layer in now.layers_of(image.id)],
        "command": config.get("config", {}).get("Cmd", []),
        "environment": config.get("config", {}).get("Env", []),
    }


def main() -> None:
    """Print the description of a job's image as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("own", help="the user's store, such as ~/graph/overlay-images")
    parser.add_argument("shared", help="the site's store, such as /site/graph/overlay-images")
    parser.add_argument("name", help="the image")
    parser.add_argument("--alias", help="a name for this job")
    given = parser.parse_args()
    print(json.dumps(anyio.run(describe, given.own, given.shared, given.name, given.alias)))


if __name__ == "__main__":
    main()
