"""Long loops that let the interpreter's other threads in."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

# Long enough for a thread that waits for the interpreter lock to wake up and take it.
_PAUSE = 0.0001


def patiently(items: Iterable[T], every: int) -> Iterator[T]:
    """Go through the items, with a short pause after every so many.

    A thread that computes gives the interpreter lock up only when another has waited 5 ms for it,
    and an event loop asks for it several times in a round.
    """
    for number, item in enumerate(items, 1):
        yield item
        if number % every == 0:
            time.sleep(_PAUSE)
