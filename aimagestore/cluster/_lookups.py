"""What is asked of the tables; each question is one statement, so its answer is one commit's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, LiteralString, NamedTuple

import psycopg

from .._core.record import Record, read
from ..errors import StoreCorruptError

PAGE = 1000
"""Records that are asked for in one go."""

CHANGES_MAX = 2000
"""Changed images that are named one by one; more, and everything may have changed."""

# Behind all that begin with a prefix: no ID is as long, and no character comes later.
_LAST = "\U0010ffff" * 64

_FOLLOW = """
    SELECT version, pruned, ARRAY(
        SELECT image_id FROM image_changes WHERE version > %(known)s ORDER BY version LIMIT %(max)s
    ) FROM image_store
"""

_FIND = """
    SELECT s.version, s.pruned, ARRAY(
        SELECT image_id FROM image_changes WHERE version > %(known)s ORDER BY version LIMIT %(max)s
    ), f.rank, f.id, f.record FROM image_store s LEFT JOIN (
        SELECT 0 AS rank, id, record FROM images WHERE id = %(id)s
        UNION ALL
        SELECT 1, i.id, i.record FROM image_names n JOIN images i ON i.id = n.image_id
            WHERE n.name = %(name)s
        UNION ALL
        (SELECT 2, id, record FROM images WHERE id > %(id)s AND id < %(end)s ORDER BY id LIMIT 2)
    ) f ON true ORDER BY f.rank
"""

_PREFIX = """
    SELECT s.version, i.id FROM image_store s
        LEFT JOIN images i ON i.id >= %(prefix)s AND i.id < %(end)s ORDER BY i.id
"""

_DIGEST = """
    SELECT s.version, i.id, i.record FROM image_store s LEFT JOIN (
        image_digests d JOIN images i ON i.id = d.image_id
    ) ON d.digest = %(digest)s ORDER BY i.place
"""

_NAME = """
    SELECT s.version, n.image_id FROM image_store s LEFT JOIN image_names n ON n.name = %(name)s
"""

_EXPECTED = """
    SELECT i.id, i.record FROM images i WHERE i.id = ANY(%(ids)s)
    UNION ALL
    SELECT i.id, i.record FROM image_names n JOIN images i ON i.id = n.image_id
        WHERE n.name = ANY(%(names)s)
"""

_PAGE = """
    SELECT s.version, p.place, p.id, p.record FROM image_store s LEFT JOIN (
        SELECT place, id, record FROM images WHERE place > %(place)s ORDER BY place LIMIT %(page)s
    ) p ON true ORDER BY p.place
"""


Execute = Callable[[LiteralString, Mapping[str, Any]], psycopg.Cursor[tuple[Any, ...]]]


class News(NamedTuple):
    """What has changed since a commit.

    :ivar version: the last commit
    :ivar changed: IDs of the images that have changed; ``None`` where there is no telling
    """

    version: int
    changed: Sequence[str] | None


class Found(NamedTuple):
    """What a ref may stand for.

    :ivar record: the record of this ID, or else the one that has this name, or else the only one
        whose ID begins so
    :ivar is_ambiguous: whether several IDs begin so, and nothing else fits
    :ivar by_name: whether it was found by its name
    """

    record: Record | None
    is_ambiguous: bool
    by_name: bool


class Lookups:
    """Questions to one session.

    :param execute: asks it
    :ivar version: the commit that the last answer was of
    """

    def __init__(self, execute: Execute) -> None:
        self._execute = execute
        self.version = -1

    def follow(self, known: int) -> News:
        """What has changed since a commit."""
        row = self._execute(_FOLLOW, {"known": known, "max": CHANGES_MAX + 1}).fetchone()
        assert row is not None, "the table has one row"
        return self._news(known, row)

    def _news(self, known: int, row: tuple[Any, ...]) -> News:
        self.version, pruned, changed = row[:3]
        is_told = known >= pruned and len(changed) <= CHANGES_MAX
        return News(self.version, changed if is_told else None)

    def find(self, ref: str, known: int) -> tuple[News, Found]:
        """What a ref may stand for, and what has changed since a commit."""
        values = {
            "id": _text(ref),
            "name": hash_of(ref),
            "end": _end(ref),
            "known": known,
            "max": CHANGES_MAX + 1,
        }
        rows = self._execute(_FIND, values).fetchall()
        ranks = [row[3] for row in rows]
        best = ranks[0]
        is_ambiguous = best == 2 and len(rows) > 1
        record = None if best is None or is_ambiguous else _record(*rows[0][4:])
        return self._news(known, rows[0]), Found(record, is_ambiguous, best == 1)

    def ids_with_prefix(self, prefix: str) -> list[str]:
        """The IDs that begin so, sorted."""
        values = {"prefix": _text(prefix), "end": _end(prefix)}
        return [row[0] for row in self._rows(_PREFIX, values)] if prefix else []

    def with_digest(self, digest: str) -> list[Record]:
        """The records that have this digest, the oldest first."""
        return [_record(*row) for row in self._rows(_DIGEST, {"digest": digest})]

    def owner_of(self, name: str) -> str | None:
        """The ID of the image with this name."""
        rows = self._rows(_NAME, {"name": hash_of(name)})
        return rows[0][0] if rows else None

    def records(self) -> Iterator[Record]:
        """All records, the oldest first; between two pages other things may be asked."""
        place = -1
        while rows := self._rows(_PAGE, {"place": place, "page": PAGE}):
            yield from (_record(*row[1:]) for row in rows)
            place = rows[-1][0]

    def expected(self, ids: Iterable[str], names: Iterable[str]) -> list[Record]:
        """The records that have any of these IDs or names."""
        values = {
            "ids": [text for i in ids if (text := _text(i)) is not None],
            "names": [hash_of(name) for name in names],
        }
        return [_record(*row) for row in self._execute(_EXPECTED, values)]

    def _rows(self, question: LiteralString, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        """The rows of an answer, without the version and the row that stands for none."""
        rows = self._execute(question, values).fetchall()
        self.version = rows[0][0]
        return [row[1:] for row in rows if row[1] is not None]


def _record(image_id: str, text: str) -> Record:
    record = read(text.encode())
    if record is None:
        raise StoreCorruptError(f"the record of image {image_id} cannot be read", id=image_id)
    return record


def hash_of(name: str) -> bytes:
    """What stands for a name in the tables, for a name may be as long as it likes."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()


def _text(ref: str) -> str | None:
    """The ref as text of PostgreSQL's; ``None``, which equals nothing, where it cannot be."""
    try:
        ref.encode()
    except UnicodeEncodeError:
        return None
    return None if "\0" in ref else ref


def _end(prefix: str) -> str | None:
    return None if (text := _text(prefix)) is None else text + _LAST
