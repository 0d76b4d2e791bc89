"""Every change, failing or killed at every system call that it makes.

A thorough run tries all calls of each change in all ways. A usual run tries one call of each kind,
and for calls that write, one on each kind of file: it fails in one way, and if it changes files,
the process is killed there. Which call and which way it is differs between the changes. Changes
that write the same files make the same calls: in a usual run, each tries some of the kinds, and
together they try all.
"""

from __future__ import annotations

import ast
import errno
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from aimagestore import ImageStore

from ..support.loops import EXTENTS, NIGHTLY, OPTIONS, one_of_each
from .driver import Driver
from .faults import BY_NAME, CALLS, FAULTS, NO_POINTS, OUTSIDE, PACKAGE, Failpoints, Failure, Point
from .operations import (
    BATCH,
    OPERATIONS,
    Operation,
    attempt,
    commit_batch,
    descriptors,
    leave_half_done,
    make,
    operation_named,
)
from .state import (
    LAST,
    NEW,
    ONE,
    TWO,
    State,
    keys_of,
    of_others,
    read_again,
    read_keys,
    read_state,
    unknown_files,
)

# The failures are below the event loop. So one loop is enough for each change, except at night.
ON_LOOPS = list(product(OPERATIONS, OPTIONS) if NIGHTLY else zip(OPERATIONS, cycle(OPTIONS)))
REMOVING = frozenset({"open", "listdir", "unlink", "rmdir", "fstat", "stat"})
COMMIT = Point("fsync", "the root", allocates=True)
ALIKE = ["set_names", "add_names", "remove_names", "set_metadata", "set_flag", "clear_flag"]
"""Changes that make the same calls."""

T = TypeVar("T")


def can_give(point: Point, code: int) -> bool:
    """Return whether the kernel can return this error for this call."""
    match code:
        case errno.ENOSPC:
            return point.allocates
        case errno.EACCES:
            return point.call in BY_NAME
        case errno.EMFILE:
            return point.call == "open"
    return True


class Case:
    """An operation, and the states of the store before and after it."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.name = name
        self.operation: Operation = operation_named(name)
        self.scratch = scratch
        self.template = scratch / "template"
        self.path = scratch / "store"
        self.before: State = {}
        self.after: State = {}
        self.garbage: set[str] = set()
        self.of_others_before: set[str] = set()
        self.of_others_after: set[str] = set()
        self.points: list[Point] = []

    async def prepare(self) -> None:
        """Run the operation without a failure, to record its points and its result."""
        await make(self.template, self.operation.start)
        self.renew()
        if self.operation.meanwhile:
            await leave_half_done(self.path)
        if self.path.exists():
            self.before = await read_again(self.path, read_only=self.operation.start != "names")
            self.of_others_before = of_others(self.path, keys_of(self.before))
        if self.operation.start == "stale":
            self.garbage = unknown_files(self.path, keys_of(self.before))
        self.renew()
        points = Failpoints(self.path)
        assert await attempt(self.operation, self.path, points) is None
        self.points = points.passed
        self.after = await read_again(self.path)
        self.of_others_after = of_others(self.path, keys_of(self.after))

    def renew(self) -> None:
        """Restore the state that the operation starts from."""
        if self.path.exists():
            shutil.rmtree(self.path)
        if self.template.exists():
            shutil.copytree(self.template, self.path, symlinks=True)

    def failures(self, *, whole: bool) -> list[Failure]:
        """Return each failure that is possible at each point, or one for each kind of point."""
        if whole:
            return list(self._failures())
        failures = self._failures()
        return self._share(
            one_of_each(failures, lambda each: self.points[each.at - 1].group, self.name)
        )

    def _failures(self) -> Iterator[Failure]:
        for at, point in enumerate(self.points, 1):
            for code in FAULTS if NIGHTLY else self._taking_turns(at):
                if can_give(point, code):
                    yield Failure(at, code)
            if point.call == "writev":
                yield Failure(at, short=True)
            if point.allocates:
                yield Failure(at, errno.ENOSPC, stays=True)
            if NIGHTLY or at % 8 == 1:
                yield Failure(at, errno.EIO, stays=True)

    def _taking_turns(self, at: int) -> list[int]:
        """Return the errors that are tried at a point: EIO, and at every third point others, too.

        Without ENOSPC, because a full disk stays full, which is tried separately.
        """
        others = [code for code in FAULTS if code not in {errno.EIO, errno.ENOSPC}]
        return [errno.EIO] if at % 3 else [errno.EIO, *others]

    def deaths(self, *, whole: bool) -> list[int]:
        """Return the points to die at: those that change files, or one of each kind."""
        numbered = enumerate(self.points, 1)
        deaths = [at for at, point in numbered if NIGHTLY or point.changes]
        if whole:
            return deaths
        return self._share(one_of_each(deaths, lambda at: self.points[at - 1], self.name))

    def _share(self, cases: list[T]) -> list[T]:
        """Return this change's share of what alike changes try, or all."""
        return cases[ALIKE.index(self.name) :: len(ALIKE)] if self.name in ALIKE else cases


