"""The Go program, stores of the tools, and directories for them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.disks import directory_in_memory
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
def in_memory() -> Iterator[Path]:
    """A directory on tmpfs, if this machine has one."""
    with directory_in_memory() as directory:
        yield directory


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a short path: podman refuses a run root of more than 50 characters."""
    directory = Path(tempfile.mkdtemp(prefix="peers-"))
    yield directory
    shutil.rmtree(directory)
