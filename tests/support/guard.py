"""The guard against blocking the event loop, asyncio's as well as trio's."""

from __future__ import annotations

import _hashlib
import asyncio
import asyncio.events
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import FrameType, SimpleNamespace
from typing import Any

import blockbuster.blockbuster as blocking
import trio.lowlevel

import aimagestore

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
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return trio.lowlevel.current_trio_token()


_LIBRARY = os.path.dirname(aimagestore.__file__)
# The modules that run each step of a task on asyncio and trio. uvloop has no frames of Python.
_LOOPS = frozenset(
    function.__code__.co_filename
    for function in (asyncio.events.Handle._run, trio.lowlevel.current_trio_token)
)


def _is_made_elsewhere() -> bool:
    """Return whether no code of the library makes this call.

    blockbuster finds that out too, but looks at all frames of pytest, which takes longer than most
    calls do.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_LIBRARY):
            return False
        if name in _LOOPS:
            return True
        frame = frame.f_back
    return True


def _allowing_calls_elsewhere(is_allowed: Callable[..., bool]) -> Callable[..., bool]:
    def is_allowed_here(*args: Any, **kwargs: Any) -> bool:
        return _is_made_elsewhere() or is_allowed(*args, **kwargs)

    return is_allowed_here


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


@cache
def _guard() -> blocking.BlockBuster:
    guard = blocking.BlockBuster("aimagestore")
    # The mutexes of the library are held for a few instructions only.
    guard.functions.pop("threading.Lock.acquire", None)
    guard.functions.pop("threading.Lock.acquire_lock", None)
    for function in _functions():
        guard.functions[function.full_name] = function
    # Whether the index has changed is a stat of a local file, which does not wait.
    guard.functions["os.stat"].can_block_in("_directory/index_file.py", "current")
    for function in guard.functions.values():
        function.can_block_predicate = _allowing_calls_elsewhere(function.can_block_predicate)
    loops = SimpleNamespace(get_running_loop=_running_loop)
    setattr(blocking, "asyncio", loops)  # noqa: B010 - it does not export that
    return guard


def turn_on() -> None:
    """Make calls of the library fail that block the loop by files, locks, SQL, HTTP or hashing.

    The guard stays on after a test, because turning it on takes longer than many tests.
    """
    _guard().activate()


def turn_off() -> None:
    """Let the library block the event loop."""
    _guard().deactivate()