async def sweep(case: Case, whole: bool) -> int:
    """Try every failure, or one of each kind, and return how many there were."""
    await case.prepare()
    failures = case.failures(whole=whole)
    for failure in failures:
        case.renew()
        open_before = descriptors(case.path)
        try:
            await fail(case, failure)
            assert descriptors(case.path) == open_before, "a descriptor was left open"
        except BaseException as error:
            error.add_note(f"{case.name}: {failure}, {case.points[failure.at - 1]}")
            raise
    return len(failures)


async def fail(case: Case, failure: Failure) -> None:
    """Try one failure."""
    points = Failpoints(case.path, failure)
    error = await attempt(
        case.operation, case.path, points, then=partial(check_open_store, case, failure, points)
    )
    assert points.hit, "the point was not reached"
    assert points.passed[: failure.at] == case.points[: failure.at]
    if case.operation.opens:
        check_error(case, failure, error)
    await check_reopened(case, failure, points)


def check_error(case: Case, failure: Failure, error: BaseException | None) -> None:
    """Check that an error has its code, and the path that it is about."""
    if error is None:
        return
    assert isinstance(error, OSError)
    assert not failure.short
    assert error.errno == failure.code
    found = Path(error.filename)
    is_near = found.is_relative_to(case.path.parent) or case.path.is_relative_to(found)
    assert is_near, f"which file? {error!r}"


async def check_open_store(
    case: Case, failure: Failure, points: Failpoints, store: ImageStore, error: BaseException | None
) -> None:
    """Check the store after the failure: it holds what the disk holds, and goes on working."""
    check_error(case, failure, error)
    check_next_index(case, failure, points)
    state = await read_state(store)
    assert state == await read_again(case.path), "memory differs from the disk"
    happened = error is None or "may have happened" in str(error)
    assert state == (case.after if happened else case.before)
    await store.create(LAST, metadata="last")
    state = await check_unknown_files(case, failure, points, store)
    if not happened:
        await case.operation.run(store)
        state = await read_state(store)
        state.pop(LAST, None)  # a wipe has deleted it
    assert state == case.after


def check_next_index(case: Case, failure: Failure, points: Failpoints) -> None:
    """Check that the new index is removed at once if it was not renamed into place."""
    was_there = case.operation.start == "half done" or case.operation.meanwhile
    can_stay = failure.stays or any(point.call == "unlink" for point in points.hit)
    if not (was_there or can_stay):
        assert not (case.path / ".new-images.json").exists()


