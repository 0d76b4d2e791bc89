"""What tests share: event loops, a guard against blocking them, checks afterwards, and servers."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from hypothesis import settings

from aimagestore import ImageStore
from aimagestore._directory.location import DirectoryLocation

from .support import guard
from .support.faults import Faults, die_after_commit
from .support.loops import USUAL_LOOPS, repeats_on_stacked_stores, second_runs
from .support.stores import (
    ClusterStore,
    DirectoryStore,
    StackedStore,
    StoreUnderTest,
    becomes_true,
    library_threads,
    open_files,
    run_steps,
)

if TYPE_CHECKING:
    from .cluster.servers import Servers

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to thorough runs the tests that repeat others on one more loop or kind of store."""
    for item in {*second_runs(items), *repeats_on_stacked_stores(items)}:
        item.add_marker("thorough")


@pytest.fixture(params=USUAL_LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Each of the usual event loops."""
    return request.param


@pytest.fixture(autouse=True)
def _guard() -> None:
    """Fail a test in which the library blocks the event loop."""
    guard.turn_on()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A path where there is no store yet."""
    return tmp_path / "store"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[ImageStore]:
    """A new store, open."""
    async with ImageStore(path) as store:
        yield store


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Lets a test make system calls fail."""
    return Faults(monkeypatch)


@pytest.fixture
async def half_done(path: Path) -> Path:
    """A store whose writer died between a commit and its last rename."""
    async with ImageStore(path) as store:
        await store.create("one", names=["a"], big_data={"manifest": b"old content"})
    await die_after_commit(path)
    assert (path / "one" / "manifest").read_bytes() == b"old content"
    return path


@pytest.fixture(autouse=True)
def _no_damage_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check the store after every test, unless the test is about damage."""
    if "path" not in request.fixturenames or request.node.get_closest_marker("damage"):
        yield
        return
    path: Path = request.getfixturevalue("path")
    yield
    if path.is_dir():
        report = run_steps(DirectoryLocation(path).checker(verify=True).steps())
        assert report.findings == ()


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    """Fail a test that leaves descriptors or threads of a store behind."""
    before = _open()
    yield
    # The thread of a cancelled check ends by itself.
    if becomes_true(lambda: _open() <= before, 1):
        return
    gc.collect()  # a directory's lock is closed with the last object that refers to it
    becomes_true(lambda: _open() <= before)
    assert _open() <= before


def _open() -> set[object]:
    """Return the open files, inotify instances and threads of stores."""
    return {*open_files("/store", "inotify"), *library_threads()}


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """PostgreSQL and SeaweedFS, with their credentials in the environment.

    Each worker of pytest-xdist has its own.
    """
    for package in ("psycopg", "obstore"):
        pytest.importorskip(package, reason="needs the clients: pip install 'aimagestore[cluster]'")
    from aimagestore.cluster._local.server import ServersMissingError

    from .cluster.servers import Servers, make_cluster

    # One worker at a time finds free ports and starts servers on them.
    starting = FileLock(tmp_path_factory.getbasetemp().parent / "servers.lock")
    with pytest.MonkeyPatch.context() as patch:
        try:
            with starting:
                local = make_cluster()
                running = local.__enter__()
        except ServersMissingError as missing:
            pytest.skip(str(missing))
        try:
            for name, value in running.environment.items():
                patch.setitem(os.environ, name, value)
            with closing(Servers(local)) as servers:
                yield servers
        finally:
            local.close()


@pytest.fixture(scope="session")
def cluster_store(servers: Servers) -> Iterator[ClusterStore]:
    """A store on the servers, which the tests of the contract clear and use one after another."""
    with servers.new_place() as place:
        store = ClusterStore(place)
        yield store
        store.close()


@pytest.fixture(params=["directory", "stacked", "cluster"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreUnderTest]:
    """A store without images, of each kind."""
    if request.param == "directory":
        found: StoreUnderTest = DirectoryStore(tmp_path)
    elif request.param == "stacked":
        found = StackedStore(tmp_path)
    else:
        cluster: ClusterStore = request.getfixturevalue("cluster_store")
        cluster.root = tmp_path
        cluster.clear()
        found = cluster
    yield found
    if not request.node.get_closest_marker("damage"):
        found.check_intact()
    becomes_true(lambda: not found.open_handles())
    assert found.open_handles() == 0
