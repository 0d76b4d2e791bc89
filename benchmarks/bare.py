"""The floors of a cluster: minimal loops around its clients that send the same bytes."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import obstore
import psycopg
from obstore.store import S3Store, from_url

from .images import record
from .peer import Peer, Reply, Stopwatch, new_metadata, seconds
from .place import Place

CHUNK = 1024 * 1024

_TABLES = """
CREATE TABLE IF NOT EXISTS bare_version (version bigint);
CREATE TABLE IF NOT EXISTS bare_images (id text PRIMARY KEY, version bigint, record text);
CREATE TABLE IF NOT EXISTS bare_names (name text PRIMARY KEY, id text);
"""


class ClusterFloors(Peer):
    """One connection to the database and one client of the bucket, in one thread."""

    _serial = 0

    def __init__(self, root: str) -> None:
        """Connect, and create tables for a version, records and names."""
        place = Place.parse(root)
        self._connection = psycopg.connect(place.records_url)
        self._bucket = from_url(place.blobs_url, client_options={"allow_http": True})
        assert isinstance(self._bucket, S3Store)
        self._connection.execute(_TABLES)
        self._connection.execute("INSERT INTO bare_version VALUES (0)")
        self._connection.commit()

    async def do_open(self, root: str) -> Reply:
        """Connect, and run one query."""
        url = Place.parse(root).records_url
        watch = Stopwatch()
        with psycopg.connect(url) as connection:
            connection.execute("SELECT 1")
        return seconds(watch.stop())

    async def do_commit(self, refs: Sequence[str]) -> Reply:
        """Commit one record in each transaction."""
        samples = []
        for _ in refs:
            watch = Stopwatch()
            self._commit(1)
            samples.append(watch.stop())
        return seconds(*samples)

    async def do_create(self, images: int, tasks: int) -> Reply:
        """Commit as many records in each transaction as the library has tasks."""
        watch = Stopwatch()
        for _ in range(images // tasks):
            self._commit(tasks)
        return seconds(watch.stop() / images)

    def _commit(self, images: int) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute("UPDATE bare_version SET version = version + 1 RETURNING version")
            version = cursor.fetchone()
            assert version is not None
            made = [self._record() for _ in range(images)]
            with cursor.copy("COPY bare_images FROM STDIN") as copy:
                for each in made:
                    copy.write_row((each["id"], version[0], json.dumps(each)))
            with cursor.copy("COPY bare_names FROM STDIN") as copy:
                for each in made:
                    copy.write_row((each["names"][0], each["id"]))
        self._connection.commit()

    def _record(self) -> dict[str, Any]:
        self._serial += 1
        image_id = secrets.token_hex(32)
        return {
            "id": image_id,
            "names": [f"localhost/{image_id}"],
            "metadata": new_metadata(self._serial),
            "created": record(0)["created"],
        }

    async def do_put(self, size: int) -> Reply:
        """Send an object in parts."""
        watch = Stopwatch()
        self._put("bare", size)
        return seconds(watch.stop())

    async def do_make_item(self, size: int) -> Reply:
        """Put an object there to be read."""
        self._put("item", size)
        return {}

    async def do_read(self, *, verify: bool) -> Reply:
        """Receive an object."""
        watch = Stopwatch()
        for _ in obstore.get(self._bucket, "item").stream(min_chunk_size=CHUNK):
            pass
        return seconds(watch.stop())

    def _put(self, key: str, size: int) -> None:
        obstore.put(self._bucket, key, _chunks(size), use_multipart=True)


def _chunks(size: int) -> Iterator[bytes]:
    chunk = os.urandom(min(size, CHUNK))
    for _ in range(size // len(chunk)):
        yield chunk
