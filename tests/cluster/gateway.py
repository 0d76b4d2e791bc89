"""An S3 gateway in front of the object store. A test decides what some requests are answered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Answer(NamedTuple):
    """What a client gets instead of the object store's answer."""

    status: int
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()


Rule = Callable[[str, str, str], Answer | None]
"""Takes a request's method, path and query; returns ``None`` to let it through."""


def error(status: int, code: str) -> Answer:
    """Return an error as S3 spells it."""
    return Answer(status, f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>")


def lets_through(method: str, path: str, query: str) -> Answer | None:
    return None


class Gateway:
    """Forwards requests that its rule does not answer, during a ``with`` block.

    :ivar rule: answers requests, or lets them through
    """

    def __init__(self, target: int) -> None:
        self.rule: Rule = lets_through
        self._target = target
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True)

    @property
    def url(self) -> str:
        """The URL of its endpoint."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        address = urlsplit(handler.path)
        answer = self.rule(handler.command, address.path, address.query)
        if answer is not None:
            status, data, headers = answer.status, answer.body.encode(), list(answer.headers)
        else:
            connection = HTTPConnection("127.0.0.1", self._target, timeout=20)
            # With the headers as they are, the signature stays valid.
            connection.request(handler.command, handler.path, body, dict(handler.headers.items()))
            response = connection.getresponse()
            status, data = response.status, response.read()
            headers = [h for h in response.getheaders() if h[0].lower() not in _HOP_BY_HOP]
            connection.close()
        if handler.command == "HEAD":
            data = b""
        handler.send_response_only(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _serve(self) -> None:
                gateway._answer(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
