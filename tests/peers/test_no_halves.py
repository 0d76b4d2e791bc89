"""Readers see a change that containers/storage makes in several steps wholly or not at all."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import pytest

from aimagestore import ChangeEvent, Image, ImageStore, LockTimeoutError, Report, check

from ..support.podman import without_podman
from ..support.stores import until
from .generation import BEHAVIOUR
from .peer import Peer, image_store, running
from .stopped import stepped
from .worker import COUNTER, SHARED, content

pytestmark = pytest.mark.peers

TIMEOUT = 60
SECONDS = 2
"""How long other programs change the store."""

OLD, NEW = b'{"n":1}', b'{"n":2}'
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "create": ("create", {"id": "two", "names": ["b"], "big_data": {"manifest": NEW, "x": b"x"}}),
    "replace": ("set_big_data", {"ref": "one", "key": "manifest", "data": NEW}),
    "add": ("set_big_data", {"ref": "one", "key": "manifest-2", "data": NEW}),
    "delete": ("delete", {"ref": "one"}),
}
EVENTS = {"create": ("created", "two"), "delete": ("deleted", "one")}


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both loops, since a test has only about thirty steps."""
    return str(request.param)


class State(NamedTuple):
    """All that a reader can see of a store."""

    images: tuple[Image, ...]
    items: dict[tuple[str, str], bytes]


async def read(store: ImageStore) -> State:
    """Read everything in several ways, which must agree."""
    images = tuple(await store.images())
    assert tuple(await store.snapshot()) == images
    assert tuple([image async for image in store.iter_images()]) == images
    items = {}
    for image in images:
        assert await store.get(image.id) == image
        for key in image.big_data_names:
            async with store.open_big_data(image.id, key, verify=True) as reader:
                items[image.id, key] = await reader.read()
            assert await store.big_data(image.id, key) == items[image.id, key]
    return State(images, items)


class Looker:
    """Reads a store without waiting for its lock, and keeps what it has seen.

    :ivar opened: what the open store saw; ``None`` where it would have had to wait
    :ivar fresh: what stores saw that were opened at that moment
    """

    def __init__(self, path: Path, store: ImageStore) -> None:
        self._path = path
        self._store = store
        self.opened: list[State | None] = []
        self.fresh: list[State | None] = []

    async def look(self) -> None:
        """Read the open store, and a new one."""
        self.opened.append(await self._read(self._store))
        async with ImageStore(self._path, read_only=True, lock_timeout=0) as store:
            self.fresh.append(await self._read(store))

    async def _read(self, store: ImageStore) -> State | None:
        try:
            return await read(store)
        except LockTimeoutError:
            return None


@pytest.mark.parametrize("kind", CHANGES)
async def test_every_reader_sees_the_state_before_a_change_or_after_it(
    peer: Peer, tmp_path: Path, kind: str
) -> None:
    if kind == "create" and not BEHAVIOUR.creates_with_items:
        pytest.skip("this containers/storage creates an image first, and then sets its items")
    root = tmp_path / "store"
    path = image_store(root)
    peer.ask("create", root, id="one", names=["a"], big_data={"manifest": OLD})
    # Written in the same tick of the clock as the index, it may be one that is being replaced.
    os.utime(path / "one" / "manifest", (0, 0))
    op, fields = CHANGES[kind]
    async with ImageStore(path, lock_timeout=0) as store:
        before = await read(store)
        looker = Looker(path, store)
        with stepped(peer.pid) as process:
            await process.step_through(lambda: peer.ask(op, root, **fields), looker.look)
        after = await read(store)
    peer.ask("close", root)
    assert before != after
    for seen in (looker.opened, looker.fresh):
        assert all(state in (before, after, None) for state in seen), seen
        # A reader has to wait during a change of several steps, but not at its beginning.
        assert None in seen or kind in {"add", "delete"}
    assert looker.opened[0] == looker.opened[1] == before


@pytest.mark.parametrize("kind", CHANGES)
async def test_a_watch_and_a_check_see_the_state_before_a_change_or_after_it(
    peer: Peer, tmp_path: Path, kind: str
) -> None:
    if kind == "create" and not BEHAVIOUR.creates_with_items:
        pytest.skip("this containers/storage creates an image first, and then sets its items")
    root = tmp_path / "store"
    path = image_store(root)
    peer.ask("create", root, id="one", names=["a"], big_data={"manifest": OLD})
    op, fields = CHANGES[kind]
    before = without_podman(await check(path))
    reports: list[Report] = []
    events: list[ChangeEvent] = []
    async with (
        ImageStore(path) as store,
        store.watch() as changes,
        anyio.create_task_group() as tasks,
    ):

        async def watch() -> None:
            while True:
                events.append(await anext(changes))

        async def check_once() -> None:
            reports.append(without_podman(await check(path)))

        tasks.start_soon(watch)
        async with anyio.create_task_group() as checks:

            async def look() -> None:
                # Checks that wait for the lock go on waiting, with one more for each look.
                checks.start_soon(check_once)
                await anyio.wait_all_tasks_blocked()

            with stepped(peer.pid) as process:
                await process.step_through(lambda: peer.ask(op, root, **fields), look)
        images = {image.id: image for image in await store.images()}
        await until(lambda: bool(events))
        tasks.cancel_scope.cancel()
    peer.ask("close", root)
    after = without_podman(await check(path))
    assert before.findings == after.findings == ()
    assert reports
    assert all(report in (before, after) for report in reports), reports
    (event,) = events
    assert (event.kind, event.id) == EVENTS.get(kind, ("changed", "one"))
    assert event.image == images.get(event.id)


async def test_every_completed_change_is_seen_beside_writers_that_never_pause(
    peer: Peer, program: Path, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    for image_id in (SHARED, COUNTER):
        peer.ask("create", root, id=image_id, big_data=content(image_id))

    async def ask(op: str, **fields: object) -> None:
        await anyio.to_thread.run_sync(lambda: peer.ask(op, root, ref=COUNTER, **fields))

    async with ImageStore(image_store(root), read_only=True) as store:
        with ExitStack() as stack:
            others = [
                stack.enter_context(running(program, "change", root, f"go{n}", SECONDS, "churn"))
                for n in range(2)
            ]
            for other in others:
                assert await anyio.to_thread.run_sync(other.read_line) == '"ready"'
                other.go_on()
            end = time.monotonic() + SECONDS
            number = 0
            while time.monotonic() < end:
                number += 1
                text = f"{number:03}"
                with anyio.fail_after(TIMEOUT):
                    await ask("set_metadata", metadata=text)
                    assert await store.metadata(COUNTER) == text
                    data = text.encode()
                    await ask("set_big_data", key="text", data=data)
                    async with store.open_big_data(COUNTER, "text", verify=True) as reader:
                        assert await reader.read() == data
            for other in others:
                await anyio.to_thread.run_sync(other.read_line)
                other.go_on()
                await anyio.to_thread.run_sync(other.read_line)
    peer.ask("close", root)
