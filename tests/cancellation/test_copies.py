"""Changes that copy an image of an additional store first, interrupted at every step.

In a usual run another program has the lock at first for every second one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from aimagestore import ImageStore

from ..support.disks import directory_in_memory
from ..support.loops import EXTENTS, pairs
from ..support.stores import StackedStore, StoreUnderTest, tree
from ..support.sweep import Operation, Sweep, fill

LARGE = b"l" * 1_200_000


class FilledStore(StackedStore):
    """A store whose first additional store has an image."""

    def fill(self) -> None:
        """Create the image, and keep the content of the additional store to compare it."""
        anyio.run(self._fill)
        self.before = tree(self.additional[0])

    async def _fill(self) -> None:
        await fill(self)
        async with ImageStore(self.additional[0]) as store:
            await store.create("below", names=["b"], big_data={"manifest": b"{}", "k": LARGE})

    def make_additional(self) -> None:
        if not self.additional[0].exists():
            super().make_additional()


async def transact(store: ImageStore, _: StoreUnderTest) -> None:
    async with store.transaction() as tx:
        await tx.set_metadata("below", "copied")
        await tx.set_big_data("below", "manifest", b"new")


COPYING: dict[str, Operation] = {
    "set_metadata": lambda store, _: store.set_metadata("below", "copied"),
    "set_big_data": lambda store, _: store.set_big_data("b", "manifest", b"new"),
    "create": lambda store, _: store.create("below", big_data={"more": b"new"}),
    "transaction": transact,
}


class CopyingSweep(Sweep):
    """A sweep of an operation that copies an image of the additional store first."""

    where: FilledStore

    def __init__(self, where: FilledStore, operation: str, *, is_held: bool = False) -> None:
        super().__init__(where, "get", is_held=is_held)
        self._operation = COPYING[operation]

    async def _check(self, store: ImageStore, acknowledged: list[str]) -> None:
        await super()._check(store, acknowledged)
        image = await store.get("below")
        if not image.read_only:
            assert await store.big_data("below", "k") == LARGE
        assert tree(self.where.additional[0]) == self.where.before


@pytest.fixture(scope="module")
def where() -> Iterator[FilledStore]:
    """A store that is restored before each step."""
    with directory_in_memory() as directory:
        where = FilledStore(directory)
        where.fill()
        yield where


@pytest.mark.parametrize("whole", EXTENTS)
@pytest.mark.parametrize(
    ("operation", "is_held"),
    pairs({name: name for name in COPYING}, {"free": False, "held": True}),
)
async def test_an_interrupted_copy_leaves_nothing_behind(
    where: FilledStore, operation: str, is_held: bool, whole: bool, anyio_backend: Any
) -> None:
    await CopyingSweep(where, operation, is_held=is_held).run_on(anyio_backend, whole=whole)
