"""A TCP proxy in front of a server, which fails as a network does."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Self

_CHUNK = 1 << 16
# With this linger option, closing a connection resets it.
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards requests to a server and answers to clients, until a test makes it fail.

    :ivar port: the port on which it listens
    :ivar answered: the number of bytes that the server has answered
    """

    def __init__(self, target: int, listener: socket.socket | None = None) -> None:
        self._target = target
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.answered = 0
        self._mutex = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._is_open = threading.Event()
        self._is_open.set()
        self._is_refusing = False
        self._before_answers: Callable[[], object] = _nothing
        self._allowance: int | None = None
        self._unanswered: bytes | None = None
        self._silenced: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._listener)
        self.cut()
        self._is_open.set()

    def cut(self) -> None:
        """Reset all connections. Later ones work."""
        with self._mutex:
            ends, self._ends = self._ends, set()
        for end in ends:
            _reset(end)

    def cut_after(self, size: int) -> None:
        """Reset all connections as soon as clients have sent ``size`` more bytes."""
        with self._mutex:
            self._allowance = size

    def lose_answer_to(self, text: bytes) -> None:
        """Forward the next request with this text, and reset all connections at its answer."""
        with self._mutex:
            self._unanswered = text

    @property
    def has_lost_it(self) -> bool:
        """Whether :meth:`lose_answer_to` has lost an answer."""
        return bool(self._silenced)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Accept everything and forward nothing during the block; forward it afterwards."""
        self._is_open.clear()
        try:
            yield
        finally:
            self._is_open.set()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Reset every connection, old and new, during the block."""
        self._is_refusing = True
        self.cut()
        try:
            yield
        finally:
            self._is_refusing = False

    @contextmanager
    def answering_after(self, wait: Callable[[], object]) -> Iterator[None]:
        """Call a function before each piece of an answer is forwarded, during the block."""
        self._before_answers = wait
        try:
            yield
        finally:
            self._before_answers = _nothing

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            if self._is_refusing:
                _reset(client)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                _reset(client)
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._mutex:
                self._ends |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(
                    target=self._pass_on, args=(source, sink, source is client), daemon=True
                ).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_client: bool) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                self._is_open.wait()
                if not is_client:
                    with self._mutex:
                        self.answered += len(data)
                    self._before_answers()
                if self._is_cut_by(data, source, sink, is_client):
                    self.cut()
                    return
                sink.sendall(data)
        # Neither protocol closes one direction only.
        for end in (sink, source):
            with self._mutex:
                self._ends.discard(end)
            _close(end)

    def _is_cut_by(
        self, data: bytes, source: socket.socket, sink: socket.socket, is_client: bool
    ) -> bool:
        with self._mutex:
            if not is_client:
                return source in self._silenced
            if self._unanswered is not None and self._unanswered in data:
                self._unanswered = None
                self._silenced.add(sink)
            if self._allowance is None:
                return False
            self._allowance -= len(data)
            if self._allowance >= 0:
                return False
            self._allowance = None
            return True


def _nothing() -> None:
    pass


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    _close(end)


def _close(end: socket.socket) -> None:
    # This wakes the thread that waits for data, which closing alone does not.
    with suppress(OSError):
        end.shutdown(socket.SHUT_RD)
    end.close()
