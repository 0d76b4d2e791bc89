"""A server process on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from typing import Any

HOST = "127.0.0.1"
"""The loopback interface: no other machine can connect."""

# Below the ephemeral ports, which the kernel gives to connections.
_PORTS = range(20_000, 32_000)
_TIMEOUT = 60
_PAUSE = 0.02


class ServersMissingError(RuntimeError):
    """A server program is not installed."""

    def __init__(self, program: str) -> None:
        super().__init__(f"{program} is not installed: install the extra: aimagestore[servers]")


class ServerEndedError(RuntimeError):
    """A server was ended for good while it was being prepared or started."""


def free_ports(count: int) -> list[int]:
    """Return ports of this machine on which nothing listens, and reserve them for this process.

    No other process gets them by this function, also while a server is down between two starts.
    """
    found: list[int] = []
    for port in SystemRandom().sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            break
        with suppress(OSError), socket.socket(socket.AF_UNIX) as reservation:
            # An abstract name exists as long as a process has it open.
            reservation.bind(f"\0aimagestore-port-{port}")
            with socket.socket() as taken:
                taken.bind((HOST, port))
            reservation.detach()  # nobody closes it before this process ends
            found.append(port)
    return found


class Server(ABC):
    """A program in its own process, which can be stopped, killed and started again.

    :ivar root: its directory, with its data and its log
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        # Guards what follows, so that nothing begins after :meth:`end`, in another thread.
        self._mutex = threading.Lock()
        self._is_over = False
        self._process: subprocess.Popen[bytes] | None = None
        self._commands: set[subprocess.Popen[bytes]] = set()

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

    def end(self) -> None:
        """Kill it and the commands that prepare it, for good. Callable in any thread."""
        with self._mutex:
            self._is_over = True
            for command in self._commands:
                with suppress(ProcessLookupError):  # it has just ended
                    os.killpg(command.pid, signal.SIGTERM)
        self.kill()

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
        with self.log.open("ab") as log, self._mutex:
            process = self._process = self._begin_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.root,
                env=environment,
                user=user,
                group=group,
                extra_groups=None if group is None else [],
            )
        until = time.monotonic() + _TIMEOUT
        while not self.is_ready():
            if process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"{command[0]} does not serve:\n{self._end_of_log()}")
            time.sleep(_PAUSE)

    def _begin_process(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Begin a process in a session of its own, which Ctrl-C does not reach.

        The mutex is held.

        :raises ServerEndedError: after :meth:`end`
        """
        if self._is_over:
            raise ServerEndedError
        # With options of any type, type checkers cannot tell that the pipes are binary.
        popen: Any = subprocess.Popen
        process: subprocess.Popen[bytes] = popen(command, start_new_session=True, **options)
        return process

    def _run_command(self, command: Sequence[str], data: bytes = b"", **options: Any) -> None:
        """Run a program that prepares the server.

        :raises subprocess.CalledProcessError: when it fails
        """
        pipe = subprocess.PIPE
        # Some programs write logs there, and leave them when they are killed.
        environment = os.environ | {"TMPDIR": str(self.root)}
        options = {"cwd": self.root, "env": environment, **options}
        with self._mutex:
            process = self._begin_process(command, stdin=pipe, stdout=pipe, stderr=pipe, **options)
            self._commands.add(process)
        try:
            output, errors = process.communicate(data)
        finally:
            with self._mutex:
                self._commands.discard(process)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, output, errors)

    def _end(self, number: signal.Signals) -> None:
        with self._mutex:
            process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(_TIMEOUT)

    def _end_of_log(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
