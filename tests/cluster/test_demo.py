"""The command that shows a cluster's store on servers of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..peers.peer import Running

if TYPE_CHECKING:
    from .servers import Servers

COMMAND = (sys.executable, "-m", "aimagestore.cluster")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_demo(servers: Servers, backend: str) -> None:
    environment = {n: v for n, v in os.environ.items() if n not in servers.local.environment}
    told = subprocess.run(
        [*COMMAND, "--backend", backend],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "nothing is lost" in told.stdout
    assert told.stdout.splitlines()[-1].startswith("stopped the servers")
    assert told.stderr == ""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_servers_that_are_kept(servers: Servers, end: signal.Signals) -> None:
    """Another terminal finds the store with what it is told; the end leaves nothing."""
    kept = Running(*COMMAND, "--keep")
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


OPEN = """
import os, anyio
from aimagestore import ImageStore
from aimagestore.cluster import ClusterLocation
async def main():
    async with ImageStore(eval(os.environ['LOCATION']), read_only=True) as store:
        print(len(await store.images()))
anyio.run(main)
"""
