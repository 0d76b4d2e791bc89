"""A program that prints what the library imports in the event loop, which stops it.

Usage: ``python -m tests.support.imports BACKEND DIRECTORY``
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import anyio

from aimagestore import ImageStore, PrunePolicy, check, copy_images, repair


class Imports:
    """Notes each module that is imported in the thread that made this."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._thread = threading.current_thread()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Find nothing, as :data:`sys.meta_path` requires, but note the name."""
        if threading.current_thread() is self._thread:
            self.found.append(name)


async def use(store: ImageStore, path: Path) -> None:
    """Call what moves data, and what is rarely called."""
    data = bytes(3_000_000)
    async with store.watch() as watch:
        await store.create("one", names=["a"], big_data={"small": b"data", "large": data})
        with anyio.move_on_after(0.2):
            async for _ in watch:
                pass
    async with store.open_big_data("one", "large", verify=True) as reader:
        async for _ in reader:
            pass
    async with store.stage(data) as item, store.transaction() as tx:
        await tx.set_big_data("one", "other", item)
    await store.collect_garbage()
    await store.usage()
    policy = PrunePolicy()
    await store.prune(policy, dry_run=True)
    await store.prune(policy)
    async with ImageStore(path / "other") as other:
        await copy_images(store, other, ["one"])
    report = await check(path / "other")
    await repair(path / "other", report)


async def main(path: Path) -> None:
    """Use a store of each kind, and print what was imported meanwhile."""
    stores = (
        ImageStore(path / "store"),
        ImageStore(path / "upper", additional_stores=[path / "lower"]),
    )
    async with ImageStore(path / "lower"):
        pass
    imports = Imports()
    sys.meta_path.insert(0, imports)
    for store in stores:
        async with store:
            await use(store, path / store.__class__.__name__)
    print(*imports.found)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[2]), backend=sys.argv[1])
