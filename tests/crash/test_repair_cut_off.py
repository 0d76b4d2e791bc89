"""A repair of a lost index that is cut off has repaired everything or nothing.

A power cut may come after each of its calls. Among what it may leave is what SIGKILL leaves.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import ImageStore, StoreCorruptError, check, repair

from .operations import make
from .power import Disk, Recorder, as_written, put_on_disk
from .state import ONE, THREE, State, read_again, read_state
from .test_power_loss import tree_of


def forbid_second_names(patch: pytest.MonkeyPatch) -> None:
    """Make hard links fail as on a file system without them; naming an open file works."""
    link = os.link

    def call(*args: Any, **kwargs: Any) -> None:
        if "src_dir_fd" in kwargs:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        link(*args, **kwargs)

    patch.setattr(os, "link", call)


class Case:
    """A store whose index was damaged, and what it has after a whole repair.

    :param lost: the damaged index; ``None`` if there is none
    """

    def __init__(self, scratch: Path, lost: bytes | None) -> None:
        self.base = scratch / "live"
        self.path = self.base / "store"
        self.cut = scratch / "cut"
        self.lost = lost
        self.repaired: State = {}

    async def record(self) -> Recorder:
        """Repair the store, and record how."""
        report = await check(self.path)
        assert not report.ok
        recorder = Recorder(self.base)
        with recorder.active():
            await repair(self.path, report)
        assert as_written(recorder) == tree_of(self.base)
        self.repaired = await read_again(self.path)
        assert self.repaired.keys() >= {ONE, THREE}
        return recorder

    async def check_cut(self) -> None:
        """Check what a power cut has left: nothing is lost, and another repair completes it."""
        path = self.cut / "store"
        try:
            state = await read_again(path)
        except StoreCorruptError:
            index = path / "images.json"
            assert (index.read_bytes() if index.exists() else None) == self.lost
        else:
            assert state == self.repaired
            self._check_kept(path)
            async with ImageStore(path) as store:
                await store.collect_garbage()
                assert await read_state(store) == self.repaired
        await repair(path, await check(path))
        assert await read_again(path) == self.repaired
        self._check_kept(path)

    def _check_kept(self, path: Path) -> None:
        kept = [file.read_bytes() for file in path.glob("images.json.old-*")]
        assert self.lost is None or self.lost in kept


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("damage", ["torn", "missing"])
def test_a_repair_that_is_cut_off_repairs_everything_or_nothing(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, damage: str, has_links: bool
) -> None:
    if not has_links:
        forbid_second_names(monkeypatch)

    async def run() -> int:
        case = Case(scratch, None)
        case.base.mkdir()
        await make(case.path, "full")
        index = case.path / "images.json"
        if damage == "torn":
            text = index.read_bytes()
            case.lost = text[: text.index(b"unmeasured")]
            index.write_bytes(case.lost)
        else:
            index.unlink()
        disk = Disk(recorder := await case.record())
        seen = set()
        for event in recorder.events:
            disk.do(event)
            for tree in disk.trees():
                if tree not in seen:
                    seen.add(tree)
                    put_on_disk(tree, case.cut)
                    try:
                        await case.check_cut()
                    except BaseException as error:
                        error.add_note(f"cut after {event}")
                        raise
                    finally:
                        shutil.rmtree(case.cut)
        return len(seen)

    states = anyio.run(run)
    print(f"{states} states of the disk")
    assert states > 5
