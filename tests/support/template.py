"""A process that has imported the program, and forks a copy of itself for each run.

Starting an interpreter and importing everything takes ten times as long as most commands. Each copy
gets the standard streams and the ignored signals that are requested for it.

``python -m tests.support.template FD`` serves the requests that it receives from a socket.
"""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

_LEAST = 100
"""The lowest descriptor of the template itself: a copy needs the low ones, as a new program has."""

_SECONDS = 60
"""How long an answer or an end is waited for."""


class Template:
    """Starts the process, and asks it for copies.

    :param flags: options of the interpreter
    :param variables: the environment of the process
    """

    def __init__(self, *flags: str, variables: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_SECONDS)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *flags, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=variables,
                cwd=Path(__file__).parents[2],
            )

    def start(
        self,
        *arguments: object,
        stdin: int,
        stdout: int,
        stderr: int,
        gates: tuple[int, int] | None = None,
        closed: Sequence[int] = (),
        ignored: Sequence[int] = (),
        prepare: str = "",
    ) -> int:
        """Start the program in a copy, and return its process ID.

        :param gates: two more descriptors, which are 3 and 4 in the copy
        :param closed: the descriptors of standard streams that are closed
        :param ignored: the signals that are ignored
        :param prepare: Python code that the copy executes first
        """
        request = {
            "arguments": list(map(str, arguments)),
            "closed": list(closed),
            "ignored": list(map(int, ignored)),
            "prepare": prepare,
        }
        files = [stdin, stdout, stderr, *(gates or ())]
        socket.send_fds(self._socket, [json.dumps(request).encode()], files)
        return self._answer("started")

    def run(
        self, *arguments: object, stdin: int | None, data: bytes, variables: Mapping[str, str]
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the program in a copy, in the current directory, and return its result.

        :param stdin: the standard input; ``None`` for a pipe with the data
        :param variables: the whole environment
        """
        reading, writing = os.pipe()
        prepare = (
            f"import os; os.chdir({os.getcwd()!r}); os.environ.clear(); "
            f"os.environ.update({dict(variables)!r})"
        )
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = self.start(
                *arguments,
                stdin=reading if stdin is None else stdin,
                stdout=output.fileno(),
                stderr=errors.fileno(),
                prepare=prepare,
            )
            os.close(reading)
            # The data may not fit into the pipe.
            writer = threading.Thread(target=_write, args=(writing, data))
            writer.start()
            code = self.wait(process)
            writer.join()
            for file in (output, errors):
                file.seek(0)
            parts = [str(argument) for argument in arguments]
            return subprocess.CompletedProcess(parts, code, output.read(), errors.read())

    def wait(self, process: int) -> int:
        """Wait for the end of a copy, and return its exit code as a shell reports it."""
        self._socket.send(json.dumps({"wait": process}).encode())
        return self._answer("ended")

    def _answer(self, kind: str) -> int:
        answer, _, number = self._socket.recv(100).decode().partition(" ")
        assert answer == kind, "the template has ended, or a copy of it was not waited for"
        return int(number)

    def close(self) -> None:
        """End the process and its copies."""
        self._socket.close()
        self._process.wait(_SECONDS)


def _write(pipe: int, data: bytes) -> None:
    with suppress(BrokenPipeError), open(pipe, "wb") as file:
        file.write(data)


def _end(copies: Iterable[int]) -> NoReturn:
    for copy in copies:
        with suppress(ProcessLookupError):
            os.kill(copy, signal.SIGKILL)
    os._exit(0)


def serve(requests: socket.socket) -> None:
    """Serve requests until the socket is closed, then exit. Return only in copies."""
    copies: set[int] = set()
    while True:
        message, files, *_ = socket.recv_fds(requests, 1 << 20, 5)
        if not message:
            _end(copies)
        request = json.loads(message)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            copies.discard(request["wait"])
            code = os.waitstatus_to_exitcode(status)
            with suppress(BrokenPipeError):  # the other end was closed
                requests.send(f"ended {code if code >= 0 else 128 - code}".encode())
            continue
        # Moved up, because the copy needs the low numbers.
        kept = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _LEAST) for file in files]
        for file in files:
            os.close(file)
        copy = os.fork()
        if not copy:
            requests.close()
            _become_ready(request, kept)
            return
        copies.add(copy)
        for file in kept:
            os.close(file)
        requests.send(f"started {copy}".encode())


def _become_ready(request: Any, files: Sequence[int]) -> None:
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    for number in request["closed"]:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)  # as the interpreter does it
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    sys.argv = ["aimagestore", *request["arguments"]]
    exec(request["prepare"], {})


def _run(main: Callable[[], object]) -> NoReturn:
    """Run the program, and exit with the interpreter's codes but without its cleanup."""
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            code = 120
    os._exit(code)


if __name__ == "__main__":
    # Commands import these when they need them. Here it is done once for all copies.
    import aiofiles.tempfile  # noqa: F401
    from click.testing import CliRunner

    import aimagestore.oci  # noqa: F401
    from aimagestore.__main__ import main
    from aimagestore._cli.app import app

    _number = int(sys.argv[1])
    _high = fcntl.fcntl(_number, fcntl.F_DUPFD_CLOEXEC, _LEAST)
    os.close(_number)
    # A command imports more when it runs.
    with tempfile.TemporaryDirectory() as directory:
        for name in ("create", "images", "check", "--help"):
            CliRunner().invoke(app, ["--root", f"{directory}/store", name])
    logging.getLogger().handlers.clear()  # a copy logs to its own standard error
    while threading.active_count() > 1:  # a copy would lack these threads
        threading.enumerate()[-1].join(_SECONDS)
    gc.freeze()  # so that collections do not write to the pages that copies share
    serve(socket.socket(fileno=_high))
    _run(main)
