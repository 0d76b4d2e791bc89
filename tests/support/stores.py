"""Stores of every kind as tests see them: what is in them, who locks them, what is open."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import anyio

from aimagestore import Finding, Image
from aimagestore._async.locations import location_of, stacked_location
from aimagestore._core.names import big_data_file
from aimagestore._core.record import Record, read
from aimagestore._engine.protocol import Location, Steps

if TYPE_CHECKING:
    import psycopg
    import pytest

    from aimagestore.cluster import ClusterLocation

    from ..cluster.servers import Place

T = TypeVar("T")

WRITE_LOCK = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_LINE_THREADS = {"aimagestore lock", "aimagestore shared lock"}
_BRIEF_THREADS = _LINE_THREADS | {"aimagestore connect", "aimagestore cancel"}


def open_files(*parts: str) -> set[str]:
    """Return the open files of this process whose path contains one of these parts.

    Each is a string of the descriptor and the path.
    """
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # closed since, such as the descriptor of the listing itself
        if any(part in target for part in parts):
            found.add(f"{fd} {target}")
    return found


def descriptors(part: str) -> Counter[str]:
    """Count the open files of this process whose path contains a part, and inotify instances."""
    targets = (each.partition(" ")[2] for each in open_files(""))
    return Counter(target for target in targets if part in target or "inotify" in target)


def library_threads() -> set[threading.Thread]:
    """Return the running threads that stores have started.

    The watchdog of a cluster's sessions is not among them: it belongs to the process, and ends
    by itself.
    """
    found = (t for t in threading.enumerate() if t.name.startswith("aimagestore"))
    return {thread for thread in found if thread.name != "aimagestore watchdog"}


async def when_unchanged(contents: Callable[[], T]) -> T:
    """Return the contents of a store when they do not change any more.

    A cluster removes an object that it does not need in the background, if that takes long.
    """
    found = contents()
    while True:
        await anyio.sleep(0.3)
        if (again := contents()) == found:
            return found
        found = again


def becomes_true(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Wait until a condition is true, and return whether that was in time. Blocks the thread."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a store's directory, as another program would."""
    fd = os.open(path / "images.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, WRITE_LOCK)
        yield
    finally:
        os.close(fd)


def is_locked(path: Path) -> bool:
    """Return whether the lock of a store's directory is held."""
    try:
        with locked(path):
            return False
    except BlockingIOError:
        return True


def is_requested() -> bool:
    """Return whether a thread of this process waits for a directory's lock."""
    return any(thread.name in _LINE_THREADS for thread in threading.enumerate())


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return when a condition is true, or fail after some seconds."""
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.001)


async def until_requested() -> None:
    """Return when a thread of this process waits for a directory's lock."""
    await until(is_requested)


async def until_not_requested() -> None:
    """Return when no thread of this process waits for a directory's lock."""
    await until(lambda: not is_requested())


def contents(path: Path) -> dict[str, bytes]:
    """Return the content of a store's files, except for the lock file with its token."""
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in path.rglob("*")
        if p.is_file() and p.name != "images.lock"
    }


def tree(path: Path) -> dict[str, object]:
    """Return everything below a directory: the content or target of each entry, or its type."""
    found: dict[str, object] = {}
    for entry in sorted(path.rglob("*")):
        mode = entry.lstat().st_mode
        content: object = stat.S_IFMT(mode)
        if stat.S_ISLNK(mode):
            content = os.readlink(entry)
        elif stat.S_ISREG(mode):
            content = entry.read_bytes()
        found[str(entry.relative_to(path))] = content
    return found


def edit_index(path: Path, change: Callable[[list[Any]], object]) -> None:
    """Change the records in images.json, as another program would."""
    records = json.loads((path / "images.json").read_bytes())
    change(records)
    (path / "images.json").write_text(json.dumps(records, separators=(",", ":")))


