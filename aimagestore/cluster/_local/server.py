"""A server process on this machine."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from random import SystemRandom

HOST = "127.0.0.1"
"""The loopback interface: no other machine can connect."""

# Below the ephemeral ports, one of which the kernel might give to a connection meanwhile.
_PORTS = range(20_000, 32_000)
_TIMEOUT = 60
_PAUSE = 0.02


class ServersMissingError(RuntimeError):
    """A server program is not installed."""

    def __init__(self, program: str) -> None:
        super().__init__(f"{program} is not installed: install the extra: aimagestore[servers]")


def free_ports(count: int) -> list[int]:
    """Return ports of this machine on which nothing listens now."""
    found: list[int] = []
    with ExitStack() as sockets:
        for port in SystemRandom().sample(_PORTS, len(_PORTS)):
            taken = sockets.enter_context(socket.socket())
            with suppress(OSError):
                taken.bind((HOST, port))
                found.append(port)
            if len(found) == count:
                break
    return found


class Server(ABC):
    """A program in its own process, which can be stopped, killed and started again.

    :ivar root: its directory, with its data and its log
    """

    root: Path

    _process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def start(self) -> None:
        """Start it, and return when it serves."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it in order."""

    @abstractmethod
    def kill(self) -> None:
        """Kill it at once, as a crash would. Idempotent."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Return whether it serves."""

    @property
    def log(self) -> Path:
        """The file with its output."""
        return self.root / "log"

    def _launch(
        self,
        command: Sequence[str],
        user: int | None = None,
        group: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        with self.log.open("ab") as log:
            # In its own session, so that Ctrl-C does not reach it.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.root,
                env=environment,
                user=user,
                group=group,
                extra_groups=None if group is None else [],
                start_new_session=True,
            )
        until = time.monotonic() + _TIMEOUT
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"{command[0]} does not serve:\n{self._end_of_log()}")
            time.sleep(_PAUSE)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(_TIMEOUT)
            self._process = None

    def _end_of_log(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
