"""A CI runner with a warm cache: prepares a job's images, and pulls only the missing ones.

The cache is a read-only store that many runners share. A runner whose cache is not mounted works
without it. The job's podman needs the same store and the same additionalimagestores.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

import anyio

from aimagestore import AdditionalStore, ImageStore


async def prepare(own: str, cache: str, pull: Sequence[str], names: Sequence[str]) -> None:
    """Pull the images that are missing, and print where each image is."""
    additional = [AdditionalStore(cache, required=False)]
    async with ImageStore(own, lock_timeout=60, additional_stores=additional) as store:
        for name in names:
            if await store.exists(name):
                image = await store.get(name)
                where = "in the cache" if image.read_only else "here"
            else:
                await anyio.run_process([*pull, name])
                image = await store.get(name)
                where = "pulled"
            print(f"{name} {image.id[:12]} {where}")


def main() -> None:
    """Prepare the images that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--own", required=True, help="the runner's store")
    parser.add_argument("--cache", required=True, help="the cache, such as /cache/overlay-images")
    parser.add_argument(
        "--pull", default="podman pull --quiet", help="the command that pulls an image"
    )
    parser.add_argument("names", nargs="+")
    given = parser.parse_args()
    anyio.run(prepare, given.own, given.cache, shlex.split(given.pull), given.names)


if __name__ == "__main__":
    main()