def run_steps(steps: Steps[Any]) -> Any:
    """Run blocking steps to their end, and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


class StoreUnderTest(ABC):
    """A store that a test opens with ``ImageStore(where.location)``, any number of times.

    :ivar root: a directory for the test's files
    """

    root: Path

    @property
    @abstractmethod
    def location(self) -> Path | Location:
        """The argument of ``ImageStore`` that opens the store."""

    @property
    @abstractmethod
    def files_prefix(self) -> Path:
        """The start of paths that a test may write; another one after :meth:`clear`."""

    @abstractmethod
    def contents(self) -> object:
        """Return everything that the store holds, to compare it."""

    @abstractmethod
    def garbage(self) -> list[str]:
        """Return the names of files or objects that belong to no image."""

    @abstractmethod
    def check_intact(self) -> None:
        """Check that records and big data are whole and consistent."""

    @abstractmethod
    def copies(self) -> int:
        """Return how many files or objects hold the content of items."""

    @abstractmethod
    def damage(self, image_id: str, key: str) -> None:
        """Alter or remove the content of an item, so that the store must not link to it."""

    def findings(self) -> tuple[Finding, ...]:
        """Return the findings of the library's own check."""
        checker = location_of(self.location).checker(verify=True)
        report = run_steps(checker.steps())
        found: tuple[Finding, ...] = report.findings
        return found

    @abstractmethod
    def open_handles(self) -> int:
        """Return how many files of the store, or sessions, are open."""

    def in_use(self) -> Counter[str]:
        """Count the descriptors, sessions and threads that calls use at this moment.

        What an idle store keeps for its next call is not among them.
        """
        brief = Counter(t.name for t in threading.enumerate() if t.name in _BRIEF_THREADS)
        return descriptors(str(self.root)) + brief

    @abstractmethod
    def disable_notifications(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make watches poll every 10 ms, without notifications."""

    @abstractmethod
    def limit_pending_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make watches expire when more than ten changes are pending."""

    @abstractmethod
    def locked(self) -> AbstractContextManager[None]:
        """Hold the store's lock in a block, as another program would."""

    @abstractmethod
    def is_locked(self) -> bool:
        """Return whether the store's lock is held."""

    @abstractmethod
    def is_requested(self) -> bool:
        """Return whether a call waits for the store's lock."""

    @abstractmethod
    def remove_measures(self, image_id: str) -> None:
        """Remove from an image's record its digest, and the sizes and digests of its items."""

    @abstractmethod
    def remove_content(self, image_id: str, key: str) -> None:
        """Remove the content of an item that a record lists."""

    @abstractmethod
    def clear(self) -> None:
        """Make it empty again."""

    @abstractmethod
    def save(self) -> None:
        """Save the store's content for :meth:`restore`."""

    @abstractmethod
    def restore(self) -> None:
        """Restore the store's content at the time of :meth:`save`."""

    async def until_requested(self) -> None:
        """Return when a call waits for the store's lock."""
        await until(self.is_requested)

    async def until_not_requested(self) -> None:
        """Return when no call waits for the store's lock."""
        await until(lambda: not self.is_requested())

    async def until_no_garbage(self) -> None:
        """Return when every file or object belongs to an image.

        A cluster's store removes objects in a thread, which may go on after the call.
        """
        await until(lambda: not self.garbage())

    async def until_free(self) -> None:
        """Return when no call waits for the store's lock or holds it.

        After a cancelled wait, PostgreSQL may still grant the lock, and it frees the lock of a
        closed session a moment later.
        """
        await self.until_not_requested()
        await until(lambda: not self.is_locked())


class DirectoryStore(StoreUnderTest):
    """A store in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._number = 0

    @property
    def path(self) -> Path:
        """The store's directory."""
        return self.root / f"store{self._number}"

    @property
    def location(self) -> Path | Location:
        return self.path

    @property
    def files_prefix(self) -> Path:
        return self.root / f"files{self._number}"

    def contents(self) -> object:
        return contents(self.path)

    def garbage(self) -> list[str]:
        if not self.path.exists():
            return []
        return [name for name in os.listdir(self.path) if name.startswith(".")]

    def check_intact(self) -> None:
        if self.path.exists():
            assert self.findings() == ()

    def copies(self) -> int:
        files = (path for path in self.path.glob("*/*") if path.is_file())
        return len({path.stat().st_ino for path in files})

    def damage(self, image_id: str, key: str) -> None:
        path = self.path / image_id / big_data_file(key)
        with path.open("r+b") as file:
            file.write(b"altered")

    def open_handles(self) -> int:
        return len(open_files(str(self.path)))

    def disable_notifications(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("aimagestore._directory.index_file.open_inotify", lambda _: None)
        monkeypatch.setattr("aimagestore._directory.feed._INTERVAL", 0.01)

    def limit_pending_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("aimagestore._directory.feed._PENDING_MAX", 10)

    def locked(self) -> AbstractContextManager[None]:
        return locked(self.path)

    def is_locked(self) -> bool:
        return is_locked(self.path)

    def is_requested(self) -> bool:
        return is_requested()

    def remove_measures(self, image_id: str) -> None:
        def change(records: list[Any]) -> None:
            records[:] = [_without_measures(r) if r["id"] == image_id else r for r in records]

        edit_index(self.path, change)

    def remove_content(self, image_id: str, key: str) -> None:
        (self.path / image_id / key).unlink()

    def clear(self) -> None:
        self._number += 1

    def save(self) -> None:
        shutil.copytree(self.path, self.root / "saved")

    def restore(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.root / "saved", self.path)


class StackedStore(DirectoryStore):
    """A store in a directory, with additional stores that have no images."""

    @property
    def additional(self) -> list[Path]:
        """The directories of the additional stores: one with an index, and an empty one."""
        return [Path(f"{self.path}-one"), Path(f"{self.path}-two")]

    def make_additional(self) -> None:
        """Make the additional stores, unless they exist."""
        for path in self.additional:
            path.mkdir(exist_ok=True)
        (self.additional[0] / "images.json").write_text("[]")

    @property
    def location(self) -> Location:
        self.make_additional()
        return stacked_location(self.path, self.additional)

    def check_intact(self) -> None:
        super().check_intact()
        if self.additional[0].exists():
            assert contents(self.additional[0]) == {"images.json": b"[]"}
            assert not os.listdir(self.additional[1])


class ClusterStore(StoreUnderTest):
    """A store in a database and a part of a bucket."""

    def __init__(self, place: Place) -> None:
        from aimagestore.cluster._addresses import BucketAddress

        self.place = place
        self._session: psycopg.Connection[Any] = self._connect()
        self._bucket = BucketAddress.of(place.blobs_url).open(attempt=10.0, retries=10.0)
        self._number = 0
        self.root = Path()

    @property
    def location(self) -> ClusterLocation:
        from aimagestore.cluster import ClusterLocation

        return ClusterLocation(self.place.records_url, self.place.blobs_url)

    @property
    def files_prefix(self) -> Path:
        return self.root / f"files{self._number}"

    def in_use(self) -> Counter[str]:
        query = """
            SELECT query FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
                AND (state <> 'idle' OR query ILIKE 'LISTEN %')
        """
        return super().in_use() + Counter(query for (query,) in self._rows(query))

    def named_objects(self) -> set[UUID]:
        """Return the IDs of the objects that the tables refer to."""
        return {blob for (blob,) in self._rows("SELECT blob FROM image_items")}

    def images(self) -> list[Image]:
        """Return the images that the tables hold, in order."""
        return [record.image for record in self._records()]

    def _records(self) -> list[Record]:
        rows = self._rows("SELECT record FROM images ORDER BY place")
        found = [read(text.encode()) for (text,) in rows]
        records = [record for record in found if record is not None]
        assert len(records) == len(found)
        return records

    def _rows(self, query: str, *values: object) -> list[Any]:
        return self._session.execute(query.encode(), values or None).fetchall()

    def objects(self) -> set[UUID]:
        """Return the IDs of the objects in the bucket."""
        import obstore

        paths = (found["path"] for page in obstore.list(self._bucket) for found in page)
        return {UUID(path) for path in paths if not path.startswith("aimagestore.")}

    def _delete(self, blobs: Iterable[UUID]) -> None:
        import obstore

        if paths := [blob.hex for blob in blobs]:
            obstore.delete(self._bucket, paths)

    def copies(self) -> int:
        return len(self.objects())

    def damage(self, image_id: str, key: str) -> None:
        self.remove_content(image_id, key)

    def contents(self) -> object:
        images = self._rows("SELECT id, place, record FROM images ORDER BY place")
        names = self._rows("SELECT name, image_id FROM image_names ORDER BY name")
        digests = self._rows("SELECT digest, image_id FROM image_digests ORDER BY 1, 2")
        items = self._rows("SELECT blob, image_id, key, removed FROM image_items ORDER BY 1, 2, 3")
        return images, names, digests, items, self.objects()

    def garbage(self) -> list[str]:
        return [blob.hex for blob in self.objects() - self.named_objects()]

    def remove_garbage(self) -> None:
        """Remove the objects that the tables do not refer to."""
        self._delete(self.objects() - self.named_objects())

    def check_intact(self) -> None:
        records = self._records()
        names = {(hashlib.sha256(n.encode()).digest(), r.id) for r in records for n in r.names}
        assert set(self._rows("SELECT name, image_id FROM image_names")) == names
        digests = {(digest, record.id) for record in records for digest in record.digests}
        assert set(self._rows("SELECT digest, image_id FROM image_digests")) == digests
        keys = {(r.id, key.encode()) for r in records for key in r.image.big_data_names}
        current = "SELECT image_id, key FROM image_items WHERE removed IS NULL"
        assert set(self._rows(current)) == keys
        # A row without an image records that an orphan object was removed.
        blobs = {row[0] for row in self._rows("SELECT blob FROM image_items WHERE image_id <> ''")}
        # A thread removes the objects that turned out not to be needed.
        assert becomes_true(lambda: self.objects() == blobs)
        assert self._rows("SELECT images FROM image_store") == [(len(records),)]
        assert self.findings() == ()

    def open_handles(self) -> int:
        query = """
            SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
        """
        count: int = self._rows(query)[0][0]
        return count

    def disable_notifications(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("aimagestore.cluster._feed.ClusterFeed._listen", lambda *_: None)
        monkeypatch.setattr("aimagestore.cluster._feed.ClusterFeed.interval", 0.01)

    def limit_pending_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("aimagestore.cluster._feed._PENDING_MAX", 10)

    _KEY = "(x'61696d67'::bigint << 32) + 'image_store'::regclass::oid::bigint"

    @contextmanager
    def locked(self) -> Iterator[None]:
        self._rows(f"SELECT pg_advisory_lock({self._KEY})")
        try:
            yield
        finally:
            self._rows(f"SELECT pg_advisory_unlock({self._KEY})")

    def is_locked(self) -> bool:
        if self._rows(f"SELECT pg_try_advisory_lock({self._KEY})") == [(False,)]:
            return True
        self._rows(f"SELECT pg_advisory_unlock({self._KEY})")
        return False

    def is_requested(self) -> bool:
        return bool(
            self._rows(
                """
                SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (
                    SELECT oid FROM pg_database WHERE datname = current_database()
                )
                """
            )
        )

    def remove_measures(self, image_id: str) -> None:
        ((text,),) = self._rows("SELECT record FROM images WHERE id = %s", image_id)
        changed = json.dumps(_without_measures(json.loads(text)), separators=(",", ":"))
        self._session.execute("UPDATE images SET record = %s WHERE id = %s", [changed, image_id])
        self._session.execute("DELETE FROM image_digests WHERE image_id = %s", [image_id])

    def remove_content(self, image_id: str, key: str) -> None:
        query = "SELECT blob FROM image_items WHERE image_id = %s AND key = %s AND removed IS NULL"
        self._delete(blob for (blob,) in self._rows(query, image_id, key.encode()))

    def _connect(self) -> psycopg.Connection[Any]:
        import psycopg

        return psycopg.connect(self.place.records_url, autocommit=True)

    def _is_lost(self) -> bool:
        """Return whether the session is lost, as after a restart of the server."""
        import psycopg

        try:
            self._session.execute("SELECT 1")
        except psycopg.OperationalError:
            return True
        return False

    def clear(self) -> None:
        self._number += 1
        if self._is_lost():
            self._session = self._connect()
        self._session.execute(
            """
            DELETE FROM images; DELETE FROM image_names; DELETE FROM image_digests;
            DELETE FROM image_items; DELETE FROM image_changes; DELETE FROM image_commits;
            UPDATE image_store SET version = 0, pruned = 0, last_place = 0, images = 0
            """
        )
        self._delete(self.objects())

    def save(self) -> None:
        for table in _SAVED_TABLES:
            self._session.execute(f"CREATE TEMPORARY TABLE saved_{table} AS TABLE {table}".encode())

    def restore(self) -> None:
        """Restore the tables in a new commit.

        Objects stay. Those that the restored tables do not refer to are garbage.
        """
        self._session.execute(_RESTORE)

    def close(self) -> None:
        """Close the session."""
        self._session.close()


_SAVED_TABLES = ("images", "image_names", "image_digests", "image_items", "image_store")

# As all earlier commits are pruned, open stores read everything again.
_RESTORE = b"""
    DELETE FROM images; DELETE FROM image_names; DELETE FROM image_digests;
    DELETE FROM image_items; DELETE FROM image_changes; DELETE FROM image_commits;
    INSERT INTO images TABLE saved_images; INSERT INTO image_names TABLE saved_image_names;
    INSERT INTO image_digests TABLE saved_image_digests;
    INSERT INTO image_items TABLE saved_image_items;
    UPDATE image_store s SET version = s.version + 1, pruned = s.version + 1,
        last_place = saved.last_place, images = saved.images FROM saved_image_store saved
"""


def _without_measures(record: dict[str, Any]) -> dict[str, Any]:
    measures = {"digest", "big-data-sizes", "big-data-digests"}
    return {field: value for field, value in record.items() if field not in measures}
