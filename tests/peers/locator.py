"""A program that prints what ``locate()`` finds, as any user and in a user namespace.

It imports everything once, and forks for each request, a line of JSON. The child mounts directories
of the test over the system's, as ``boxed`` does, becomes the user, and prints the answer as JSON.
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
_PR_SET_DUMPABLE = 4
_MOUNT_POINTS = {
    "etc": b"/etc/containers",
    "usr": b"/usr/share/containers",
    "var": b"/var/lib/containers",
}

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Answer each line of the standard input."""
    with suppress(StoreConfigurationError):  # the first call imports more modules
        anyio.run(aimagestore.podman.locate)
    while len(os.listdir("/proc/self/task")) > 1:  # only one thread can leave its namespace
        time.sleep(0.001)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _answer(json.loads(line))
        os.waitpid(child, 0)


def _answer(request: dict[str, Any]) -> NoReturn:
    try:
        _enter(**request)
        storage = anyio.run(aimagestore.podman.locate)
        answer = dataclasses.asdict(storage)
    except StoreConfigurationError as error:
        answer = {"refused": str(error)}
    except BaseException:
        answer = {"failed": traceback.format_exc()}
    os.write(1, json.dumps(answer).encode() + b"\n")
    os._exit(0)


def _enter(base: str, variables: dict[str, str], user: int, namespace: bool) -> None:
    """Mount the test's directories, become the user, and enter a user namespace if asked.

    Everything is imported before, because the user may not be allowed to read this program.
    """
    os.environ.clear()
    os.environ.update(variables)
    _check(_libc.unshare(_CLONE_NEWNS))
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    os.makedirs("/var/lib/containers", exist_ok=True)
    for name, mount_point in _MOUNT_POINTS.items():
        _check(_libc.mount(f"{base}/{name}".encode(), mount_point, None, _MS_BIND, None))
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    if namespace:
        # A process that has changed its user is not dumpable: its files in /proc belong to root.
        _check(_libc.prctl(_PR_SET_DUMPABLE, 1))
        _check(_libc.unshare(_CLONE_NEWUSER))
        with open("/proc/self/uid_map", "w", encoding="utf-8") as file:
            file.write(f"0 {user} 1")


def _check(result: int) -> None:
    assert result == 0, os.strerror(ctypes.get_errno())


if __name__ == "__main__":
    main()
