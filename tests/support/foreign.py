"""Another program that changes a store as containers/storage does, in several steps."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# It prints the number that it has for itself, and holds the lock until its input ends.
_HOLD = """
import fcntl, os, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


class ForeignWriter:
    """A process that holds the lock, in whose name the test changes the store.

    :ivar process: its number
    :ivar is_over: whether it has released the lock
    """

    def __init__(self, path: Path, *, own_namespace: bool) -> None:
        self._path = path
        enter = ["unshare", "--pid", "--fork", "--kill-child"] if own_namespace else []
        self._process = subprocess.Popen(
            [*enter, sys.executable, "-c", _HOLD, str(path / "images.lock")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        number = self._process.stdout.readline()
        if not number and own_namespace:
            _, errors = self._process.communicate()
            pytest.skip(f"needs a namespace of its own for a process: {errors}")
        self._own_number = int(number)
        self.process = self._process.pid
        self.is_over = False

    def save(self, *records: dict[str, Any]) -> None:
        """Save the index with these records, after the last-write token."""
        token = struct.pack("<QQI44s", time.time_ns(), 1, self._own_number, os.urandom(44))
        with open(self._path / "images.lock", "r+b") as lock:
            lock.write(token)
        self._replace("images.json", json.dumps(records, separators=(",", ":")).encode())

    def place(self, image_id: str, key: str, data: bytes) -> None:
        """Put the content of an item in place."""
        (self._path / image_id).mkdir(exist_ok=True)
        self._replace(f"{image_id}/{key}", data)

    def _replace(self, name: str, data: bytes) -> None:
        new = self._path / ".tmp-foreign"
        new.write_bytes(data)
        new.rename(self._path / name)

    def release(self) -> None:
        """Release the lock. Idempotent."""
        self.is_over = True
        self._process.communicate()


@contextmanager
def foreign_writer(path: Path, *, own_namespace: bool = False) -> Iterator[ForeignWriter]:
    """Have another program hold the lock until it releases it, or the block ends."""
    writer = ForeignWriter(path, own_namespace=own_namespace)
    try:
        yield writer
    finally:
        writer.release()
