"""Cancellation at a certain step of an awaitable."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any

import anyio


class Steps:
    """Awaits something, and cancels a scope when it has been suspended ``steps`` times."""

    def __init__(self, call: Awaitable[object], scope: anyio.CancelScope, steps: int) -> None:
        self._call = call
        self._scope = scope
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, None]:
        inner: Any = self._call.__await__()
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                request = inner.send(value) if error is None else inner.throw(error)
            except StopIteration:
                return
            self._steps -= 1
            if self._steps == 0:
                self._scope.cancel()
            value = error = None
            try:
                value = yield request
            except BaseException as caught:
                error = caught
