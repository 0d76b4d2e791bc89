"""Queries of the tables. Each is one statement, so its result is of one commit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from .._core.record import Record, read
from ..errors import StoreCorruptError
from ._history import HEAD, Head, History
from ._sessions import Cursor, Session

PAGE = 1000
"""Records that are fetched at once."""

CHANGES_MAX = 2000
"""Changed images that are listed one by one; with more, everything may have changed."""

# A prefix with this comes after every ID with that prefix: no ID is as long, and no character comes
# later.
_LAST = "\U0010ffff" * 64

# One row with the head, to be joined with what is looked up.
_WITH_HEAD = f"WITH h AS MATERIALIZED (SELECT {HEAD} AS head FROM image_store s)"

_LAST_COMMIT = f"SELECT {HEAD} FROM image_store s"

_TABLE_NUMBER = f"SELECT {HEAD}, s.tableoid::bigint FROM image_store s"

_LAST_PLACE = f"SELECT {HEAD}, s.last_place FROM image_store s"

_TOUCHED_SINCE = f"SELECT {HEAD}, s.touched > %(when)s FROM image_store s"

_CHANGED = """ARRAY(
    SELECT image_id FROM image_changes WHERE version > %(known)s ORDER BY version LIMIT %(max)s
)"""

_CHANGES_SINCE = f"SELECT {HEAD}, {_CHANGED} FROM image_store s"

_FIND = f"""
    {_WITH_HEAD} SELECT h.head, {_CHANGED}, f.rank, f.id, f.record FROM h LEFT JOIN (
        SELECT 0 AS rank, id, record FROM images WHERE id = %(id)s
        UNION ALL
        SELECT 1, i.id, i.record FROM image_names n JOIN images i ON i.id = n.image_id
            WHERE n.name = %(name)s
        UNION ALL
        (SELECT 2, id, record FROM images WHERE id > %(id)s AND id < %(end)s ORDER BY id LIMIT 2)
    ) f ON true ORDER BY f.rank
"""

_PREFIX = f"""
    {_WITH_HEAD} SELECT h.head, i.id FROM h LEFT JOIN (
        SELECT id FROM images WHERE id >= %(prefix)s AND id < %(end)s ORDER BY id LIMIT %(limit)s
    ) i ON true ORDER BY i.id
"""

_DIGEST = f"""
    {_WITH_HEAD} SELECT h.head, i.id, i.record FROM h LEFT JOIN (
        image_digests d JOIN images i ON i.id = d.image_id
    ) ON d.digest = %(digest)s ORDER BY i.place
"""

_NAME = f"""
    {_WITH_HEAD} SELECT h.head, n.image_id FROM h LEFT JOIN image_names n ON n.name = %(name)s
"""

# An image comes once, however many of its names are given: its record has all of them.
_PREFETCH = """
    SELECT i.id, i.record FROM images i WHERE i.id IN (
        SELECT unnest(%(ids)s::text[])
        UNION
        SELECT n.image_id FROM image_names n WHERE n.name = ANY(%(names)s::bytea[])
    )
"""

_DIGEST_IDS = f"""
    {_WITH_HEAD} SELECT h.head, i.id FROM h LEFT JOIN (
        image_digests d JOIN images i ON i.id = d.image_id
    ) ON d.digest = %(digest)s ORDER BY i.place
"""

_RECORDS = "SELECT i.id, i.record FROM images i WHERE i.id = ANY(%(ids)s::text[]) ORDER BY i.place"

_ITEM = f"""
    {_WITH_HEAD} SELECT h.head, f.id, f.record, b.blob FROM h LEFT JOIN (
        SELECT 0 AS rank, id, record FROM images WHERE id = %(id)s
        UNION ALL
        SELECT 1, i.id, i.record FROM image_names n JOIN images i ON i.id = n.image_id
            WHERE n.name = %(name)s
        ORDER BY rank LIMIT 1
    ) f ON true
    LEFT JOIN image_items b ON b.image_id = f.id AND b.key = %(key)s AND b.removed IS NULL
"""

_CONDEMNED = """
    SELECT u.blob FROM unnest(%(blobs)s::uuid[], %(are_stored)s::boolean[]) AS u (blob, is_stored)
    WHERE u.is_stored <> EXISTS (
        SELECT FROM image_items i WHERE i.blob = u.blob AND i.image_id <> ''
    ) OR EXISTS (SELECT FROM image_items i WHERE i.blob = u.blob AND i.image_id = '')
