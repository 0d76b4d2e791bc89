"""A process that is stopped at each of its steps, by strace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

# System calls that change something, or come right before that; a process stops after each.
_STEPS = "openat,mkdirat,pwrite64,rename,renameat,renameat2,unlink,unlinkat"
_TIMEOUT = 60


class Stepped:
    """A process that stops after each step. The kernel tells, but has no event for it."""

    def __init__(self, process: int) -> None:
        self._process = process

    async def through(
        self, change: Callable[[], object], look: Callable[[], Awaitable[object]]
    ) -> None:
        """Have it asked for a change, in a thread, and look around whenever it is stopped."""
        done = anyio.Event()
        failure: Exception | None = None

        async def run() -> None:
            await anyio.to_thread.run_sync(change)
            done.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            while not done.is_set():
                if self._is_stopped():
                    try:
                        if failure is None:
                            await look()
                    except Exception as error:
                        failure = error  # raised when the process has come to its end
                    os.kill(self._process, signal.SIGCONT)
                # It may be seen to be stopped for a little longer: then this looks twice.
                await anyio.sleep(0.002)
        if failure is not None:
            raise failure

    def _is_stopped(self) -> bool:
        return all(state in {"T", "t"} for state in self._each("State"))

    def is_traced(self) -> bool:
        """Return whether all of its threads stop."""
        return "0" not in self._each("TracerPid")

    def _each(self, field: str) -> list[str]:
        tasks = Path(f"/proc/{self._process}/task")
        texts = [(tasks / task / "status").read_text() for task in os.listdir(tasks)]
        return [text.partition(f"\n{field}:\t")[2].split(maxsplit=1)[0] for text in texts]


@contextmanager
def stepped(process: int) -> Iterator[Stepped]:
    """Have a process stop after each step inside the block."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={_STEPS}"]
    command += ["-e", f"inject={_STEPS}:signal=SIGSTOP", "-p", str(process)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
    found = Stepped(process)
    try:
        end = time.monotonic() + _TIMEOUT
        while not found.is_traced():
            if tracer.poll() is not None:
                assert tracer.stderr is not None
                pytest.skip(f"needs to trace a process: {tracer.stderr.read().decode()}")
            assert time.monotonic() < end
            time.sleep(0.01)
        yield found
    finally:
        tracer.terminate()
        tracer.communicate()
        os.kill(process, signal.SIGCONT)
