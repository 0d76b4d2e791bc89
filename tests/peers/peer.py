"""The Go program main.go, which does with containers/storage what tests request, a line each."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import generation

_TIMEOUT = 300.0
"""Seconds until an answer. It takes a few milliseconds, unless another process holds the lock."""

_STORAGE = "github.com/containers/storage"
# Without the drivers that need C libraries: the tests use vfs.
_TAGS = "exclude_graphdriver_btrfs exclude_graphdriver_devicemapper exclude_graphdriver_zfs"


def build(directory: Path) -> Path:
    """Compile main.go into the directory, and return the path of the program."""
    source = Path(__file__).with_name("main.go").read_text()
    storage_path = generation.storage_import() or _STORAGE
    return compile_go(source.replace(f'"{_STORAGE}', f'"{storage_path}'), directory / "peer")


def compile_go(source: str, program: Path) -> Path:
    """Compile a Go program with Debian's libraries, linked statically, so that it runs anywhere."""
    file = program.with_suffix(".go")
    file.write_text(source)
    settings = {
        "GO111MODULE": "off",
        "GOPATH": generation.GOPATH,
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
    }
    if not os.environ.get("HOME"):
        settings["HOME"] = tempfile.gettempdir()  # Go keeps its build cache there
    command = generation.command(
        *("env", *(f"{name}={value}" for name, value in settings.items())),
        *("go", "build", "-tags", _TAGS, "-o", program, file),
    )
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return program


def image_store(root: Path) -> Path:
    """Return the directory of the image store in a root."""
    return root / "graph" / "vfs-images"


class PeerError(Exception):
    """An error of containers/storage.

    :ivar kind: the name of the Go variable, such as ``ErrImageUnknown``
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Peer:
    """A process of the Go program, which opens stores on request, and answers one after another.

    :ivar pid: its process ID
    """

    def __init__(self, program: Path) -> None:
        command = [str(program), "serve"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = self._process.pid

    def ask(self, op: str, root: Path, **fields: Any) -> Any:
        """Do an operation on the store below a root, and return its result.

        :param fields: the fields of the request; bytes are encoded
        :raises PeerError: when containers/storage refuses it
        """
        request = {"op": op, "root": str(root), **{k: _encoded(v) for k, v in fields.items()}}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], _TIMEOUT)[0]:
            self._process.kill()
            raise AssertionError(f"no answer to {request}: another process may hold the lock")
        answer = json.loads(self._process.stdout.readline())
        if answer["error"]:
            raise PeerError(answer["error"], answer["message"])
        if op == "big_data":
            return b64decode(answer["result"])
        return answer["result"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(timeout=30) == 0


def _encoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, Mapping):
        return [{"key": key, "data": _encoded(data)} for key, data in value.items()]
    return value


class Running:
    """A process that is controlled by lines on its standard input and output."""

    def __init__(self, *command: object) -> None:
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def read_line(self) -> str:
        """Return the next line that it prints. Blocks until there is one.

        :raises AssertionError: when it ends instead, with what it has printed as errors
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            _, errors = self.process.communicate(timeout=30)
            raise AssertionError(f"{self.process.args!r} ended early: {errors}")
        return line

    def go_on(self, line: str = "") -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> str:
        """Send it a line, and return the line that it answers. Blocks until then."""
        self.go_on(line)
        return self.read_line()

    def end(self) -> None:
        """Close its input, wait for its end, and check that it succeeded."""
        _, errors = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, errors


@contextmanager
def running(*command: object) -> Iterator[Running]:
    """Run a process for the block, which must succeed once its input ends."""
    started = Running(*command)
    try:
        yield started
        if started.process.poll() is None:
            started.end()
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.process.wait()
        for stream in (started.process.stdin, started.process.stdout, started.process.stderr):
            if stream is not None:
                stream.close()
