"""Changes that copy an image of an additional store first, failing or killed at every call.

A usual run takes one call of each kind, and of those that write one on each kind of file. A
thorough run takes all.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import anyio
import pytest

from aimagestore import ImageStore, check

from ..support.loops import EXTENTS, one_of_each
from ..support.stores import tree
from .driver import Driver
from .faults import Failpoints, Failure, Point
from .operations import BESIDE, COPYING, PIECES, THEN, attempt, make
from .state import LAST, State, keys_of, read_again, read_state, unknown_files


class Case:
    """An operation, and the states of the store before and after it."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.name = name
        self.operation = COPYING[name]
        self.template, self.path = scratch / "template", scratch / "store"
        self.beside = scratch / "beside"
        self.points: list[Point] = []
        self.before: State = {}
        self.after: State = {}
        self.additional: object = None

    async def prepare(self) -> None:
        """Run the operation without a failure, to record its points and its result."""
        await make(self.template, "full")
        async with ImageStore(self.beside) as store:
            items = {"manifest": b"old content", "k": PIECES, "empty": b""}
            await store.create(BESIDE, names=["below"], created=THEN, big_data=items)
        self.additional = tree(self.beside)
        self.renew()
        self.before = await read_again(self.path)
        points = Failpoints(self.path)
        assert await attempt(self.operation, self.path, points) is None
        self.points = points.passed
        self.after = await read_again(self.path)
        assert self.after.keys() - self.before.keys() == {BESIDE}

    def renew(self) -> None:
        """Restore the state that the operation starts from."""
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.template, self.path)

    async def check(self, *expected: State) -> None:
        """Check that the store is in one of these states, and that no other files are left."""
        assert await read_again(self.path) in expected
        async with ImageStore(self.path) as store:
            await store.create(LAST)
            await store.collect_garbage()
            state = await read_state(store)
            assert unknown_files(self.path, keys_of(state)) == set()
            del state[LAST]
            assert state in expected
        assert (await check(self.path, verify=True)).findings == ()
        assert tree(self.beside) == self.additional

    def numbers(self, *, whole: bool) -> list[int]:
        """Return the numbers of all points, or of one of each kind."""
        numbers = range(1, len(self.points) + 1)
        if whole:
            return list(numbers)
        return one_of_each(numbers, lambda at: self.points[at - 1].group, self.name)


@pytest.mark.parametrize("whole", EXTENTS)
@pytest.mark.parametrize("name", [name for name, each in COPYING.items() if not each.named])
def test_killed_at_every_point(scratch: Path, name: str, killer: Driver, whole: bool) -> None:
    async def run() -> int:
        case = Case(name, scratch)
        await case.prepare()
        deaths = [at for at in case.numbers(whole=whole) if case.points[at - 1].changes]
        for at in deaths:
            case.renew()
            assert os.WIFSIGNALED(killer.kill_at(case.path, name, at))
            await case.check(case.before, case.after)
        case.renew()
        assert killer.kill_at(case.path, name, len(case.points) + 1) == 0
        return len(deaths)

    assert anyio.run(run) >= 9


@pytest.mark.parametrize("whole", EXTENTS)
@pytest.mark.parametrize("name", COPYING)
def test_failing_at_every_point(scratch: Path, name: str, whole: bool) -> None:
    async def run() -> None:
        case = Case(name, scratch)
        await case.prepare()
        for at in case.numbers(whole=whole):
            allocates = case.points[at - 1].allocates
            for code in (errno.EIO, errno.ENOSPC) if allocates else (errno.EIO,):
                case.renew()
                points = Failpoints(case.path, Failure(at, code))
                error = await attempt(case.operation, case.path, points)
                assert points.hit, "the point was not reached"
                if error is None:
                    await case.check(case.after)
                elif "may have happened" in str(error):
                    await case.check(case.before, case.after)
                else:
                    await case.check(case.before)

    anyio.run(run)
