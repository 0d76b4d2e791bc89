"""A program that prints what the library imports in the event loop, which stops it.

It imports no other module of the tests, which would import some of that before.

Usage: ``python -m tests.support.imports BACKEND DIRECTORY``
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import anyio

from aimagestore import ImageStore, PrunePolicy


class Imports:
    """Notes each module that is imported in the event loop, which runs in this thread."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._thread = threading.current_thread()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Find nothing, as :data:`sys.meta_path` requires, but note the name."""
        if threading.current_thread() is self._thread:
            self.found.append(name)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what is imported during a block."""
        sys.meta_path.insert(0, self)
        try:
            yield
        finally:
            sys.meta_path.remove(self)


async def use(store: ImageStore) -> None:
    """Call what moves data, and what is rarely called."""
    data = bytes(3_000_000)
    async with store.watch() as watch, anyio.create_task_group() as tasks:
        tasks.start_soon(anext, watch)
        while watch._waiting is None:
            await anyio.sleep(0.001)
        await store.create("one", names=["a"], big_data={"small": b"data", "large": data})
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


async def main(path: Path) -> None:
    """Use a store of each kind, and print what was imported meanwhile."""
    imports = Imports()
    store = ImageStore(path / "store")
    with imports.noted():
        async with store:
            await use(store)
    # Only now, because these import modules that the calls above import in worker threads.
    store = ImageStore(path / "upper", additional_stores=[path / "store"])
    from aimagestore import check, copy_images, repair

    with imports.noted():
        async with store:
            await use(store)
        async with ImageStore(path / "store") as source, ImageStore(path / "copy") as target:
            await copy_images(source, target, ["one"])
        await repair(path / "copy", await check(path / "copy"))
    print(*imports.found)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[2]), backend=sys.argv[1])
