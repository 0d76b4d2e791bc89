"""Watches: takes their events, and replays them on images."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import TypeVar

import anyio
import anyio.lowlevel

from aimagestore import ChangeEvent, Image, ImageStore, Watch

T = TypeVar("T")


def kinds(events: Iterable[ChangeEvent]) -> list[tuple[str, str]]:
    """Return the kind and the image ID of each event."""
    return [(event.kind, event.id) for event in events]


async def take(watch: Watch, number: int) -> list[ChangeEvent]:
    """Return the next ``number`` events."""
    with anyio.fail_after(20):
        return [await anext(watch) for _ in range(number)]


async def until_idle(watch: Watch) -> None:
    """Return when a task waits for the next event."""
    with anyio.fail_after(20):
        while watch._waiting is None:
            await anyio.lowlevel.checkpoint()


async def meanwhile(watch: Watch, call: Awaitable[T]) -> tuple[T, ChangeEvent]:
    """Make a call while a task waits for the next event, and return the result and the event."""
    seen: list[ChangeEvent] = []

    async def take_one() -> None:
        seen.extend(await take(watch, 1))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take_one)
        await until_idle(watch)
        result = await call
    return result, seen[0]


def replay(images: dict[str, Image], events: Iterable[ChangeEvent]) -> None:
    """Apply events to images, and check that each of them is possible."""
    for event in events:
        if event.kind == "deleted":
            assert event.image is None
            del images[event.id]
        else:
            assert (event.id in images) == (event.kind == "changed")
            assert event.image is not None
            images[event.id] = event.image


async def change_everything(store: ImageStore) -> list[tuple[str, str]]:
    """Change the store in every way, and return the events that a watch must yield."""
    await store.create("one", names=["a"])
    await store.create("two")
    await store.set_big_data("one", "manifest", b"content")
    await store.add_names("two", ["a", "b"])
    await store.set_metadata("one", "text")
    await store.set_metadata("one", "text")  # which changes nothing
    await store.set_flag("two", "flag", 1)
    async with store.transaction() as tx:
        await tx.create("three")
        await tx.set_metadata("three", "text")
        await tx.delete("two")
        await tx.create("four")
        await tx.delete("four")
    await store.wipe()
    return [
        ("created", "one"),
        ("created", "two"),
        ("changed", "one"),
        ("changed", "one"),
        ("changed", "two"),
        ("changed", "one"),
        ("changed", "two"),
        ("deleted", "two"),
        ("created", "three"),
        ("deleted", "one"),
        ("deleted", "three"),
    ]
