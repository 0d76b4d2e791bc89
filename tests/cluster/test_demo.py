"""The demo of a cluster's store, on servers of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..peers.peer import Running
from ..support.stores import becomes_true

if TYPE_CHECKING:
    from .servers import Servers

COMMAND = (sys.executable, "-m", "aimagestore.cluster")


@pytest.mark.parametrize("backend", ["asyncio", pytest.param("trio", marks=pytest.mark.thorough)])
def test_the_demo_ends_without_an_error_or_a_loss(servers: Servers, backend: str) -> None:
    environment = {n: v for n, v in os.environ.items() if n not in servers.local.environment}
    result = subprocess.run(
        [*COMMAND, "--backend", backend],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "nothing is lost" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("stopped the servers")
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("end", "backend"),
    [
        (signal.SIGINT, "trio"),
        pytest.param(signal.SIGTERM, "asyncio", marks=pytest.mark.thorough),
        pytest.param(signal.SIGHUP, "asyncio", marks=pytest.mark.thorough),
    ],
)
def test_servers_that_are_kept_serve_others_until_a_signal(
    servers: Servers, end: signal.Signals, backend: str
) -> None:
    """Another terminal can open the store with the printed settings. The end leaves no directory.

    A usual run ends the demo as Ctrl-C does.
    """
    kept = Running(*COMMAND, "--keep", "--backend", backend)
    try:
        said = ""
        while "stops the servers" not in said:
            assert kept.process.stdout is not None
            said += kept.process.stdout.readline()
        script = re.findall(r"\. (\S+)/environment", said)[0]
        location = re.findall(r"ClusterLocation\(.*\)", said)[0]
        opened = subprocess.run(
            ["sh", "-c", f'. "{script}/environment"; exec "{sys.executable}" -c "{OPEN}"'],
            env=os.environ | {"LOCATION": location},
            check=True,
            capture_output=True,
            text=True,
        )
        assert opened.stdout == "202\n"
    finally:
        kept.process.send_signal(end)
        kept.end()
        for stream in (kept.process.stdin, kept.process.stdout, kept.process.stderr):
            assert stream is not None
            stream.close()
    assert not Path(script).exists()


ENDS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
STEPS = ["start PostgreSQL", "create the tables", "kill PostgreSQL"]
PAUSES = [0, 0.3, 1]


@pytest.mark.parametrize(
    ("end", "step", "pause"),
    [
        pytest.param(
            end,
            step,
            pause,
            # Each signal, each step and each pause once.
            marks=() if (e + s) % 3 == 1 and (s + p) % 3 == 2 else pytest.mark.thorough,
        )
        for e, end in enumerate(ENDS)
        for s, step in enumerate(STEPS)
        for p, pause in enumerate(PAUSES)
    ],
)
def test_a_signal_ends_the_demo_at_any_moment(
    servers: Servers, end: signal.Signals, step: str, pause: float
) -> None:
    """It leaves no process and no directory, and prints no error.

    A usual run leaves out most combinations of a signal with a moment.
    """
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)  # PostgreSQL may run as another user
        demo = subprocess.Popen(
            COMMAND,
            env=os.environ | {"TMPDIR": directory},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert demo.stdout is not None
        said = b""
        while step.encode() not in said:
            piece = os.read(demo.stdout.fileno(), 1000)
            assert piece, "the demo ended before this step"
            said += piece
        time.sleep(pause)
        # A terminal sends the signal to all processes of its session.
        os.killpg(demo.pid, end)
        rest, errors = demo.communicate(timeout=60)
        assert errors == b""
        # After its last step it may have ended before the signal.
        assert demo.returncode in {128 + end, 0 if step == "kill PostgreSQL" else 128 + end}
        assert b"stopped the servers" in rest
        assert os.listdir(directory) == []
        assert becomes_true(lambda: not _processes_in(directory), 1)


# The signal reaches the thread of the demo, which then waits until it is closed.
IN_ANOTHER_THREAD = """
import signal, sys, threading
from aimagestore.cluster import _demo
end = int(sys.argv.pop())
class Servers:
    def __init__(self):
        self.ended = threading.Event()
    def __enter__(self):
        signal.pthread_kill(threading.get_ident(), end)
        self.ended.wait()
    close = lambda self: self.ended.set()
_demo.LocalCluster = Servers
_demo.main()
"""


@pytest.mark.parametrize("end", ENDS)
def test_a_signal_ends_the_demo_whichever_thread_it_comes_to(end: signal.Signals) -> None:
    result = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_THREAD, str(int(end))],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (128 + end, b"")
    assert b"stopped the servers" in result.stdout


def _processes_in(directory: str) -> list[str]:
    """Return the processes that work in a directory, which may no longer exist."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(process / "cwd").startswith(directory):
                found.append(process.name)
    return found


OPEN = """
import os, anyio
from aimagestore import ImageStore
from aimagestore.cluster import ClusterLocation
async def main():
    async with ImageStore(eval(os.environ['LOCATION']), read_only=True) as store:
        print(len(await store.images()))
anyio.run(main)
"""
