"""The same operations give the same results and files in containers/storage and here."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Literal

import anyio
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from ..support.loops import EXTENTS
from .operations import DIGESTS, MALFORMED_DIGESTS, Operation, lists
from .peer import Peer
from .twins import Twins

pytestmark = pytest.mark.peers

LISTS = int(os.environ.get("AIMAGESTORE_LISTS", "0"))
"""How many lists of operations are compared, if not the usual number; 2000 take some minutes."""

_numbers = count()


@pytest.mark.timeout(160 + LISTS)
@pytest.mark.parametrize("whole", EXTENTS)
def test_the_same_operations_give_the_same_results_and_files(
    peer: Peer, in_memory: Path, *, whole: bool
) -> None:
    """A usual run compares fewer lists."""
    number = LISTS or (100 if whole else 15)
    seen: Counter[tuple[str, str]] = Counter()

    @settings(
        max_examples=number,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        before=lists,
        after=lists,
        backend=st.sampled_from(["asyncio", "trio"]),
    )
    def compare(
        before: list[Operation], after: list[Operation], backend: Literal["asyncio", "trio"]
    ) -> None:
        directory = in_memory / str(next(_numbers))
        twins = Twins(peer, directory)
        try:
            anyio.run(perform, twins, before, after, backend=backend)
        finally:
            shutil.rmtree(directory)
        seen.update(twins.performed)

    compare()
    # Operations that all fail would compare little.
    for op in ("create", "get", "add_names", "set_names", "remove_names", "set_big_data"):
        assert seen[op, "Image"] > number / 20, seen
    print(dict(seen))


async def perform(twins: Twins, before: list[Operation], after: list[Operation]) -> None:
    """Do each list of operations on both stores, then swap their directories, and compare."""
    await twins.open()
    try:
        for operations in (before, after):
            for operation in operations:
                await twins.perform(operation)
            twins.compare_directories()
            await twins.swap()
            await twins.compare_lookups([*DIGESTS, *MALFORMED_DIGESTS])
            twins.compare_directories()
    finally:
        await twins.close()
    await twins.check_directories()
