"""The guard against blocking the event loop, asyncio's as well as trio's."""

from __future__ import annotations

import _hashlib
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import anyio.lowlevel
import blockbuster.blockbuster as blocking

HASHED_BYTES = 64 * 1024
"""Bytes that may be hashed on the event loop at once."""

_CALLS = (
    "fcntl.fcntl",
    "fcntl.flock",
    "fcntl.lockf",
    "os.fdatasync",
    "os.fsync",
    "os.link",
    "os.listdir",
    "os.lstat",
    "os.open",
    "os.pread",
    "os.pwrite",
    "os.readv",
    "os.rename",
    "os.rmdir",
    "os.writev",
)
# Where psycopg waits for the server; its sockets are libpq's, which no patch of Python's sees.
_SQL_CALLS = ("psycopg.waiting.wait", "psycopg.waiting.wait_conn")
# obstore's sockets are Rust's.
_HTTP_CALLS = (
    "obstore.copy",
    "obstore.delete",
    "obstore.get",
    "obstore.get_range",
    "obstore.get_ranges",
    "obstore.head",
    "obstore.list",
    "obstore.list_with_delimiter",
    "obstore.put",
    "obstore.rename",
)


def _is_short(_: object, data: Any = b"", *__: Any, **___: Any) -> bool:
    return len(data) <= HASHED_BYTES


def _is_short_data(data: Any = b"", *_: Any, **__: Any) -> bool:
    return len(data) <= HASHED_BYTES


def _running_loop() -> object:
    # Raises a RuntimeError where none runs, as asyncio.get_running_loop does.
    return anyio.lowlevel.current_token()


def _function(
    name: str, owner: Any = None, is_allowed: Any = lambda *_, **__: False
) -> blocking.BlockBusterFunction:
    return blocking.BlockBusterFunction(
        owner, name, scanned_modules="aimagestore", can_block_predicate=is_allowed
    )


def _functions() -> Iterator[blocking.BlockBusterFunction]:
    for name in _CALLS:
        yield _function(name)
    for name in (*_SQL_CALLS, *_HTTP_CALLS):
        try:
            yield _function(name)
        except ImportError:
            continue  # without the extra there is nothing to guard
    yield _function("update", _hashlib.HASH, _is_short)
    yield _function("new", hashlib, _is_short)
    for algorithm in ("sha256", "sha384", "sha512"):
        yield _function(algorithm, hashlib, _is_short_data)


@contextmanager
def guarded() -> Iterator[None]:
    """Fail calls of the library that block the event loop: files, locks, SQL, HTTP, hashing."""
    guard = blocking.BlockBuster("aimagestore")
    # The mutexes of the library are held for a few instructions only.
    guard.functions.pop("threading.Lock.acquire", None)
    guard.functions.pop("threading.Lock.acquire_lock", None)
    for function in _functions():
        guard.functions[function.full_name] = function
    # Whether the index has changed is a stat of a local file, which does not wait.
    guard.functions["os.stat"].can_block_in("_directory/index_file.py", "current")
    loops = SimpleNamespace(get_running_loop=_running_loop)
    with patch.object(blocking, "asyncio", loops):
        guard.activate()
        try:
            yield
        finally:
            guard.deactivate()
