"""A server program that runs for as long as somebody here wants it to."""

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
"""Nobody but this machine is served."""

# Below those that the kernel gives to connections, which might take one before a server does.
_PORTS = range(20_000, 32_000)
_PATIENCE = 60
_PAUSE = 0.02


class ServersMissingError(RuntimeError):
    """The server programs are not installed; the message says how to get them."""

    def __init__(self, program: str) -> None:
        super().__init__(f"needs {program}: pip install 'aimagestore[servers]'")


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on now."""
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
    """A program in a process of its own, that can be stopped, killed and started again.

    :ivar root: its directory, with all its data and the log of what it said
    """

    root: Path

    _process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def start(self) -> None:
        """Begin to serve; returns when it does."""

    @abstractmethod
    def stop(self) -> None:
        """End as an operator would end it."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once, without a chance to save anything. Idempotent."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it serves."""

    @property
    def log(self) -> Path:
        """What it has said."""
        return self.root / "log"

    def _launch(
        self,
        command: Sequence[str],
        user: int | None = None,
        group: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        with self.log.open("ab") as log:
            # A session of its own: a Ctrl-C for us is not for it.
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
        until = time.monotonic() + _PATIENCE
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"{command[0]} does not serve:\n{self._last_words()}")
            time.sleep(_PAUSE)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(_PATIENCE)
            self._process = None

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