async def check_unknown_files(
    case: Case, failure: Failure, points: Failpoints, store: ImageStore
) -> State:
    """Check that no unknown file is left, except for garbage that could not be removed.

    Another commit was made since the failure, which has completed or removed pending files. Return
    what the store holds without the image that this commit created.
    """
    hit = points.hit[0] if points.hit else None
    could_not_remove = failure.stays or hit is None or hit.call in REMOVING or hit == COMMIT
    left = unknown_files(case.path, await read_keys(store))
    left -= case.garbage
    assert {name for name in left if not (could_not_remove and is_garbage(case, name))} == set()
    await store.collect_garbage()
    state = await read_state(store)
    assert unknown_files(case.path, keys_of(state)) == set()
    state.pop(LAST, None)
    expected = case.of_others_before if state == case.before else case.of_others_after
    assert of_others(case.path, keys_of(state)) == expected
    return state


def is_garbage(case: Case, name: str) -> bool:
    """Return whether only ``collect_garbage`` removes a file: an image's, or one staged by name."""
    first = name.split("/", maxsplit=1)[0]
    return first in case.before | case.after or (case.operation.named and first[:7] == ".stage-")


async def check_reopened(case: Case, failure: Failure, points: Failpoints) -> None:
    """Check what another store finds that is opened after the failure."""
    async with ImageStore(case.path) as store:
        if case.operation.opens:
            assert await read_state(store) in (case.before, case.after)
            await store.create(LAST)
        state = await check_unknown_files(case, failure, points, store)
        assert state == case.after or (case.operation.opens and state == case.before)


@pytest.mark.parametrize("whole", EXTENTS)
@pytest.mark.parametrize(("name", "loop"), ON_LOOPS)
def test_failing_at_every_point(scratch: Path, name: str, loop: str, whole: bool) -> None:
    tried = run_on(loop, sweep, Case(name, scratch), whole)
    print(f"{tried} failures")
    assert tried >= (10 if whole else 1 if name in ALIKE else 4)


async def sweep_batch(scratch: Path, whole: bool) -> int:
    """Let a batch fail at every point; each change has happened exactly if its outcome says so."""
    template, path = scratch / "template", scratch / "store"
    await make(template, "full")

    async def run(failure: Failure | None) -> Failpoints:
        shutil.copytree(template, path)
        open_before = descriptors(path)
        before = await read_again(path)
        points = Failpoints(path, failure)
        async with ImageStore(path) as store:
            try:
                with points.active():
                    replaced, unusable, created = await commit_batch(store)
            except OSError as error:
                replaced = unusable = created = error
            state = await read_state(store)
            assert state == await read_again(path)
            assert (state != before) or isinstance(replaced, OSError)
            for outcome, has_happened in (
                (replaced, state[ONE] != before[ONE]),
                (created, NEW in state),
            ):
                assert has_happened != is_refused(outcome)
            assert state[TWO] == before[TWO]
            assert isinstance(unusable, ValueError | OSError)
            await store.create(LAST)
            await store.collect_garbage()
            assert unknown_files(path, await read_keys(store)) == set()
        assert descriptors(path) == open_before, "a descriptor was left open"
        shutil.rmtree(path)
        return points

    passed = (await run(None)).passed
    failures = [
        Failure(at, code, stays=stays)
        for at, point in enumerate(passed, 1)
        for code in FAULTS
        for stays in (False, True)
        if can_give(point, code) and not (stays and code == errno.EMFILE)
    ]
    if not whole:
        # One error for each kind of call.
        failures = one_of_each(failures, lambda each: (passed[each.at - 1], each.stays), BATCH)
    for failure in failures:
        try:
            await run(failure)
        except BaseException as error:
            error.add_note(f"{failure}, {passed[failure.at - 1]}")
            raise
    return len(failures)


def is_refused(outcome: object) -> bool:
    return isinstance(outcome, BaseException) and "may have happened" not in str(outcome)


def run_on(loop: str, function: Callable[..., Awaitable[int]], *args: object) -> int:
    """Run an async function on one of the loops."""
    backend, options = OPTIONS[loop]
    return anyio.run(function, *args, backend=backend, backend_options=options)


