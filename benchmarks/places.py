"""The stores of a cluster, with the number of images that a scenario needs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import LiteralString

import psycopg
from psycopg import sql

from aimagestore import ImageStore
from aimagestore.cluster import ClusterLocation, migrate
from aimagestore.cluster._local.cluster import LocalCluster

from .images import identity, manifest_digest, name, record
from .place import Place


@dataclass
class Places:
    """The stores of one run, each made when it is first needed."""

    local: LocalCluster
    _stores: dict[int, Place] = field(default_factory=dict)

    def store(self, size: int) -> Place:
        """Return a store with ``size`` images, and whatever else scenarios have put there."""
        if size not in self._stores:
            database = f"store{size}"
            self.local.postgres.create_database(database)
            url = self.local.postgres.url(database)
            place = Place(url, self.local.blobs_url(database))
            migrate(url)
            # The first opening gives the store its identity. After loading, the store would refuse
            # the bucket, which lacks the objects.
            asyncio.run(_open(place))
            _load(url, size)
            self._stores[size] = place
        return self._stores[size]


@contextmanager
def serving() -> Iterator[Places]:
    """Run servers for the block, and set the environment for processes started in it."""
    local = LocalCluster()
    # A quarter of the memory of a small machine, as operators set it.
    local.postgres.options["shared_buffers"] = "1GB"
    with local:
        os.environ.update(local.environment)
        yield Places(local)


async def _open(place: Place) -> None:
    async with ImageStore(ClusterLocation(place.records_url, place.blobs_url)):
        pass


def _load(url: str, size: int) -> None:
    """Put records straight into the tables; the objects of their items are not there."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        for table, rows in _TABLES.items():
            with cursor.copy(sql.SQL("COPY {} FROM STDIN").format(sql.SQL(table))) as copy:
                for number in range(size):
                    for row in rows(number):
                        copy.write_row(row)
        cursor.execute("UPDATE image_store SET images = %s, last_place = %s", [size, size])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


Rows = Iterator[tuple[object, ...]]


def _images(number: int) -> Rows:
    text = json.dumps(record(number), separators=(",", ":"))
    yield identity(number), number + 1, text


def _names(number: int) -> Rows:
    yield hashlib.sha256(name(number).encode()).digest(), identity(number)


def _digests(number: int) -> Rows:
    yield manifest_digest(number), identity(number)


def _items(number: int) -> Rows:
    for key, size in record(number)["big-data-sizes"].items():
        yield uuid.uuid4(), identity(number), key.encode(), size


_TABLES: dict[LiteralString, Callable[[int], Rows]] = {
    "images (id, place, record)": _images,
    "image_names (name, image_id)": _names,
    "image_digests (digest, image_id)": _digests,
    "image_items (blob, image_id, key, size)": _items,
}
