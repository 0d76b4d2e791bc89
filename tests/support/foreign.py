"""Other processes: they hold a store's lock, or change it as containers/storage does, in steps."""

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

# It prints its process ID as it sees it, and holds the lock until its input ends.
_HOLD = """
import fcntl, os, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


@contextmanager
def locked_by_another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold the lock of a store's directory in a block, as podman does."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path / "images.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        try:
            assert int(process.stdout.readline()) == process.pid
            yield process
        finally:
            process.kill()  # a forked child may keep its standard input open


class ForeignWriter:
    """A process that holds the lock. The test changes the store in its name.

    :ivar process: its process ID
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
        own_id = self._process.stdout.readline()
        if not own_id and own_namespace:
            _, errors = self._process.communicate()
            pytest.skip(f"cannot make a PID namespace: {errors}")
        self._own_id = int(own_id)
        self.process = self._process.pid
        self.is_over = False

    def save(self, *records: dict[str, Any]) -> None:
        """Write a new last-write token, then an index with these records."""
        token = struct.pack("<QQI44s", time.time_ns(), 1, self._own_id, os.urandom(44))
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
    """Have another process hold the lock until :meth:`ForeignWriter.release` or the block's end.

    :param own_namespace: whether the process has a PID namespace of its own
    """
    writer = ForeignWriter(path, own_namespace=own_namespace)
    try:
        yield writer
    finally:
        writer.release()
