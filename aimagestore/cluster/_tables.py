"""Compares the tables with the records, from which the other tables can be rebuilt.

A record says which names, digests and items its image has. So a difference is repaired in the other
tables, with one exception: if two records have one name, it stays with the image that has it in the
table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from .._core.record import Record, read, without_names
from .._core.report import Finding, FindingKind
from ._lookups import PAGE, hash_of
from ._sessions import Session, columns

Fix = tuple[LiteralString, Sequence[Any]]
"""A statement, with its values."""

# Bytes for which a statement that reads whole tables may take a second more.
_BYTES_PER_SECOND = 20_000_000

_SIZE = """
    SELECT sum(pg_table_size(name::regclass))
    FROM unnest(ARRAY['images', 'image_names', 'image_digests', 'image_items']) AS t (name)
"""

# The last record first: of two that have one name, it keeps the name if the table lacks it.
_RECORDS = "SELECT id, record FROM images ORDER BY place DESC"

_WITH_IDS = "SELECT id, record FROM images WHERE id = ANY(%s)"

_OWNERS = "SELECT name, image_id FROM image_names WHERE name = ANY(%s)"

_HAVE_DIGESTS = """
    SELECT d.image_id, d.digest FROM unnest(%s::text[], %s::text[]) AS u (image_id, digest)
    JOIN image_digests d ON d.digest = u.digest AND d.image_id = u.image_id
"""

_NAMES = "SELECT image_id, name FROM image_names ORDER BY image_id"

_DIGESTS = "SELECT image_id, digest FROM image_digests ORDER BY image_id"

_ITEMS = """
    SELECT image_id, key, blob, size FROM image_items WHERE removed IS NULL ORDER BY image_id
"""

_COUNTERS = """
    SELECT s.images, n.images, s.last_place, n.last_place, s.version, n.version, s.pruned
    FROM image_store s, (
        SELECT (SELECT count(*) FROM images) AS images,
            (SELECT coalesce(max(place), 0) FROM images) AS last_place,
            greatest(0, (SELECT max(version) FROM image_commits),
                (SELECT max(version) FROM image_changes)) AS version
    ) n
"""

_SET_RECORD = "UPDATE images SET record = %s WHERE id = %s"

_SET_NAMES = """
    INSERT INTO image_names (name, image_id) SELECT unnest(%s::bytea[]), %s
    ON CONFLICT (name) DO UPDATE SET image_id = excluded.image_id
"""

_REMOVE_NAMES = "DELETE FROM image_names WHERE name = ANY(%s::bytea[]) AND image_id = %s"

_ADD_DIGESTS = """
    INSERT INTO image_digests (digest, image_id) SELECT unnest(%s::text[]), %s
    ON CONFLICT DO NOTHING
"""

_REMOVE_DIGESTS = "DELETE FROM image_digests WHERE digest = ANY(%s::text[]) AND image_id = %s"

# The object becomes garbage.
_REMOVE_ITEM = """
    UPDATE image_items SET removed = clock_timestamp()
    WHERE image_id = %s AND key = %s AND removed IS NULL
"""

_SET_SIZE = "UPDATE image_items SET size = %s WHERE image_id = %s AND key = %s AND removed IS NULL"

_SET_COUNTERS = """
    UPDATE image_store SET images = %s, last_place = greatest(last_place, %s),
        version = greatest(version, %s), pruned = least(pruned, greatest(version, %s))
