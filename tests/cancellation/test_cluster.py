"""A cluster's store, interrupted at every step: the same operations, the same demands.

How a call is interrupted is tried in every way on directories, in the same code. What differs here
is below it: sessions, uploads, and commits whose answer is still out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import anyio
import pytest

from aimagestore import Image, ImageStore

from ..support import interruptions
from ..support.interruptions import Interruption
from ..support.loops import EVERY_LOOP, NIGHTLY
from ..support.stores import ClusterStore
from ..support.sweep import OPERATIONS, Sweep, fill

STEPS = 1 if NIGHTLY else 3
"""Every how many steps the slow operations are interrupted."""

SLOW = {"copy_images", "import_layout", "export_layout", "stage_data"}
SLOW |= {"create_from_chunks", "set_big_data_from_chunks", "check"}

# Only directories can be repaired.
CLUSTER_OPERATIONS = [name for name in OPERATIONS if name != "repair"]


@pytest.fixture(scope="module")
def where(cluster_store: ClusterStore, tmp_path_factory: pytest.TempPathFactory) -> ClusterStore:
    """A store on the servers, to be restored."""
    cluster_store.root = tmp_path_factory.mktemp("sweep")
    cluster_store.clear()
    anyio.run(fill, cluster_store)
    return cluster_store


@pytest.fixture(autouse=True)
def _no_garbage(where: ClusterStore) -> Iterator[None]:
    """Begin without objects that nothing refers to, as calls that were interrupted leave."""
    yield
    where.restore()
    where.discard(UUID(blob) for blob in where.garbage())


class ClusterSweep(Sweep):
    """One operation on an open store, interrupted at one step after another."""

    where: ClusterStore

    async def run(self, interrupt: Interruption, every: int = 1) -> None:
        """Interrupt the operation at its steps."""
        async with self.opened() as store:
            for step in range(1, 300, every):
                self.where.restore()
                if not await self.interrupted(store, step, interrupt):
                    return
        raise AssertionError("it never completed")

    async def stored_images(self) -> list[Image]:
        return self.where.images()

    async def check_content(self, store: ImageStore, images: list[Image]) -> None:
        """Check that what the records refer to is there, as it was written."""
        assert self.where.missing_objects() == set()
        for key in (await store.get("one")).big_data_names:
            await store.big_data("one", key)


def stride_of(operation: str) -> int:
    """Return every how many steps an operation is interrupted."""
    return STEPS if operation in SLOW else 1


@pytest.mark.parametrize("anyio_backend", EVERY_LOOP[2:])
@pytest.mark.parametrize("operation", CLUSTER_OPERATIONS)
async def test_a_cancelled_scope_leaves_nothing_behind_on_a_cluster(
    where: ClusterStore, operation: str, anyio_backend: Any
) -> None:
    sweep = ClusterSweep(where, operation)
    await sweep.run(interruptions.by_scope, stride_of(operation))


@pytest.mark.parametrize("anyio_backend", EVERY_LOOP[:1])
@pytest.mark.parametrize("operation", CLUSTER_OPERATIONS)
async def test_a_cancelled_task_leaves_nothing_behind_on_a_cluster(
    where: ClusterStore, operation: str, anyio_backend: Any
) -> None:
    sweep = ClusterSweep(where, operation)
    await sweep.run(interruptions.by_task_cancel, stride_of(operation))


@pytest.mark.parametrize("anyio_backend", EVERY_LOOP[:1])
@pytest.mark.parametrize("way", ["scope", "two_cancels", "timeout"])
@pytest.mark.parametrize(
    "operation",
    ["set_flag", "create", "transaction", "stage", "open_big_data", "collect_garbage", "aclose"],
)
async def test_other_interruptions_leave_nothing_behind_on_a_cluster(
    where: ClusterStore, operation: str, way: str, anyio_backend: Any
) -> None:
    await ClusterSweep(where, operation).run(interruptions.ASYNCIO[way])