"""

# An object that no item has any more is used again only in the first half of the grace period.
# Later, a garbage collection might take it before the commit.
_STORED = """
    (
        SELECT blob, size FROM image_items
        WHERE digest = %(digest)s AND (%(size)s::bigint IS NULL OR size = %(size)s)
            AND blob <> ALL(%(lost)s) AND removed IS NULL LIMIT 1
    ) UNION ALL (
        SELECT blob, size FROM image_items
        WHERE digest = %(digest)s AND (%(size)s::bigint IS NULL OR size = %(size)s)
            AND blob <> ALL(%(lost)s) AND image_id <> ''
            AND removed > clock_timestamp() - (SELECT grace_period / 2 FROM image_store) LIMIT 1
    ) LIMIT 1
"""

_PAGE = f"""
    {_WITH_HEAD} SELECT h.head, p.place, p.id, p.record FROM h LEFT JOIN (
        SELECT place, id, record FROM images
        WHERE place > %(place)s AND place <= %(last)s ORDER BY place LIMIT %(page)s
    ) p ON true ORDER BY p.place
"""

# Larger than any place.
_NO_PLACE = 2**63 - 1

Execute = Callable[[LiteralString, Mapping[str, Any]], Cursor]


class ChangesSince(NamedTuple):
    """What has changed since a commit.

    :ivar version: the number of the last commit
    :ivar ids: the IDs of the changed images; ``None`` where they are not known
    """

    version: int
    ids: Sequence[str] | None


class Found(NamedTuple):
    """What a ref may stand for.

    :ivar record: the record with this ID, else the one with this name, else the only one whose ID
        has this prefix
    :ivar is_ambiguous: whether several IDs have this prefix, and nothing else matches
    :ivar by_name: whether the record was found by its name
    """

    record: Record | None
    is_ambiguous: bool
    by_name: bool


class Lookups:
    """Queries of one call, in one session.

    Most of them raise :exc:`StoreIdentityError` when the database does not continue the history
    that this store has seen.

    :param execute: executes a statement
    :ivar version: the number of the commit that the last result was of
    """

    def __init__(self, execute: Execute, history: History) -> None:
        self._execute = execute
        self._history = history
        # Read before the first statement: a whole transaction may see the tables of that moment.
        self._asked = history.seen
        self.version = -1

    def _ask(
        self, statement: LiteralString, values: Mapping[str, Any]
    ) -> tuple[Head, list[tuple[Any, ...]]]:
        """Return the head, and the rows without it."""
        rows = self._execute(statement, {**values, "seen": self._asked.version}).fetchall()
        head = self._history.accept(self._asked, rows[0][0])
        self.version = head.last.version
        return head, [row[1:] for row in rows]

    def _rows(self, statement: LiteralString, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Return the rows without the head, and without the empty row that stands for none."""
        _, rows = self._ask(statement, values)
        return [row for row in rows if row[0] is not None]

    def head(self) -> Head:
        """Return the head alone."""
        return self._ask(_LAST_COMMIT, {})[0]

    def table_number(self) -> int:
        """Return the number of the store's table, which no other store in the database has."""
        return int(self._rows(_TABLE_NUMBER, {})[0][0])

    def last_place(self) -> int:
        """Return the last place that a record has had."""
        return int(self._rows(_LAST_PLACE, {})[0][0])

    def touched_since(self, when: datetime) -> bool:
        """Return whether a writer has touched the store after that time."""
        return bool(self._rows(_TOUCHED_SINCE, {"when": when})[0][0])

    def changes_since(self, known: int) -> ChangesSince:
        """Return what has changed since a commit."""
        head, rows = self._ask(_CHANGES_SINCE, {"known": known, "max": CHANGES_MAX + 1})
        return _changes(known, head, rows[0][0])

    def find(self, ref: str, known: int) -> tuple[ChangesSince, Found]:
        """Return what a ref may stand for, and what has changed since a commit."""
        values = {
            "id": _text(ref),
            "name": hash_of(ref),
            "end": _end(ref),
            "known": known,
            "max": CHANGES_MAX + 1,
        }
        head, rows = self._ask(_FIND, values)
        ids, best = rows[0][:2]
        is_ambiguous = best == 2 and len(rows) > 1
        record = None if best is None or is_ambiguous else record_of(*rows[0][2:])
        return _changes(known, head, ids), Found(record, is_ambiguous, best == 1)

    def ids_with_prefix(self, prefix: str, limit: int) -> list[str]:
        """Return the first IDs with a prefix, sorted."""
        values = {"prefix": _text(prefix), "end": _end(prefix), "limit": limit}
        return [row[0] for row in self._rows(_PREFIX, values)] if prefix else []

    def ids_with_digest(self, digest: str) -> list[str]:
        """Return the IDs of the images that have a digest, the oldest first."""
        return [row[0] for row in self._rows(_DIGEST_IDS, {"digest": digest})]

    def with_digest(self, digest: str) -> list[Record]:
        """Return the records of the images that have a digest, the oldest first."""
        return [record_of(*row) for row in self._rows(_DIGEST, {"digest": digest})]

    def with_ids(self, ids: Sequence[str]) -> Iterator[Record]:
        """Iterate over the records with these IDs, fetched in pages."""
        for start in range(0, len(ids), PAGE):
            rows = self._execute(_RECORDS, {"ids": list(ids[start : start + PAGE])})
            yield from (record_of(*row) for row in rows)

    def owner_of(self, name: str) -> str | None:
        """Return the ID of the image with a name."""
        rows = self._rows(_NAME, {"name": hash_of(name)})
        return rows[0][0] if rows else None

    def page(self, place: int, size: int, last: int = _NO_PLACE) -> list[tuple[int, Record]]:
        """Return the records after a place, at most ``size``, with their places."""
        values = {"place": place, "page": size, "last": last}
        return [(row[0], record_of(*row[1:])) for row in self._rows(_PAGE, values)]

    def records(self) -> Iterator[Record]:
        """Iterate over all records, the oldest first. Other queries may come between two pages."""
        place = -1
        while page := self.page(place, PAGE):
            yield from (record for _, record in page)
            place = page[-1][0]

    def prefetch(self, ids: Iterable[str], names: Iterable[str]) -> list[Record]:
        """Return the records that have any of these IDs or names."""
        values = {
            "ids": [text for i in ids if (text := _text(i)) is not None],
            "names": [hash_of(name) for name in names],
        }
        return [record_of(*row) for row in self._execute(_PREFETCH, values)]

    def item(self, ref: str, key: str) -> tuple[Record, UUID | None] | None:
        """Return the record with an ID or name, and the object of one of its items."""
        values = {
            "id": _text(ref),
            "name": hash_of(ref),
            "key": key.encode("utf-8", "surrogatepass"),
        }
        rows = self._rows(_ITEM, values)
        return (record_of(*rows[0][:2]), rows[0][2]) if rows else None

    def condemned(self, blobs: Mapping[UUID, bool]) -> set[UUID]:
        """Return which of these objects a garbage collection has taken.

        :param blobs: the objects, and whether an item had each of them when it was chosen
        """
        values = {"blobs": list(blobs), "are_stored": list(blobs.values())}
        return {row[0] for row in self._execute(_CONDEMNED, values)}