"""


class Difference(NamedTuple):
    """Something in the tables that differs from the records.

    :ivar fix: what corrects it
    """

    finding: Finding
    fix: Fix


class Tables:
    """The tables as one transaction sees them.

    :param session: is in that transaction
    :param path_of: returns the name of an object in messages
    :param deadline: seconds for a statement that reads little
    """

    def __init__(self, session: Session, path_of: Callable[[UUID], str], deadline: float) -> None:
        self._session = session
        self._path_of = path_of
        ((size,),) = session.rows(_SIZE)
        self._seconds = deadline + int(size) / _BYTES_PER_SECOND

    def differences(self) -> Iterator[Sequence[Difference]]:
        """Iterate over all differences, in pages.

        Those of one page may be fixed before the next page is asked for.
        """
        for rows in self._pages(_RECORDS):
            yield list(self._lacking(rows))
        for rows, records in self._with_records(_NAMES):
            yield list(_stale_names(rows, records))
        for rows, records in self._with_records(_DIGESTS):
            yield list(_stale_digests(rows, records))
        for rows, records in self._with_records(_ITEMS):
            yield list(self._stale_items(rows, records))
        yield list(self._counters())

    def _pages(self, query: LiteralString) -> Iterator[list[tuple[Any, ...]]]:
        self._session.execute(f"DECLARE page_rows NO SCROLL CURSOR FOR {query}")
        # The first page may have to wait until the whole table is sorted.
        self._session.until = time.monotonic() + self._seconds
        fetch = b"FETCH %d FROM page_rows" % PAGE
        while rows := self._session.execute(fetch).fetchall():
            yield rows
        self._session.execute("CLOSE page_rows")

    def _with_records(
        self, query: LiteralString
    ) -> Iterator[tuple[list[tuple[Any, ...]], Mapping[str, Record | None]]]:
        """Iterate over pages, each with the records of its images.

        A damaged record is ``None``; an image without a record is not in the mapping.
        """
        records: dict[str, Record | None] = {}
        for rows in self._pages(query):
            ids = {row[0] for row in rows}
            # Rows of one image may be on any number of pages.
            records = {i: record for i, record in records.items() if i in ids}
            records |= self._records([i for i in ids if i not in records])
            yield rows, records

    def _records(self, ids: Sequence[str]) -> dict[str, Record | None]:
        rows = self._session.rows(_WITH_IDS, [list(ids)]) if ids else []
        return {row[0]: readable(*row) for row in rows}

    def _lacking(self, rows: Iterable[tuple[str, str]]) -> Iterator[Difference]:
        """Iterate over what the tables of names and digests lack of some records."""
        records = [record for row in rows if (record := readable(*row)) is not None]
        names = {name for record in records for name in record.names}
        hashes = [hash_of(name) for name in names]
        owners: dict[bytes, str] = dict(self._session.rows(_OWNERS, [hashes]))
        names_of = {record.id: frozenset(record.names) for record in records}
        others = self._records([i for i in set(owners.values()) if i not in names_of])
        names_of |= {i: frozenset(r.names) for i, r in others.items() if r is not None}
        pairs = [(record.id, digest) for record in records for digest in record.digests]
        known = set(self._session.rows(_HAVE_DIGESTS, columns(pairs))) if pairs else set()
        for record in records:
            yield from _lacking_names(record, owners, names_of)
            lacking = [digest for digest in record.digests if (record.id, digest) not in known]
            if lacking:
                finding = Finding(
                    FindingKind.DIGESTS_DIFFER, record.id, detail=_lacks("digests", lacking)
                )
                yield Difference(finding, (_ADD_DIGESTS, [lacking, record.id]))

    def _stale_items(
        self, rows: Iterable[tuple[str, bytes, UUID, int]], records: Mapping[str, Record | None]
    ) -> Iterator[Difference]:
        for image_id, raw_key, blob, size in rows:
            if image_id in records and records[image_id] is None:
                continue
            record = records.get(image_id)
            key, path = raw_key.decode(errors="replace"), self._path_of(blob)
            sizes = {} if record is None else record.image.big_data_sizes
            if record is None or key not in record.image.big_data_names:
                detail = (
                    "there is no such image" if record is None else "its record does not list it"
                )
                finding = Finding(FindingKind.ITEM_UNLISTED, image_id, key, path, detail)
                yield Difference(finding, remove_item(image_id, raw_key))
            elif sizes.get(key, size) != size:
                detail = f"the table has {size} bytes, and the record {sizes[key]}"
                finding = Finding(FindingKind.ITEMS_DIFFER, image_id, key, path, detail)
                yield Difference(finding, (_SET_SIZE, [sizes[key], image_id, raw_key]))

    def _counters(self) -> Iterator[Difference]:
        self._session.until = time.monotonic() + self._seconds
        (row,) = self._session.rows(_COUNTERS)
        images, images_now, place, place_now, version, version_now, pruned = row
        wrong: list[str] = []
        if images != images_now:
            wrong.append(f"{images} images are counted, and there are {images_now}")
        if place < place_now:
            wrong.append(f"the last place is {place}, and a record has {place_now}")
        if version < version_now:
            wrong.append(f"the last commit is {version}, and there is a later one, {version_now}")
        if pruned > max(version, version_now):
            wrong.append(f"the last commit is {version}, and {pruned} is forgotten")
        if wrong:
            finding = Finding(FindingKind.COUNTERS_DIFFER, detail="; ".join(wrong))
            values = [images_now, place_now, version_now, version_now]
            yield Difference(finding, (_SET_COUNTERS, values))


def readable(image_id: str, text: str) -> Record | None:
    """Decode the record of a row; ``None`` when it is damaged, or has another image's ID."""
    record = read(text.encode())
    return record if record is not None and record.id == image_id else None


