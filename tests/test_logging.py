"""Recoveries and repairs are logged, and nothing else."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimagestore import ImageStore, check, repair

from .support.buildah import FIXTURE, FIXTURE_ID
from .support.watching import change_everything


class Collector(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """All that is logged under the library's name."""
    logger = logging.getLogger("aimagestore")
    collector = Collector()
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(collector)
    yield collector.records
    logger.removeHandler(collector)
    logger.setLevel(level)


async def test_nothing_is_logged_while_all_is_well(
    store: ImageStore, path: Path, logged: list[object]
) -> None:
    await change_everything(store)
    async with ImageStore(path) as other, other.stage(b"content") as staged:
        await other.create("one", names=["a"], big_data={"manifest": staged})
        await store.set_big_data("one", "manifest", b"other")
    await store.collect_garbage()
    assert (await check(path)).ok
    assert logged == []


async def test_the_completion_of_a_commit_is_logged(
    half_done: Path,
    logged: list[logging.LogRecord],
) -> None:
    async with ImageStore(half_done):
        pass
    (record,) = logged
    assert record.levelno == logging.INFO
    assert record.getMessage() == "completed a commit of a dead writer: 'manifest' of one"


async def test_the_removal_of_a_dead_writers_index_is_logged(
    store: ImageStore, path: Path, logged: list[logging.LogRecord]
) -> None:
    (path / ".new-images.json").write_bytes(b"[")
    async with ImageStore(path):
        pass
    (record,) = logged
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith("removed a file of a dead writer: ")


async def test_the_clearing_of_a_stale_directory_is_logged(
    store: ImageStore, path: Path, logged: list[logging.LogRecord]
) -> None:
    await store.create("one")
    (path / "two").mkdir()
    (path / "two" / "manifest").write_bytes(b"of nobody")
    await store.create("two")
    (record,) = logged
    assert record.levelno == logging.INFO
    assert record.getMessage() == f"cleared {path / 'two'}, which no image had"


async def test_a_resolved_name_conflict_is_logged(
    path: Path, logged: list[logging.LogRecord]
) -> None:
    path.mkdir()
    one, two = (f'{{"id":"{i}","names":["n"],"created":"2020-01-01T00:00:00Z"}}' for i in "ab")
    (path / "images.json").write_text(f"[{one},{two}]")
    async with ImageStore(path):
        pass
    (record,) = logged
    assert record.levelno == logging.INFO
    assert record.getMessage() == f"{path} had two images of one name: the later kept it"


async def test_each_repair_is_logged(path: Path, logged: list[logging.LogRecord]) -> None:
    shutil.copytree(FIXTURE, path)
    (path / "images.json").unlink()
    await repair(path, await check(path))
    rebuilt, adopted = logged
    assert rebuilt.levelno == logging.WARNING
    assert "rebuilt with 0 records" in rebuilt.getMessage()
    assert adopted.levelno == logging.INFO
    assert f"directory-orphaned, {path / FIXTURE_ID}: its record was" in adopted.getMessage()