@pytest.mark.parametrize("whole", EXTENTS)
@pytest.mark.parametrize("loop", OPTIONS if NIGHTLY else ["trio"])
def test_a_batch_whose_changes_are_committed_one_by_one_fails_at_every_point(
    scratch: Path, loop: str, whole: bool
) -> None:
    tried = run_on(loop, sweep_batch, scratch, whole)
    print(f"{tried} failures")
    assert tried > (100 if whole else 40)


async def sweep_kills(case: Case, killer: Driver, whole: bool) -> int:
    """Kill the operation at every point, or at one of each kind, and return the number of kills."""
    await case.prepare()
    deaths = case.deaths(whole=whole)
    for at in deaths:
        case.renew()
        try:
            status = killer.kill_at(case.path, case.name, at)
            assert os.WIFSIGNALED(status)
            assert os.WTERMSIG(status) == signal.SIGKILL
            await check_killed(case, at)
        except BaseException as error:
            error.add_note(f"{case.name}: killed at point {at}, {case.points[at - 1]}")
            raise
    case.renew()
    assert killer.kill_at(case.path, case.name, len(case.points) + 1) == 0
    return len(deaths)


async def check_killed(case: Case, at: int) -> None:
    """Check that the operation happened wholly or not at all, and that nothing else was lost."""
    states = [case.before, case.after]
    if case.path.exists() and case.operation.start != "names":
        assert await read_again(case.path) in states
    async with ImageStore(case.path) as store:
        state = await read_state(store)
        assert state in states
        if state == case.before and not case.operation.opens:
            await case.operation.run(store)
            assert await read_state(store) == case.after
        await store.create(LAST)
        await check_unknown_files(case, Failure(at, kills=True), Failpoints(case.path), store)
    last = await read_again(case.path)
    del last[LAST]
    assert last in states


@pytest.mark.parametrize("whole", EXTENTS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_every_point(scratch: Path, name: str, killer: Driver, whole: bool) -> None:
    tried = anyio.run(sweep_kills, Case(name, scratch), killer, whole)
    print(f"{tried} deaths")
    # The changes of ALIKE share five points, of which the last change gets none.
    assert tried or name in {"touch", "open"} or (name == ALIKE[-1] and not whole)


def test_changes_that_are_alike_make_the_same_calls(scratch: Path) -> None:
    """So each kind of call has its turn in one of them."""

    async def points_of(name: str) -> list[Point]:
        case = Case(name, scratch / name)
        await case.prepare()
        return case.points

    first, *others = [anyio.run(points_of, name) for name in ALIKE]
    assert all(other == first for other in others)


def test_a_batch_is_killed_at_every_point(scratch: Path, killer: Driver) -> None:
    async def run() -> int:
        case = Case(BATCH, scratch)
        await case.prepare()
        between = {i: image for i, image in case.after.items() if i != NEW}
        deaths = case.deaths(whole=True)
        for at in deaths:
            case.renew()
            assert os.WIFSIGNALED(killer.kill_at(case.path, case.name, at))
            assert await read_again(case.path) in [case.before, between, case.after]
            async with ImageStore(case.path) as store:
                await store.create(LAST)
                await store.collect_garbage()
                state = await read_state(store)
                assert unknown_files(case.path, keys_of(state)) == set()
                del state[LAST]
                assert state in [case.before, between, case.after]
        return len(deaths)

    assert anyio.run(run) > 20


def test_every_system_call_of_the_engine_is_a_failpoint() -> None:
    called = set()
    for file in Path(PACKAGE).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(ast.Attribute(ast.Name("os" | "fcntl"), name)):
                    called.add(name)
                case ast.Call(ast.Name("open")):
                    assert file.name in OUTSIDE, "opens a file past the failpoints"
    assert called <= CALLS.keys() | NO_POINTS.keys()
