"""A process that strace stops after each of its steps."""

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

# A process stops after each of these system calls, which change files or come right before that.
_STEPS = "openat,mkdirat,pwrite64,rename,renameat,renameat2,unlink,unlinkat"
_TIMEOUT = 60


class Stepped:
    """A process that stops after each step. The kernel has no event for that, so it is polled."""

    def __init__(self, process: int) -> None:
        self._process = process

    async def step_through(
        self, change: Callable[[], object], look: Callable[[], Awaitable[object]]
    ) -> None:
        """Request a change of the process in a thread, and await ``look`` at each of its steps.

        :raises Exception: what ``look`` raised first, when the change is complete
        """
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
                        failure = error  # raised later: the process has to complete the change
                    os.kill(self._process, signal.SIGCONT)
                # The process may still be stopped after this: then one step is looked at twice.
                await anyio.sleep(0.002)
        if failure is not None:
            raise failure

    def _is_stopped(self) -> bool:
        return all(state in {"T", "t"} for state in self._values("State"))

    def is_traced(self) -> bool:
        """Return whether strace has attached to all of its threads."""
        return "0" not in self._values("TracerPid")

    def _values(self, field: str) -> list[str]:
        """Return a field of the status of each thread."""
        tasks = Path(f"/proc/{self._process}/task")
        texts = [(tasks / task / "status").read_text() for task in os.listdir(tasks)]
        return [text.partition(f"\n{field}:\t")[2].split(maxsplit=1)[0] for text in texts]


@contextmanager
def stepped(process: int) -> Iterator[Stepped]:
    """Stop a process after each of its steps, for the block."""
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
