"""The guard itself: library code that blocks the event loop fails its test, on every loop."""

from __future__ import annotations

import gc
import hashlib
import importlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import anyio.to_thread
import blockbuster
import pytest

import aimagestore
from aimagestore import ImageStore
from aimagestore._async.store import core_of
from aimagestore._core.content import InlineContent

from .support.guard import HASHED_BYTES

# A function of the library, as far as the guard can see.
_CODE = compile(
    "def call(function, *arguments): return function(*arguments)",
    str(Path(aimagestore.__file__).with_name("pretended.py")),
    "exec",
)


def _library_call() -> Callable[..., Any]:
    names: dict[str, Any] = {}
    exec(_CODE, names)
    function = names["call"]
    assert isinstance(function, FunctionType)
    return function


call = _library_call()


@pytest.fixture
def listener() -> Iterator[tuple[str, int]]:
    """The address of a server that accepts nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()


async def test_the_librarys_own_blocking_calls_are_noticed(store: ImageStore) -> None:
    engine = core_of(store).engine
    for function in (engine.reader.refresh, engine.items.stage, engine.lock.try_acquire):
        with pytest.raises(blockbuster.BlockingError):
            function()


async def test_reading_what_has_not_changed_is_allowed(store: ImageStore) -> None:
    await store.create("one")
    assert core_of(store).engine.reader.current() is not None


async def test_sql_is_noticed(listener: tuple[str, int]) -> None:
    psycopg = pytest.importorskip("psycopg")
    host, port = listener
    with pytest.raises(blockbuster.BlockingError):
        call(psycopg.connect, f"host={host} port={port} connect_timeout=5")
    waiting = importlib.import_module("psycopg.waiting")
    with pytest.raises(blockbuster.BlockingError):
        call(lambda: waiting.wait(iter(()), -1))


async def test_requests_of_the_object_store_are_noticed() -> None:
    obstore = pytest.importorskip("obstore")
    memory = importlib.import_module("obstore.store").MemoryStore()
    for function, arguments in {
        "put": ("key", b"data"),
        "get": ("key",),
        "head": ("key",),
        "delete": ("key",),
        "list": (),
    }.items():
        with pytest.raises(blockbuster.BlockingError):
            call(lambda name, *given: getattr(obstore, name)(memory, *given), function, *arguments)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpx's socket
async def test_http_over_a_blocking_socket_is_noticed(listener: tuple[str, int]) -> None:
    httpx = pytest.importorskip("httpx")
    host, port = listener
    with socket.socket() as connection, pytest.raises(blockbuster.BlockingError):
        call(connection.connect, listener)
    with httpx.Client(trust_env=False) as client, pytest.raises(blockbuster.BlockingError):
        call(client.get, f"http://{host}:{port}/")
    gc.collect()


LONG = b"x" * (HASHED_BYTES + 1)


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
async def test_hashing_more_than_64_kib_is_noticed(algorithm: str) -> None:
    state = hashlib.new(algorithm)
    for function, arguments in (
        (state.update, (LONG,)),
        (lambda data: hashlib.new(algorithm, data), (LONG,)),
        (getattr(hashlib, algorithm), (LONG,)),
    ):
        with pytest.raises(blockbuster.BlockingError):
            call(function, *arguments)
        call(function, arguments[0][1:])
    with pytest.raises(blockbuster.BlockingError):
        InlineContent.of(LONG)


async def test_files_locks_and_syncs_are_noticed(tmp_path: Path) -> None:
    fcntl = importlib.import_module("fcntl")
    with (tmp_path / "file").open("wb") as file:
        fd = file.fileno()
        for function in (
            lambda: os.fsync(fd),
            lambda: os.pread(fd, 1, 0),
            lambda: os.readv(fd, [bytearray(1)]),
            lambda: os.writev(fd, [b"x"]),
            lambda: os.write(fd, b"x"),
            lambda: os.open(tmp_path, os.O_RDONLY),
            lambda: os.stat(tmp_path),
            lambda: os.listdir(tmp_path),
            lambda: os.rename(tmp_path / "a", tmp_path / "b"),
            lambda: os.unlink(tmp_path / "a"),
            lambda: fcntl.fcntl(fd, fcntl.F_GETFL),
        ):
            with pytest.raises(blockbuster.BlockingError):
                call(function)


async def test_the_guard_ignores_worker_threads_and_other_code(
    store: ImageStore, tmp_path: Path
) -> None:
    assert os.listdir(tmp_path)  # not the library's
    await anyio.to_thread.run_sync(core_of(store).engine.reader.refresh)
    await anyio.to_thread.run_sync(InlineContent.of, LONG)
