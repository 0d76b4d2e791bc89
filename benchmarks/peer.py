"""What every peer written in Python has in common."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

Reply = dict[str, Any]


class Unsupported(Exception):  # noqa: N818 (it is an answer)
    """The peer has nothing to measure here."""


class Peer:
    """One way to keep images. Each ``do_…`` is a task that the driver asks for."""

    async def do(self, task: str, **arguments: Any) -> Reply:
        """Do a task, and reply with the seconds that it took, among others."""
        function: Callable[..., Awaitable[Reply]] | None = getattr(self, f"do_{task}", None)
        if function is None:
            raise Unsupported(task)
        return await function(**arguments)


class Stopwatch:
    """Seconds from now on."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def stop(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._start


def seconds(*samples: float) -> Reply:
    """The reply of most tasks."""
    return {"samples": samples}


def new_metadata(number: int) -> str:
    """Metadata that no image has yet, as long as usual."""
    return f'{{"signatures-sizes":{{"sha256:{number:064x}":[]}}}}'
