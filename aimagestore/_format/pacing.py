"""Pacing of long loops, so that the interpreter's other threads can run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

# Long enough for a thread that waits for the interpreter lock to wake up and take it.
_PAUSE = 0.0001


def yield_gil_every(items: Iterable[T], number: int) -> Iterator[T]:
    """Iterate over the items, and sleep for a moment after each run of this length.

    A computing thread releases the interpreter lock only after another thread has waited 5 ms
    for it, and an event loop takes the lock several times per iteration.
    """
    for count, item in enumerate(items, 1):
        yield item
        if count % number == 0:
            yield_gil()


def yield_gil() -> None:
    """Sleep for a moment, so that another thread can take the interpreter lock."""
    time.sleep(_PAUSE)
