"""A program that prints where podman's storage is, as a user, or in a user's namespace."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import sys
import time
from contextlib import suppress

import anyio

import aimagestore.podman
from aimagestore import StoreConfigurationError

_CLONE_NEWUSER = 0x10000000


def main(user: int, namespace: bool) -> None:
    """Print it. The user need not be able to read this program."""
    with suppress(StoreConfigurationError):  # imports what is imported late
        anyio.run(aimagestore.podman.locate)
    while len(os.listdir("/proc/self/task")) > 1:  # only one thread can leave its namespace
        time.sleep(0.001)
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    if namespace:
        # In the process of the test, /proc belongs to root until it is dumpable again.
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(4, 1) == 0
        assert libc.unshare(_CLONE_NEWUSER) == 0, os.strerror(ctypes.get_errno())
        with open("/proc/self/uid_map", "w", encoding="utf-8") as file:
            file.write(f"0 {user} 1")
    try:
        storage = anyio.run(aimagestore.podman.locate)
    except StoreConfigurationError as error:
        print(json.dumps({"refused": str(error)}))
    else:
        print(json.dumps(dataclasses.asdict(storage)))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "namespace")
