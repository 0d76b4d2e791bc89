"""The command line, called as a function and as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from typer.testing import CliRunner

from aimagestore._cli.app import app

from ..peers.conftest import short_path  # noqa: F401 - a fixture
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
    parts = [str(argument) for argument in arguments]
    result = CliRunner().invoke(app, parts, prog_name="aimagestore", env=variables)
    assert result.exit_code == code, f"{parts}: {result.output}{result.exception!r}"
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
    result = CliRunner().invoke(app, [*command.split(), "--help"], prog_name="aimagestore")
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture
def cli(path: Path) -> Cli:
    """The command line, on a store that is not there yet."""
    return Cli(path)


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    """The process that copies of the program are made of."""
    # The tests themselves may run without buffers.
    found = Template(variables=environment(PYTHONUNBUFFERED="", TERM="xterm"))
    yield found
    found.close()


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
    """Run the program, and expect this exit code."""
    result = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        input=data if stdin is None else None,
        stdin=stdin,
        capture_output=True,
        check=False,
        timeout=60,
        env=environment(**(variables or {})),
    )
    assert result.returncode == code, f"{arguments}: {result.stdout!r} {result.stderr!r}"
    return result
