"""A small connection pooler in front of PostgreSQL."""

from __future__ import annotations

import itertools
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import psycopg

_TLS, _GSS, _CANCEL = 80877103, 80877104, 80877102

# The parameters of the server that a client is sent when its session begins.
_PARAMETERS = (
    "server_version",
    "server_encoding",
    "client_encoding",
    "standard_conforming_strings",
)


class Pooler:
    """Serves clients by sessions of the server during a ``with`` block.

    Like PgBouncer with ``ignore_startup_parameters``, it ignores the options of clients.

    :param url: the URL of the database; the password is in the environment
    :param shares: whether a client has a session only for the length of a transaction
    :param limit: the most sessions of the server; further clients wait for one
    :ivar port: the port on which it listens
    """

    def __init__(self, url: str, *, shares: bool, limit: int = 1000) -> None:
        self._url = url
        self._shares = shares
        self._free = threading.BoundedSemaphore(limit)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._mutex = threading.Lock()
        self._numbers = itertools.count(1_000_000)
        self._idle: list[psycopg.Connection[Any]] = []
        self._in_use: dict[int, psycopg.Connection[Any] | None] = {}
        self._ends: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RD)
        self._listener.close()
        with self._mutex:
            ends = list(self._ends)
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for connection in self._idle:
            connection.close()

    def _start(self, function: Any, *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._mutex:
                self._ends.add(client)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        number = next(self._numbers)
        try:
            with suppress(OSError, EOFError, psycopg.Error):
                if self._begin(client, number):
                    self._pass_on(client, number)
        finally:
            self._release(number, is_over=True)
            with self._mutex:
                self._ends.discard(client)
            client.close()

    def _begin(self, client: socket.socket, number: int) -> bool:
        """Answer a client's first packets, and return whether its session has begun.

        A client may only ask to cancel the statement of another session.
        """
        while True:
            (length,) = struct.unpack("!I", _read(client, 4))
            packet = _read(client, length - 4)
            (code,) = struct.unpack("!I", packet[:4])
            if code in {_TLS, _GSS}:
                client.sendall(b"N")
                continue
            if code == _CANCEL:
                self._cancel(struct.unpack("!I", packet[4:8])[0])
                return False
            break
        with self._acquired(number) as connection:
            known = {name: connection.info.parameter_status(name) for name in _PARAMETERS}
        answer = _message(b"R", struct.pack("!I", 0))
        for name, value in known.items():
            answer += _message(b"S", f"{name}\0{value}\0".encode())
        answer += _message(b"K", struct.pack("!II", number, 0)) + _message(b"Z", b"I")
        client.sendall(answer)
        return True

    def _cancel(self, number: int) -> None:
        with self._mutex:
            connection = self._in_use.get(number)
        if connection is not None:
            connection.cancel_safe()

    def _pass_on(self, client: socket.socket, number: int) -> None:
        answers = 0  # that the client still waits for
        while True:
            kind, message = _read_message(client)
            if kind == b"X":
                return
            with self._acquired(number) as connection:
                server = socket.fromfd(connection.pgconn.socket, socket.AF_INET, socket.SOCK_STREAM)
                server.setblocking(True)
                with server:
                    server.sendall(message)
                    answers += kind in {b"Q", b"S"}
                    status = b"T"
                    while answers or status != b"I":
                        readable, _, _ = select.select([client, server], [], [])
                        if server in readable:
                            kind, message = _read_message(server)
                            client.sendall(message)
                            if kind == b"Z":
                                answers -= 1
                                status = message[-1:]
                        elif client in readable:
                            kind, message = _read_message(client)
                            if kind == b"X":
                                raise EOFError
                            server.sendall(message)
                            answers += kind in {b"Q", b"S"}

    @contextmanager
    def _acquired(self, number: int) -> Iterator[psycopg.Connection[Any]]:
        with self._mutex:
            connection = self._in_use.get(number) or (self._idle.pop() if self._idle else None)
        if connection is None:
            if not self._free.acquire(timeout=60):
                raise EOFError
            try:
                connection = psycopg.connect(self._url, autocommit=True)
            except psycopg.Error:
                self._free.release()
                raise
        with self._mutex:
            self._in_use[number] = connection
        yield connection
        self._release(number, is_over=False)

    def _release(self, number: int, *, is_over: bool) -> None:
        """Release a client's session, or close it if the client has left."""
        if not (is_over or self._shares):
            return
        with self._mutex:
            connection = self._in_use.pop(number, None)
            if connection is not None and not is_over:
                self._idle.append(connection)
        if connection is not None and is_over:
            connection.close()
            self._free.release()


def _message(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("!I", len(payload) + 4) + payload


def _read_message(source: socket.socket) -> tuple[bytes, bytes]:
    head = _read(source, 5)
    (length,) = struct.unpack("!I", head[1:])
    return head[:1], head + _read(source, length - 4)


def _read(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = source.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data
