"""The Go program, compiled once, and directories in memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .peer import Peer, build
from .tools import PreparedStores, require


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go program."""
    require("go")
    return build(tmp_path_factory.mktemp("peer"))


@pytest.fixture(scope="session")
def peer(program: Path) -> Iterator[Peer]:
    """containers/storage, for any store."""
    peer = Peer(program)
    yield peer
    peer.close()


@pytest.fixture(scope="session")
def prepared() -> Iterator[PreparedStores]:
    """Stores that are made once."""
    directory = Path(tempfile.mkdtemp(prefix="peers-"))
    yield PreparedStores(directory)
    shutil.rmtree(directory)


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A directory on tmpfs, where there is one."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    directory = Path(tempfile.mkdtemp(prefix="aimagestore-", dir=shared))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory of a short name: podman refuses a run root of more than 50 characters."""
    directory = Path(tempfile.mkdtemp(prefix="peers-"))
    yield directory
    shutil.rmtree(directory)
