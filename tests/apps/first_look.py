"""A first look: opens a store that buildah wrote, reads it, and creates another image in it.

Works on a copy of ``tests/data/vfs-images`` in a new directory below the current one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import anyio

from aimagestore import ImageStore

FIXTURE = Path(__file__).parent.parent / "data" / "vfs-images"


async def first_look(path: Path) -> None:
    """Find buildah's image in every way, read it verified, and store a new one beside it."""
    async with ImageStore(path) as store:
        image = (await store.images())[0]
        print(f"opened {path}: {len(await store.images())} image, written by buildah")
        print(f"  ID     {image.id}")
        print(f"  names  {', '.join(image.names)}")
        print(f"  digest {image.digest}")

        for what, ref in [
            ("its ID", image.id),
            ("its name", image.names[0]),
            ("12 digits of its ID", image.id[:12]),
        ]:
            assert await store.lookup(ref) == image.id
            print(f"found by {what}")
        assert await store.by_digest(image.digest) == [image]
        print("found by its digest")

        async with store.open_big_data(image.id, "manifest", verify=True) as reader:
            manifest = json.loads(await reader.read())
        config = manifest["config"]
        print(f"read its manifest, verified: {reader.size} bytes, {len(manifest['layers'])} layer")

        new = await store.create(
            names=["localhost/copy:1"],
            top_layer=image.top_layer,
            big_data={
                "manifest": json.dumps(manifest, separators=(",", ":")).encode(),
                config["digest"]: await store.big_data(image.id, config["digest"]),
            },
        )
        print(f"created {new.id[:12]} as {new.names[0]}, with its manifest and config, durably")

    async with ImageStore(path, read_only=True) as store:
        print("opened again, read-only:")
        for image in await store.images():
            names = ", ".join(image.names)
            print(f"  {image.id[:12]}  {image.size:5} bytes  {names}")


def main() -> None:
    """Copy the fixture, and take a first look at the copy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    arguments = parser.parse_args()
    path = Path(tempfile.mkdtemp(prefix="demo-", dir=".")) / "vfs-images"
    shutil.copytree(FIXTURE, path)
    anyio.run(first_look, path, backend=arguments.backend)


if __name__ == "__main__":
    main()
