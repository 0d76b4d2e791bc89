"""Pruning, interrupted at every step: the result says which images were pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import Image, ImageStore, PrunePolicy, PruneResult, check
from aimagestore._async import pruning

from ..support import interruptions
from ..support.gates import Gate
from ..support.loops import ASYNCIO_LOOPS
from ..support.stores import DirectoryStore, until

IMAGES = [f"image{number}" for number in range(6)]


async def interrupted_everywhere(
    root: Path, interrupt: interruptions.Interruption, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prune a store anew for each step of pruning, and interrupt it there."""
    monkeypatch.setattr(pruning, "_AT_ONCE", 2)
    where = DirectoryStore(root)
    numbers = set()
    for step in range(1, 200):
        where.clear()
        async with ImageStore(where.path) as store:
            async with store.transaction() as tx:
                for image_id in IMAGES:
                    await tx.create(image_id, big_data={"key": image_id.encode()})
            results: list[PruneResult | None] = []

            async def prune(
                store: ImageStore = store, results: list[PruneResult | None] = results
            ) -> None:
                try:
                    results.append(await store.prune(PrunePolicy()))
                except BaseException as error:
                    results.append(PruneResult.of(error))
                    raise

            with anyio.fail_after(30):
                is_interrupted = await interrupt(prune, step)
            left = {image.id for image in await store.images()}
            await store.create("after")
        # There is no result if it was interrupted before it began.
        result = results[0] if results else PruneResult()
        assert result is not None
        pruned = [image.id for image in result.images]
        assert pruned == IMAGES[: len(pruned)]
        assert left == set(IMAGES) - set(pruned)
        assert bool(result.freed) is bool(pruned)
        async with ImageStore(where.path) as store:
            assert {image.id for image in await store.images()} == {*left, "after"}
        assert (await check(where.path)).ok
        numbers.add(len(pruned))
        if not is_interrupted:
            break
    assert numbers >= {0, 2, 4, 6}


async def test_a_cancelled_scope_leaves_what_the_result_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await interrupted_everywhere(tmp_path, interruptions.by_scope, monkeypatch)


@pytest.mark.parametrize("anyio_backend", ASYNCIO_LOOPS)
@pytest.mark.parametrize("way", ["task_cancel", "repeated_cancels"])
async def test_an_interruption_by_asyncio_leaves_what_the_result_says(
    tmp_path: Path, way: str, anyio_backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await interrupted_everywhere(tmp_path, interruptions.ASYNCIO[way], monkeypatch)


async def test_a_cancelled_call_asks_its_filter_no_more(path: Path) -> None:
    gate = Gate()
    asked: list[str] = []

    def select(image: Image) -> bool:
        asked.append(image.id)
        gate()
        return True

    async with ImageStore(path) as store:
        for image_id in IMAGES:
            await store.create(image_id)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.prune, PrunePolicy(filter=select))
            await until(gate.reached.is_set)
            tasks.cancel_scope.cancel()
        gate.open()
    assert asked == IMAGES[:1]  # the store waits for its threads