def stored_blob(
    session: Session, digest: str, size: int | None, lost: Sequence[UUID]
) -> tuple[UUID, int] | None:
    """Return an object with a digest, and its size; ``None`` if there is none.

    :param size: the size that it must have; ``None`` for any
    :param lost: objects to leave out
    """
    values = {"digest": digest, "size": size, "lost": list(lost)}
    row = session.execute(_STORED, values).fetchone()
    return None if row is None else (row[0], row[1])


def _changes(known: int, head: Head, ids: Sequence[str]) -> ChangesSince:
    is_known = known >= head.pruned and len(ids) <= CHANGES_MAX
    return ChangesSince(head.last.version, ids if is_known else None)


def record_of(image_id: str, text: str) -> Record:
    """Decode the record of a row.

    :raises StoreCorruptError: when it is damaged
    """
    record = read(text.encode())
    if record is None:
        raise StoreCorruptError(
            f"the record of image {image_id} is damaged: check shows it", id=image_id
        )
    return record


def hash_of(name: str) -> bytes:
    """Return the hash that stands for a name in the tables; an index limits the length of keys."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()


def _text(ref: str) -> str | None:
    """Return a ref as text of PostgreSQL; ``None``, which equals nothing, if it cannot be one."""
    try:
        ref.encode()
    except UnicodeEncodeError:
        return None
    return None if "\0" in ref else ref


def _end(prefix: str) -> str | None:
    return None if (text := _text(prefix)) is None else text + _LAST
