"""Random histories on two stores of one location, compared with a dictionary.

A usual run tries a third of the histories of a thorough one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aimagestore import (
    AmbiguousImageError,
    DuplicateIDError,
    DuplicateNameError,
    ImageStore,
    ImageUnknownError,
    Snapshot,
    Transaction,
)

from ..support.loops import EXTENTS, NIGHTLY
from ..support.stores import ClusterStore, StoreUnderTest
from .model import Change, Entry, Model, RefusedError, digest_of, digests_of
from .state import held, read_state

ids = st.sampled_from(["one", "only", "two"])
refs = ids | st.sampled_from(["red", "green", "blue", "on", "t", "nobody"])
names = st.lists(st.sampled_from(["red", "green", "blue"]), max_size=2)
keys = st.sampled_from(["manifest", "manifest-2", "signature", "sha256:config"])
data = st.binary(max_size=6)
items = st.dictionaries(keys, data, max_size=2)
values = st.none() | st.integers(-3, 3) | st.lists(st.booleans(), max_size=2)
flags = st.sampled_from(["flag", "other"])


def change(method: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Change]:
    return st.builds(Change, st.just(method), st.tuples(*arguments))


create = change("create", ids, names, st.sampled_from(["", "text"]), items)
changes = st.one_of(
    create,
    create,
    change("set_names", refs, names),
    change("add_names", refs, names),
    change("remove_names", refs, names),
    change("set_metadata", refs, st.sampled_from(["", "text"])),
    change("set_flag", refs, flags, values),
    change("clear_flag", refs, flags),
    change("set_big_data", refs, keys, data),
    change("delete", refs),
)
REFUSED = (ImageUnknownError, DuplicateIDError, DuplicateNameError)
"""The errors for what the dictionary refuses; an ambiguous ref is an unknown image, too."""


async def call(function: Callable[[], Awaitable[Any]]) -> Any:
    return await function()


async def pieces(content: bytes) -> Any:
    for byte in content:
        yield bytes([byte])


class TwoStores(RuleBasedStateMachine):
    """Two stores of one location, and the dictionary."""

    backend: tuple[str, dict[str, Any]]
    where: StoreUnderTest

    def __init__(self) -> None:
        super().__init__()
        self.where.clear()
        self.model = Model()
        self.held: list[tuple[Snapshot, dict[str, Entry]]] = []
        self._portals: AbstractContextManager[anyio.from_thread.BlockingPortal] = (
            anyio.from_thread.start_blocking_portal(*self.backend)
        )
        self.portal = self._portals.__enter__()
        self.stores = [self._open(), self._open()]

    def _open(self) -> ImageStore:
        return self.run(ImageStore(self.where.location).__aenter__)  # type: ignore[no-any-return]

    def run(self, function: Callable[[], Awaitable[Any]]) -> Any:
        return self.portal.call(call, function)

    def teardown(self) -> None:
        try:
            for store in self.stores:
                assert self.run(partial(read_state, store)) == self.model.state()
                self.run(store.aclose)
            self.where.check_intact()
        finally:
            self._portals.__exit__(None, None, None)

    def expect(self, apply: Callable[[Model], None], act: Callable[[], Awaitable[Any]]) -> None:
        """Make a change in the model and in a store, which must both accept or both refuse it."""
        model = self.model.copy()
        try:
            apply(model)
        except RefusedError:
            with pytest.raises(REFUSED):
                self.run(act)
        else:
            self.run(act)
            self.model = model

    @initialize(contents=st.lists(items, min_size=2, max_size=2))
    def begin(self, contents: list[dict[str, bytes]]) -> None:
        for number, (image_id, given) in enumerate([("one", ["red"]), ("two", ["green"])]):
            self.change(number, Change("create", (image_id, given, "", contents[number])))

    @rule(number=st.integers(0, 1), first=changes, second=changes)
    def change_twice(self, number: int, first: Change, second: Change) -> None:
        self.change(number, first)
        self.change(1 - number, second)

    @rule(number=st.integers(0, 1), change=changes)
    def change(self, number: int, change: Change) -> None:
        self.expect(change.to_model, lambda: change.call(self.stores[number]))

    @rule(number=st.integers(0, 1), batch=st.lists(changes, max_size=4), fails=st.booleans())
    def transact(self, number: int, batch: list[Change], fails: bool) -> None:
        """Catch the errors of refused changes. An error that leaves the block undoes them all."""
        model = self.model.copy()

        async def act() -> None:
            async with self.stores[number].transaction() as tx:
                for change in batch:
                    await self._both(model, tx, change)
                assert [image.id for image in await tx.images()] == list(model.images)
                if fails:
                    raise ZeroDivisionError

        if fails:
            with pytest.raises(ZeroDivisionError):
                self.run(act)
        else:
            self.run(act)
            self.model = model

    async def _both(self, model: Model, tx: Transaction, change: Change) -> None:
        tried = model.copy()
        try:
            change.to_model(tried)
        except RefusedError:
            with pytest.raises(REFUSED):
                await change.call(tx)
        else:
            await change.call(tx)
            model.images = tried.images

    @rule(number=st.integers(0, 1), ref=refs, key=keys, content=data)
    def stream(self, number: int, ref: str, key: str, content: bytes) -> None:
        self.expect(
            lambda model: model.set_big_data(ref, key, content),
            lambda: self.stores[number].set_big_data(ref, key, pieces(content)),
        )

    @rule(number=st.integers(0, 1), ref=refs, key=keys, content=data)
    def set_staged(self, number: int, ref: str, key: str, content: bytes) -> None:
        async def act() -> None:
            async with self.stores[number].stage(content) as staged:
                await self.stores[number].set_big_data(ref, key, staged)

        self.expect(lambda model: model.set_big_data(ref, key, content), act)

    @rule(number=st.integers(0, 1), batch=st.lists(changes, min_size=2, max_size=4))
    def at_once(self, number: int, batch: list[Change]) -> None:
        """Make independent changes concurrently: they give the same result in any order."""
        chosen = {c.arguments[0]: c for c in batch if c.method in {"set_metadata", "set_flag"}}
        found = {i: c for ref, c in chosen.items() if (i := self._found(ref)) is not None}
        for change in found.values():
            change.to_model(self.model)

        async def act() -> None:
            async with anyio.create_task_group() as tasks:
                for turn, change in enumerate(found.values()):
                    tasks.start_soon(change.call, self.stores[(number + turn) % 2])

        self.run(act)

    def _found(self, ref: str) -> str | None:
        try:
            return self.model.find(ref)
        except RefusedError:
            return None

    @precondition(lambda self: len(self.model.images) > 2)
    @rule(number=st.integers(0, 1))
    def wipe(self, number: int) -> None:
        self.run(self.stores[number].wipe)
        self.model = Model()

    @rule(number=st.integers(0, 1), method=st.sampled_from(["touch", "refresh", "collect_garbage"]))
    def change_nothing(self, number: int, method: str) -> None:
        """Make a call that leaves the images as they are."""
        self.run(getattr(self.stores[number], method))

    @rule(number=st.integers(0, 1))
    def reopen(self, number: int) -> None:
        self.run(self.stores[number].aclose)
        self.stores[number] = self._open()

    @rule(number=st.integers(0, 1))
    def take_snapshot(self, number: int) -> None:
        snapshot: Snapshot = self.run(self.stores[number].snapshot)
        self.held.append((snapshot, dict(self.model.images)))

    @rule(number=st.integers(0, 1), ref=refs)
    def look_up(self, number: int, ref: str) -> None:
        store = self.stores[number]
        found = self._found(ref)
        assert self.run(lambda: store.exists(ref)) == (found is not None)
        if found is None:
            with pytest.raises((ImageUnknownError, AmbiguousImageError)):
                self.run(lambda: store.get(ref))
            return
        assert self.run(lambda: store.lookup(ref)) == found
        for digest in digests_of(self.model.images[found]):
            owners = [i for i, e in self.model.images.items() if digest in digests_of(e)]
            images = self.run(partial(store.by_digest, digest))
            assert sorted(image.id for image in images) == sorted(owners)

    @rule(number=st.integers(0, 1), ref=refs, key=keys)
    def read(self, number: int, ref: str, key: str) -> None:
        store = self.stores[number]
        found = self._found(ref)
        content = None if found is None else self.model.images[found].items.get(key)
        if content is None:
            with pytest.raises(KeyError):
                self.run(lambda: store.big_data(ref, key))
            return
        assert self.run(lambda: store.big_data(ref, key)) == content
        assert self.run(lambda: store.big_data_size(ref, key)) == len(content)
        assert self.run(lambda: store.big_data_digest(ref, key)) == digest_of(content)

    @invariant()
    def stores_hold_what_the_model_holds(self) -> None:
        for store in self.stores:
            images = self.run(store.images)
            assert [image.id for image in images] == list(self.model.images)
            for image in images:
                entry = self.model.images[image.id]
                assert image.big_data_names == tuple(entry.items)
                assert held(image, entry.items) == self.model.state()[image.id]
                assert dict(image.big_data_digests) == {
                    key: digest_of(content) for key, content in entry.items.items()
                }

    @invariant()
    def snapshots_stay_what_they_were(self) -> None:
        for snapshot, images in self.held[-3:]:
            assert [(image.id, image.names, image.metadata) for image in snapshot] == [
                (image_id, entry.names, entry.metadata) for image_id, entry in images.items()
            ]


@pytest.mark.parametrize("whole", EXTENTS)
def test_two_stores_of_one_location_behave_as_one_dictionary(
    where: StoreUnderTest, scratch: Path, anyio_backend: tuple[str, dict[str, Any]], whole: bool
) -> None:
    where.root = scratch
    # Each step takes a cluster's store some round trips.
    histories = 12 if isinstance(where, ClusterStore) else 30
    if not whole:
        histories //= 3
    machine = type("TwoStores", (TwoStores,), {"backend": anyio_backend, "where": where})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=2000 if NIGHTLY else histories,
            stateful_step_count=60 if NIGHTLY else 40,
            suppress_health_check=list(HealthCheck),
        ),
    )
