"""What all peers written in Python have in common."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

Reply = dict[str, Any]


class Unsupported(Exception):  # noqa: N818 (it is an answer)
    """The peer does not have this task."""


class Peer:
    """One way to keep images. Each ``do_…`` method is a task that the driver requests."""

    async def do(self, task: str, **arguments: Any) -> Reply:
        """Do a task, and return the reply, which has the seconds that it took."""
        function: Callable[..., Awaitable[Reply]] | None = getattr(self, f"do_{task}", None)
        if function is None:
            raise Unsupported(task)
        return await function(**arguments)


class Stopwatch:
    """Measures seconds from its creation on."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def stop(self) -> float:
        """Return the seconds since its creation."""
        return time.perf_counter() - self._start


def seconds(*samples: float) -> Reply:
    """Return the reply of most tasks, with the seconds of each sample."""
    return {"samples": samples}


def new_metadata(number: int) -> str:
    """Return metadata of the usual length that no image has yet."""
    return f'{{"signatures-sizes":{{"sha256:{number:064x}":[]}}}}'
