"""A program that prints where podman's storage is, as a user, or in a user's namespace.

It imports everything once, and answers each line of its input in a copy of itself, in which
directories of a test are in place of the system's, as in ``boxed``.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import sys
import time
import traceback
from contextlib import suppress
from typing import Any, NoReturn

import anyio

import aimagestore.podman
from aimagestore import StoreConfigurationError

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_PLACES = {
    "etc": b"/etc/containers",
    "usr": b"/usr/share/containers",
    "var": b"/var/lib/containers",
}

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Answer every line."""
    with suppress(StoreConfigurationError):  # imports what is imported late
        anyio.run(aimagestore.podman.locate)
    while len(os.listdir("/proc/self/task")) > 1:  # only one thread can leave its namespace
        time.sleep(0.001)
    for line in sys.stdin:
        copy = os.fork()
        if not copy:
            _answer(json.loads(line))
        os.waitpid(copy, 0)


def _answer(asked: dict[str, Any]) -> NoReturn:
    try:
        _become(**asked)
        storage = anyio.run(aimagestore.podman.locate)
        answer = dataclasses.asdict(storage)
    except StoreConfigurationError as error:
        answer = {"refused": str(error)}
    except BaseException:
        answer = {"failed": traceback.format_exc()}
    os.write(1, json.dumps(answer).encode() + b"\n")
    os._exit(0)


def _become(base: str, variables: dict[str, str], user: int, namespace: bool) -> None:
    """Enter the directories and the namespace. The user need not be able to read this program."""
    os.environ.clear()
    os.environ.update(variables)
    _check(_libc.unshare(_CLONE_NEWNS))
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    os.makedirs("/var/lib/containers", exist_ok=True)
    for name, place in _PLACES.items():
        _check(_libc.mount(f"{base}/{name}".encode(), place, None, _MS_BIND, None))
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    if namespace:
        # In the process of the test, /proc belongs to root until it is dumpable again.
        _check(_libc.prctl(4, 1))
        _check(_libc.unshare(_CLONE_NEWUSER))
        with open("/proc/self/uid_map", "w", encoding="utf-8") as file:
            file.write(f"0 {user} 1")


def _check(result: int) -> None:
    assert result == 0, os.strerror(ctypes.get_errno())


if __name__ == "__main__":
    main()
