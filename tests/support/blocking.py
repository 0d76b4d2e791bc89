"""Changes and locks of a store in the thread of the test itself, for tests that interleave them."""

from __future__ import annotations

import threading
from pathlib import Path

from aimagestore._core import mutations
from aimagestore._core.content import InlineContent
from aimagestore._core.mutations import Mutation
from aimagestore._directory.engine import DirectoryEngine
from aimagestore._engine.lock import AnyGrant, AnyLine


def acquire(line: AnyLine) -> AnyGrant:
    """Wait in line for a lock."""
    decided = threading.Event()
    request = line.request(decided.set)
    decided.wait()
    return request.take()


def commit(path: Path, *wanted: Mutation) -> None:
    """Commit mutations, as another program would; raise the first error."""
    engine = DirectoryEngine.opened(str(path), read_only=False)
    try:
        grant = engine.lock.try_acquire()
        assert grant is not None, "the lock is free"
        try:
            outcomes = engine.writer.commit(grant, wanted)
        finally:
            grant.release()
    finally:
        engine.close()
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


def create(image_id: str, key: str, data: bytes) -> Mutation:
    """Create an image with one item."""
    return mutations.create(image_id, big_data={key: InlineContent.of(data)})


def replace(image_id: str, key: str, data: bytes) -> Mutation:
    """Replace the content of an item."""
    return mutations.set_big_data(image_id, key, InlineContent.of(data))


def delete(image_id: str) -> Mutation:
    """Delete an image."""
    return mutations.delete(image_id)
