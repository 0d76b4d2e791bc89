"""The Go program, stores of the tools, and directories for them."""

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
    """The compiled Go program."""
    require("go")
    return build(tmp_path_factory.mktemp("peer"))


@pytest.fixture(scope="session")
def peer(program: Path) -> Iterator[Peer]:
    """A process of the Go program, which opens any number of stores."""
    peer = Peer(program)
    yield peer
    peer.close()


@pytest.fixture(scope="session")
def prepared() -> Iterator[PreparedStores]:
    """Stores that are made once, and copied for each test."""
    directory = Path(tempfile.mkdtemp(prefix="peers-"))
    yield PreparedStores(directory)
    shutil.rmtree(directory)


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A directory on tmpfs, if this machine has one."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    directory = Path(tempfile.mkdtemp(prefix="aimagestore-", dir=shared))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a short path: podman refuses a run root of more than 50 characters."""
    directory = Path(tempfile.mkdtemp(prefix="peers-"))
    yield directory
    shutil.rmtree(directory)
