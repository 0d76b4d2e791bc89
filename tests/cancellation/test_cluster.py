"""A cluster's store, interrupted at every step: it leaves no session, lock or object behind."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import anyio
import pytest

from aimagestore import ImageStore

from ..support.interruptions import (
    ASYNCIO,
    Interruption,
    by_repeated_cancels,
    by_scope,
)
from ..support.loops import EXTENTS, pairs
from ..support.stores import ClusterStore
from ..support.sweep import CHANGES, OPERATIONS, ClusterSweep, fill

if TYPE_CHECKING:
    from ..cluster.servers import Servers
    from ..support.requests import Requests

LOOPS = ["asyncio", "trio"]
on_both_loops = pytest.mark.parametrize("anyio_backend", LOOPS)

# A cluster's store cannot be repaired.
EACH = [operation for operation in OPERATIONS if operation != "repair"]

# The others are like one of CHANGES or only read: in a usual run one loop is enough for them.
ON_LOOPS = [
    *(pytest.param(each, loop) for each in EACH if each in CHANGES for loop in LOOPS),
    *pairs({each: each for each in EACH if each not in CHANGES}, {loop: loop for loop in LOOPS}),
]


@pytest.fixture(scope="module")
def where(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterStore]:
    """A store that is restored before each step."""
    from aimagestore.cluster._addresses import BucketAddress

    with servers.new_place() as place, pytest.MonkeyPatch.context() as patch:
        # A new client reads all certificates of this machine, which takes longer than a step.
        patch.setattr(BucketAddress, "open", cache(BucketAddress.open))
        where = ClusterStore(place)
        where.root = tmp_path_factory.mktemp("files")
        anyio.run(fill, where)
        yield where
        where.check_intact()
        where.close()


@pytest.fixture
def requests(where: ClusterStore, monkeypatch: pytest.MonkeyPatch) -> Requests:
    """Interrupts calls during their requests."""
    from ..support.requests import Requests

    return Requests(monkeypatch)


async def interrupt(
    sweep: ClusterSweep, ways: list[Interruption], request: Interruption, *, whole: bool
) -> None:
    """Interrupt a call in these ways, and during its requests.

    A usual run does it at every second step, each in one way by turns, and during every fourth
    request.
    """
    async with sweep.opened():
        if whole:
            await sweep.run_ways([*ways, request], whole=True)
        else:
            await sweep.run(*ways, every=2)
            await sweep.run(request, first=2, every=4)


@pytest.mark.parametrize("whole", EXTENTS)
@pytest.mark.parametrize(("operation", "anyio_backend"), ON_LOOPS)
async def test_an_interruption_leaves_nothing_behind(
    where: ClusterStore, requests: Requests, operation: str, whole: bool, anyio_backend: str
) -> None:
    sweep = ClusterSweep(where, operation)
    if anyio_backend == "trio":
        await interrupt(sweep, [by_scope], requests.by_scope, whole=whole)
    else:
        ways = [ASYNCIO[way] for way in ("task_cancel", "scope", "repeated_cancels", "timeout")]
        await interrupt(sweep, ways, requests.by_task_cancel, whole=whole)


@pytest.mark.parametrize("whole", EXTENTS)
@pytest.mark.parametrize("operation", [each for each in CHANGES if each in EACH])
@on_both_loops
async def test_an_interruption_while_another_program_has_the_lock_leaves_nothing_behind(
    where: ClusterStore, requests: Requests, operation: str, whole: bool, anyio_backend: str
) -> None:
    sweep = ClusterSweep(where, operation, is_held=True)
    if anyio_backend == "trio":
        await interrupt(sweep, [by_scope], requests.by_scope, whole=whole)
    else:
        await interrupt(sweep, [by_repeated_cancels], requests.by_task_cancel, whole=whole)


@on_both_loops
async def test_a_wait_for_the_lock_that_is_cancelled_ends_at_the_server_too(
    where: ClusterStore,
) -> None:
    from aimagestore.cluster import ClusterLocation

    # The server does not check for lost clients, as on systems where it cannot.
    options = "options=-c%20client_connection_check_interval%3D0"
    location = ClusterLocation(f"{where.place.records_url}?{options}", where.place.blobs_url)
    async with ImageStore(location) as store:
        with where.locked():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.touch)
                await where.until_requested()
                tasks.cancel_scope.cancel()
            await where.until_not_requested()
