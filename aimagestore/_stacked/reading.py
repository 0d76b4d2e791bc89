"""Names the lock that a reader waits for, if it has to wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .._engine.protocol import ChangeUnderWayError, Engine


@contextmanager
def reading(engine: Engine) -> Iterator[None]:
    """Read one of several stores inside the block: an error that says to wait has its lock."""
    try:
        yield
    except ChangeUnderWayError as error:
        if error.read_lock is None:
            error.read_lock = engine.read_lock
        raise