def set_record(record: Record) -> Fix:
    """Return what replaces a record by this one."""
    return _SET_RECORD, [bytes(record.raw).decode(), record.id]


def remove_item(image_id: str, key: bytes) -> Fix:
    """Return what takes an item out of the table."""
    return _REMOVE_ITEM, [image_id, key]


def _lacking_names(
    record: Record, owners: dict[bytes, str], names_of: Mapping[str, frozenset[str]]
) -> Iterator[Difference]:
    """Iterate over the names of a record that the table lacks, or gives rightly to another image.

    :param owners: the IDs of images by the hash of a name; names that the table lacks are added
    :param names_of: the names that the records have, by ID
    """
    lacking: list[str] = []
    lost: dict[str, str] = {}
    for name in dict.fromkeys(record.names):
        owner = owners.get(hash_of(name), "")
        if owner != record.id and name in names_of.get(owner, ()):
            lost[name] = owner
        elif owner != record.id:
            lacking.append(name)
            owners[hash_of(name)] = record.id
    if lacking:
        finding = Finding(FindingKind.NAMES_DIFFER, record.id, detail=_lacks("names", lacking))
        yield Difference(finding, (_SET_NAMES, [[hash_of(name) for name in lacking], record.id]))
    if lost:
        detail = ", ".join(f"the name {name!r} belongs to {owner}" for name, owner in lost.items())
        finding = Finding(FindingKind.DUPLICATE_NAME, record.id, detail=detail)
        yield Difference(finding, set_record(without_names(record, lost.keys())))


def _stale_names(
    rows: Iterable[tuple[str, bytes]], records: Mapping[str, Record | None]
) -> Iterator[Difference]:
    own = {i: {hash_of(n) for n in r.names} for i, r in records.items() if r is not None}
    for image_id, stale in _stale(rows, records, own).items():
        finding = Finding(
            FindingKind.NAMES_DIFFER,
            image_id,
            detail=_has("names", stale, is_known=image_id in records),
        )
        yield Difference(finding, (_REMOVE_NAMES, [stale, image_id]))


def _stale_digests(
    rows: Iterable[tuple[str, str]], records: Mapping[str, Record | None]
) -> Iterator[Difference]:
    own = {i: set(record.digests) for i, record in records.items() if record is not None}
    for image_id, stale in _stale(rows, records, own).items():
        detail = _has("digests", stale, is_known=image_id in records)
        finding = Finding(FindingKind.DIGESTS_DIFFER, image_id, detail=detail)
        yield Difference(finding, (_REMOVE_DIGESTS, [stale, image_id]))


def _stale(
    rows: Iterable[tuple[str, Any]],
    records: Mapping[str, Record | None],
    own: Mapping[str, set[Any]],
) -> dict[str, list[Any]]:
    """Return the values of rows that the image's record does not have, by image."""
    found: dict[str, list[Any]] = {}
    for image_id, value in rows:
        # Nobody knows what a damaged record had.
        is_damaged = image_id in records and records[image_id] is None
        if not is_damaged and value not in own.get(image_id, ()):
            found.setdefault(image_id, []).append(value)
    return found


def _lacks(what: str, values: Sequence[str]) -> str:
    return f"the table lacks {len(values)} of its {what}, such as {values[0]!r}"


def _has(what: str, values: Sequence[Any], *, is_known: bool) -> str:
    reason = "its record does not have them" if is_known else "there is no such image"
    return f"the table has {len(values)} {what} for it, but {reason}"
