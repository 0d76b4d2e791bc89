"""Where a store is, as the contract's tests see it: what they do there besides using it."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from aimagestore._async.engines import engine_of

from aimagestore import Finding

if TYPE_CHECKING:
    from aimagestore.cluster import ClusterLocation

    from .cluster.servers import Place


def open_files(place: str) -> set[str]:
    """The descriptors of this process whose files have this in their path."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # closed since, that of the listing for one
        if place in target:
            found.add(f"{fd} {target}")
    return found


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a directory's store, as another store of this process would."""
    fd = os.open(path / "images.lock", os.O_RDWR | os.O_CREAT)
    try:
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
        yield
    finally:
        os.close(fd)


def is_locked(path: Path) -> bool:
    """Whether somebody holds that lock."""
    try:
        with locked(path):
            return False
    except BlockingIOError:
        return True


class Home(ABC):
    """A place for one store, that can be opened any number of times: ``ImageStore(home())``.

    :ivar root: a directory for the test's files
    """

    root: Path

    @abstractmethod
    def __call__(self) -> Path | ClusterLocation:
        """What opens it."""

    @property
    @abstractmethod
    def beside(self) -> Path:
        """What the names of files may begin with that a test writes; another one once cleared."""

    @abstractmethod
    def contents(self) -> object:
        """All that it holds, to be compared."""

    @abstractmethod
    def leftovers(self) -> list[str]:
        """What lies there and belongs to no image."""

    @abstractmethod
    def check(self) -> None:
        """Check that records and big data are whole, and agree."""

    def examine(self) -> tuple[Finding, ...]:
        """What the library's own check finds there."""
        examination = engine_of(self()).check(verify=True)
        for _ in examination.steps():
            pass
        return examination.report.findings

    @abstractmethod
    def in_use(self) -> int:
        """How many files or sessions are open there."""

    @abstractmethod
    def is_at_rest(self, before: int) -> bool:
        """Whether no more is open than before, and no less."""

    @abstractmethod
    def stop_telling(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have those who watch look for themselves."""

    @abstractmethod
    def keep_few_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have no more than ten changes kept for who is slow."""

    @abstractmethod
    def locked(self) -> Any:
        """Hold the store's lock for as long as a block takes, as another store would."""

    @abstractmethod
    def is_locked(self) -> bool:
        """Whether somebody holds the store's lock."""

    @abstractmethod
    def is_waited_for(self) -> bool:
        """Whether somebody waits for the store's lock."""

    @abstractmethod
    def unmeasure(self, image_id: str) -> None:
        """Take the sizes and digests of its items out of an image's record."""

    @abstractmethod
    def clear(self) -> None:
        """Be empty again."""

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when this is so."""
        with anyio.fail_after(20):
            while not condition():
                await anyio.sleep(0.001)

    async def until_waiting(self) -> None:
        """Return when somebody waits for the store's lock."""
        await self.until(self.is_waited_for)

    async def until_nobody_waits(self) -> None:
        """Return when nobody waits for the store's lock any more."""
        await self.until(lambda: not self.is_waited_for())


class DirectoryHome(Home):
    """A directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._number = 0

    @property
    def path(self) -> Path:
        return self.root / f"store{self._number}"

    @property
    def beside(self) -> Path:
        return self.path

    def __call__(self) -> Path:
        return self.path

    def contents(self) -> object:
        return {
            str(p.relative_to(self.path)): p.read_bytes()
            for p in self.path.rglob("*")
            if p.is_file() and p.name != "images.lock"
        }

    def leftovers(self) -> list[str]:
        if not self.path.exists():
            return []
        return [name for name in os.listdir(self.path) if name.startswith(".")]

    def check(self) -> None:
        if self.path.exists():
            assert self.examine() == ()

    def in_use(self) -> int:
        return len(open_files(f"{self.path}"))

    def is_at_rest(self, before: int) -> bool:
        return self.in_use() == before

    def stop_telling(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("aimagestore._directory.engine.open_inotify", lambda _: None)
        monkeypatch.setattr("aimagestore._directory.watch._INTERVAL", 0.01)

    def keep_few_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("aimagestore._directory.watch._PENDING_MAX", 10)

    def locked(self) -> Any:
        return locked(self.path)

    def is_locked(self) -> bool:
        return is_locked(self.path)

    def is_waited_for(self) -> bool:
        return any(thread.name == "aimagestore lock" for thread in threading.enumerate())

    def unmeasure(self, image_id: str) -> None:
        index = self.path / "images.json"
        index.write_bytes(
            json.dumps(
                [
                    _without_measures(r) if r["id"] == image_id else r
                    for r in json.loads(index.read_bytes())
                ],
                separators=(",", ":"),
            ).encode()
        )

    def clear(self) -> None:
        self._number += 1


class ClusterHome(Home):
    """A database, and a part of a bucket."""

    def __init__(self, place: Place) -> None:
        import psycopg

        from aimagestore.cluster._addresses import BucketAddress
        from aimagestore.cluster._blobs import Blobs

        self._place = place
        self._session: psycopg.Connection[Any] = psycopg.connect(place.records_url, autocommit=True)
        self._blobs = Blobs(BucketAddress.of(place.blobs_url), 10.0)
        self._number = 0
        self.root = Path()

    @property
    def beside(self) -> Path:
        return self.root / f"store{self._number}"

    def __call__(self) -> ClusterLocation:
        from aimagestore.cluster import ClusterLocation

        return ClusterLocation(self._place.records_url, self._place.blobs_url)

    def _rows(self, question: str, *values: object) -> list[Any]:
        return self._session.execute(question.encode(), values or None).fetchall()

    def _written(self) -> set[Any]:
        return {blob.id for page in self._blobs.pages() for blob in page}

    def contents(self) -> object:
        images = self._rows("SELECT id, place, record FROM images ORDER BY place")
        names = self._rows("SELECT name, image_id FROM image_names ORDER BY name")
        digests = self._rows("SELECT digest, image_id FROM image_digests ORDER BY 1, 2")
        items = self._rows("SELECT blob, image_id, key, removed FROM image_items ORDER BY blob")
        return images, names, digests, items, self._written()

    def leftovers(self) -> list[str]:
        known = {row[0] for row in self._rows("SELECT blob FROM image_items")}
        return [blob.hex for blob in self._written() - known]

    def check(self) -> None:
        import hashlib

        from aimagestore._core.record import read

        records = [read(text.encode()) for (text,) in self._rows("SELECT record FROM images")]
        assert None not in records
        known = [record for record in records if record is not None]
        names = {(hashlib.sha256(n.encode()).digest(), r.id) for r in known for n in r.names}
        assert set(self._rows("SELECT name, image_id FROM image_names")) == names
        digests = {(digest, record.id) for record in known for digest in record.digests}
        assert set(self._rows("SELECT digest, image_id FROM image_digests")) == digests
        keys = {
            (record.id, key.encode()) for record in known for key in record.image.big_data_names
        }
        current = "SELECT image_id, key FROM image_items WHERE removed IS NULL"
        assert set(self._rows(current)) == keys
        # A row without an image notes that an orphan object was removed.
        blobs = {row[0] for row in self._rows("SELECT blob FROM image_items WHERE image_id <> ''")}
        assert self._written() == blobs
        assert self._rows("SELECT images FROM image_store") == [(len(known),)]
        assert self.examine() == ()

    def in_use(self) -> int:
        question = """
            SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
        """
        count: int = self._rows(question)[0][0]
        return count

    def is_at_rest(self, before: int) -> bool:
        return True  # sessions are kept for the next call

    def stop_telling(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("aimagestore.cluster._feed.ClusterFeed._listen", lambda _: None)
        monkeypatch.setattr("aimagestore.cluster._feed.ClusterFeed.interval", 0.01)

    def keep_few_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def is_waited_for(self) -> bool:
        return bool(
            self._rows(
                """
                SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (
                    SELECT oid FROM pg_database WHERE datname = current_database()
                )
                """
            )
        )

    def unmeasure(self, image_id: str) -> None:
        ((text,),) = self._rows("SELECT record FROM images WHERE id = %s", image_id)
        changed = json.dumps(_without_measures(json.loads(text)), separators=(",", ":"))
        self._session.execute("UPDATE images SET record = %s WHERE id = %s", [changed, image_id])
        self._session.execute("DELETE FROM image_digests WHERE image_id = %s", [image_id])

    def clear(self) -> None:
        self._number += 1
        self._session.execute(
            """
            DELETE FROM images; DELETE FROM image_names; DELETE FROM image_digests;
            DELETE FROM image_items; DELETE FROM image_changes; DELETE FROM image_commits;
            UPDATE image_store SET version = 0, pruned = 0, last_place = 0, images = 0
            """
        )
        if written := self._written():
            self._blobs.delete(list(written))

    def close(self) -> None:
        """Leave it."""
        self._session.close()


def _without_measures(record: dict[str, Any]) -> dict[str, Any]:
    measures = {"digest", "big-data-sizes", "big-data-digests"}
    return {field: value for field, value in record.items() if field not in measures}
