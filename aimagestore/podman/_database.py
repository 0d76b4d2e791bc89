"""Reads the storage driver that podman has recorded in its own database.

podman prefers it to the configured one, because its containers are there.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import quote

from . import _bolt


@dataclass(frozen=True, slots=True)
class Recorded:
    """What podman has recorded.

    :ivar path: the database
    :ivar graph_root: the graph root that the database belongs to
    :ivar driver: the storage driver; empty if podman chose one by itself
    """

    path: str
    graph_root: str
    driver: str


def read_database(graph_root: str) -> Recorded | None:
    """Return what the database in a graph root says; ``None`` without one. Blocking."""
    for path, read in (
        (os.path.join(graph_root, "libpod/bolt_state.db"), _read_bolt),
        (os.path.join(graph_root, "db.sql"), _read_sqlite),
    ):
        if os.path.exists(path):
            found = read(path)
            if found is not None:
                return Recorded(path, *found)
    return None


def _read_sqlite(path: str) -> tuple[str, str] | None:
    try:
        # Read-only, so that no journal is made. A reader may have to wait for a writer.
        uri = f"file:{quote(path)}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=5)) as connection:
            row = connection.execute("SELECT GraphRoot, GraphDriver FROM DBConfig").fetchone()
    except sqlite3.Error:
        return None
    return None if row is None else (str(row[0]), str(row[1]))


def _read_bolt(path: str) -> tuple[str, str] | None:
    values = _bolt.read_bucket(path, b"runtime-config")
    if values is None:
        return None
    root, driver = (values.get(key, b"") for key in (b"graph-root", b"graph-driver-name"))
    return os.fsdecode(root), driver.decode(errors="replace")
