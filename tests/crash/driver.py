"""A process that forks a child for each change, which dies at a given point of the change.

It reads jobs, a line of JSON each, and answers with the wait status of the child. Forking is safe,
because it has no threads and no event loop of its own.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

# Once for all children.
import anyio._backends._asyncio

import aimagestore._directory.record_lock  # noqa: F401 - imported by the first change

from .faults import Failpoints, Failure
from .operations import attempt, operation_named

ROOT = Path(__file__).parents[2]


def main() -> None:
    gc.freeze()  # so that the collector of a child does not write to the pages that it shares
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(status, flush=True)


def _run(job: dict[str, str]) -> None:
    try:
        path = Path(job["path"])
        points = Failpoints(path, Failure(int(job["at"]), kills=True))
        error = anyio.run(attempt, operation_named(job["operation"]), path, points)
        os._exit(0 if error is None else 1)
    except BaseException:
        traceback.print_exc()
        os._exit(2)


class Driver:
    """The process that forks the children, as the tests use it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def kill_at(self, path: Path, operation: str, at: int) -> int:
        """Run an operation in a child that dies at a point, and return its wait status."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"path": str(path), "operation": operation, "at": str(at)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def driver() -> Iterator[Driver]:
    """Run the process for the block."""
    command = [sys.executable, "-m", __name__]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        yield Driver(process)
        assert process.stdin is not None
        process.stdin.close()


if __name__ == "__main__":
    main()
