"""What every test has: three event loops, a guard against blocking them, a store, and servers."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio.lowlevel
import blockbuster.blockbuster
import pytest
from hypothesis import settings

from aimagestore import ImageStore
from aimagestore._directory.check import Check

from .homes import ClusterHome, DirectoryHome, Home, open_files

if TYPE_CHECKING:
    from .cluster.servers import Servers

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("default")


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Every async test runs on each of these."""
    return request.param


_BLOCKING = (
    "fcntl.fcntl",
    "fcntl.flock",
    "os.fsync",
    "os.link",
    "os.listdir",
    "os.open",
    "os.pread",
    "os.rename",
    "os.rmdir",
    "os.writev",
)


def _running_loop() -> object:
    # Raises a RuntimeError where none runs, as asyncio.get_running_loop does.
    return anyio.lowlevel.current_token()


@pytest.fixture(autouse=True)
def _guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in which the library blocks the event loop, trio's as well as asyncio's."""
    monkeypatch.setattr(
        blockbuster.blockbuster, "asyncio", SimpleNamespace(get_running_loop=_running_loop)
    )
    guard = blockbuster.BlockBuster("aimagestore")
    # The mutexes of the pipeline and of the lock's line are held for a few instructions only.
    guard.functions.pop("threading.Lock.acquire", None)
    guard.functions.pop("threading.Lock.acquire_lock", None)
    for name in _BLOCKING:
        guard.functions[name] = blockbuster.blockbuster.BlockBusterFunction(
            None, name, scanned_modules="aimagestore"
        )
    # A stat of a local file does not wait: what the store's freshness costs is this one.
    guard.functions["os.stat"].can_block_in("_directory/engine.py", "current")
    guard.activate()
    yield
    guard.deactivate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where there is no store yet."""
    return tmp_path / "store"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[ImageStore]:
    """A new store, open."""
    async with ImageStore(path) as store:
        yield store


@pytest.fixture(autouse=True)
def _no_damage_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check the store after every test, unless the test is about damage."""
    if "path" not in request.fixturenames or request.node.get_closest_marker("damage"):
        yield
        return
    path: Path = request.getfixturevalue("path")
    yield
    if path.is_dir():
        check = Check(str(path), verify=True)
        for _ in check.steps():
            pass
        assert check.report.findings == ()


@pytest.fixture(autouse=True)
def _no_descriptors_left() -> Iterator[None]:
    """Fail a test that leaves descriptors of a store open."""
    before = _open_files()
    yield
    # A step of a check that was cancelled ends by itself, in its thread.
    for _ in range(500):
        if _open_files() <= before:
            return
        time.sleep(0.01)
    assert _open_files() <= before


def _open_files() -> set[str]:
    """What stores have open, and what tells their watches."""
    return open_files("/store") | open_files("inotify")


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """PostgreSQL and SeaweedFS, their credentials in the environment."""
    for package in ("psycopg", "obstore"):
        pytest.importorskip(package, reason="needs the clients: pip install 'aimagestore[cluster]'")
    from aimagestore.cluster._local.cluster import LocalCluster
    from aimagestore.cluster._local.server import ServersMissingError

    from .cluster.servers import Servers

    try:
        local = LocalCluster()
    except ServersMissingError as missing:
        pytest.skip(str(missing))
    with local, pytest.MonkeyPatch.context() as patch:
        for name, value in local.environment.items():
            patch.setitem(os.environ, name, value)
        yield Servers(local)


@pytest.fixture(scope="session")
def cluster_home(servers: Servers) -> Iterator[ClusterHome]:
    """The one that all tests have in turn."""
    with servers.new_place() as place:
        home = ClusterHome(place)
        yield home
        home.close()


@pytest.fixture(params=["directory", "cluster"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    """Where there is no image yet, on either engine."""
    if request.param == "directory":
        found: Home = DirectoryHome(tmp_path)
    else:
        cluster: ClusterHome = request.getfixturevalue("cluster_home")
        cluster.root = tmp_path
        cluster.clear()
        found = cluster
    yield found
    if not request.node.get_closest_marker("damage"):
        found.check()
    for _ in range(500):
        if not found.in_use():
            break
        time.sleep(0.01)
    assert found.in_use() == 0
