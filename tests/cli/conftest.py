"""The command line, called as a function and as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import pytest

from ..peers.conftest import short_path  # noqa: F401 - a fixture
from ..support.commands import invoke
from ..support.template import Template

PROGRAM = [sys.executable, "-m", "aimagestore"]


@dataclass(frozen=True)
class Result:
    """What a command printed, and how it exited."""

    code: int
    output: str
    errors: str

    @property
    def lines(self) -> list[str]:
        """What was printed, by line."""
        return self.output.splitlines()

    @property
    def json(self) -> Any:
        """What was printed, as JSON."""
        return json.loads(self.output)


def call(*arguments: object, code: int = 0, variables: Mapping[str, str] | None = None) -> Result:
    """Carry out a command in this process, and expect this exit code."""
    result = invoke(*arguments, variables=variables)
    assert result.exit_code == code, f"{arguments}: {result.output}{result.exception!r}"
    return Result(code, result.stdout, result.stderr)


@dataclass(frozen=True)
class Cli:
    """The command line on one store, in this process."""

    root: Path

    def __call__(self, *arguments: object, code: int = 0) -> Result:
        """Carry out a command, and expect this exit code."""
        return call("--root", self.root, *arguments, code=code)


def help_of(command: str) -> str:
    """The help of a command; ``""`` for that of the program."""
    result = invoke(*command.split(), "--help")
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture
def cli(path: Path) -> Cli:
    """The command line, on a store that is not there yet."""
    return Cli(path)


@cache
def _template() -> Template:
    # The tests themselves may run without buffers.
    return Template(variables=environment(PYTHONUNBUFFERED="", TERM="xterm"))


@pytest.fixture(scope="session")
def template() -> Template:
    """The process that copies of the program are made of."""
    return _template()


@pytest.fixture(scope="session", autouse=True)
def _end_template() -> Iterator[None]:
    yield
    if _template.cache_info().currsize:
        _template().close()
        _template.cache_clear()


def environment(**variables: str) -> Mapping[str, str]:
    """The environment without what would lead to another store."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIMAGESTORE_", "CONTAINERS_", "STORAGE_", "XDG_", "COV"))
    }
    return kept | variables


def program(
    *arguments: object,
    code: int = 0,
    data: bytes = b"",
    stdin: IO[bytes] | None = None,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run the program in a process of its own, and expect this exit code."""
    result = _template().run(
        *arguments,
        stdin=None if stdin is None else stdin.fileno(),
        data=data,
        variables=environment(**(variables or {})),
    )
    assert result.returncode == code, f"{arguments}: {result.stdout!r} {result.stderr!r}"
    return result
