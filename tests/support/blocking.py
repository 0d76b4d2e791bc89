"""Engines, locks and commits of stores, used in the test's own thread to interleave them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from aimagestore import ImageStore
from aimagestore._async.store import core_of
from aimagestore._core import mutations
from aimagestore._core.content import InlineContent
from aimagestore._core.mutations import Mutation
from aimagestore._directory.engine import DirectoryEngine
from aimagestore._engine.lock import AnyGrant, AnyLine


def engine_of(store: ImageStore) -> Any:
    """Return the engine of an open store; untyped, because tests use its private parts."""
    return core_of(store).engine


def acquire(line: AnyLine) -> AnyGrant:
    """Wait for a lock, and return the grant."""
    decided = threading.Event()
    request = line.request(decided.set)
    decided.wait()
    return request.take()


def commit(path: Path, *wanted: Mutation) -> None:
    """Commit mutations to a directory as another program would, or raise the first error."""
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
    """Return the mutation that creates an image with one item."""
    return mutations.create(image_id).with_items({key: InlineContent.of(data)})


def replace(image_id: str, key: str, data: bytes) -> Mutation:
    """Return the mutation that replaces the content of an item."""
    return mutations.set_big_data(image_id, key, InlineContent.of(data))


def delete(image_id: str) -> Mutation:
    """Return the mutation that deletes an image."""
    return mutations.delete(image_id)
