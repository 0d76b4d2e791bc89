"""Writes a draft: all statements of a commit in one round trip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

from .._core.content import Content
from .._core.draft import Draft, RecordDelta
from .._core.events import ChangeEvent, Kind
from ._lookups import hash_of
from ._sessions import Connection, Cursor, Session, columns
from ._staged import StagedBlob

# Commits after which changes that are older than the grace period are forgotten.
_PRUNE_EVERY = 256

FORGOTTEN_AT_ONCE = 100_000
"""Rows that are forgotten in one transaction, so that it ends long before its deadline."""

_REMOVE_ITEMS_OF = """
    UPDATE image_items SET removed = clock_timestamp()
    WHERE removed IS NULL AND image_id = ANY(%s)
"""

_REPLACE_ITEMS = """
    UPDATE image_items i SET removed = clock_timestamp()
    FROM unnest(%s::text[], %s::bytea[]) AS u (image_id, key)
    WHERE i.image_id = u.image_id AND i.key = u.key AND i.removed IS NULL
"""

# If another commit has stored the content since the search, the object of that one is used. If a
# garbage collection has taken the object, or may do so, the statement fails: a blob is not null.
_ADD_ITEMS = """
    INSERT INTO image_items (image_id, key, blob, size, digest)
    SELECT u.image_id, u.key, coalesce(
        (
            SELECT i.blob FROM image_items i
            WHERE u.may_share AND i.digest = u.digest AND i.size = u.size AND i.removed IS NULL
            LIMIT 1
        ),
        CASE WHEN u.is_stored = EXISTS (
            SELECT FROM image_items i WHERE i.blob = u.blob AND i.image_id <> ''
        ) AND NOT EXISTS (
            SELECT FROM image_items i WHERE i.blob = u.blob AND i.image_id = ''
        ) THEN u.blob END
    ), u.size, u.digest
    FROM unnest(
        %s::text[], %s::bytea[], %s::uuid[], %s::bigint[], %s::text[], %s::boolean[], %s::boolean[]
    ) AS u (image_id, key, blob, size, digest, is_stored, may_share)
    RETURNING blob
"""

_REMOVE_NAMES = "DELETE FROM image_names WHERE name = ANY(%s)"

# A row that no record has, in a damaged table, keeps no image from having the name or digest.
_ADD_NAMES = """
    INSERT INTO image_names (name, image_id) SELECT * FROM unnest(%s::bytea[], %s::text[])
    ON CONFLICT (name) DO UPDATE SET image_id = excluded.image_id
"""

_REMOVE_DIGESTS = """
    DELETE FROM image_digests d USING unnest(%s::text[], %s::text[]) AS u (digest, image_id)
    WHERE d.digest = u.digest AND d.image_id = u.image_id
"""

_ADD_DIGESTS = """
    INSERT INTO image_digests (digest, image_id) SELECT * FROM unnest(%s::text[], %s::text[])
    ON CONFLICT DO NOTHING
"""

_REMOVE_IMAGES = "DELETE FROM images WHERE id = ANY(%s)"

_UPDATE_IMAGES = """
    UPDATE images i SET record = u.record FROM unnest(%s::text[], %s::text[]) AS u (id, record)
    WHERE i.id = u.id
"""

_ADD_IMAGES = """
    INSERT INTO images (id, record, place)
    SELECT u.id, u.record, s.last_place + u.number FROM image_store s,
        unnest(%s::text[], %s::text[]) WITH ORDINALITY AS u (id, record, number)
"""

_BUMP = """
    WITH bumped AS (
        UPDATE image_store SET version = version + 1, last_place = last_place + %(places)s,
            images = images + %(more)s, touched = clock_timestamp()
        RETURNING version
    ), noted AS (
        INSERT INTO image_commits (version, token, made)
        SELECT version, %(token)s, clock_timestamp() FROM bumped
    ), changed AS (
        INSERT INTO image_changes (version, number, image_id, kind)
        SELECT b.version, u.number, u.id, u.kind FROM bumped b,
            unnest(%(ids)s::text[], %(kinds)s::text[]) WITH ORDINALITY AS u (id, kind, number)
    )
    SELECT version, pg_notify(%(channel)s, '') FROM bumped
"""

# Of the oldest commits, those before the first one of the grace period. The changes of the oldest
# are forgotten already. Those of a commit are forgotten together, however many they are.
_SET_PRUNED = """
    UPDATE image_store s SET pruned = greatest(s.pruned, least(
        (
            SELECT coalesce(
                min(c.version) FILTER (WHERE c.made > clock_timestamp() - s.grace_period) - 1,
                max(c.version)
            ) FROM (SELECT version, made FROM image_commits ORDER BY version LIMIT %(limit)s + 1) c
        ),
        (
            SELECT max(c.version)
            FROM (SELECT version FROM image_changes ORDER BY version, number LIMIT %(limit)s) c
        )
    ))
"""

_FORGET_CHANGES = "DELETE FROM image_changes WHERE version <= (SELECT pruned FROM image_store)"

# The last one is kept, so that whoever has seen it learns whether the database went back.
_FORGET_COMMITS = "DELETE FROM image_commits WHERE version < (SELECT pruned FROM image_store)"


class NewCommit(NamedTuple):
    """A commit to be made.

    :ivar version: the number of the last commit before it
    :ivar token: identifies it when its answer is lost
    :ivar channel: the channel that watches listen to
    """

    version: int
    token: UUID
    channel: str


class Change(NamedTuple):
    """A changed image.

    :ivar kind: what watches are notified of
    :ivar delta: what became of its record
    """

    kind: Kind
    delta: RecordDelta

    @property
    def event(self) -> ChangeEvent:
        """What a watch of this store yields."""
        new = self.delta.new
        return ChangeEvent(self.kind, self.delta.id, None if new is None else new.image)


def changes_of(draft: Draft) -> Sequence[Change]:
    """Return the changed images, deleted ones first."""
    deleted: list[Change] = []
    others: list[Change] = []
    for delta in draft.record_deltas():
        if delta.new is None:
            deleted += [Change("deleted", delta)] if delta.old is not None else []
        elif delta.old is None:
            others.append(Change("created", delta))
        elif delta.is_recreated or bytes(delta.old.raw) != bytes(delta.new.raw):
            others.append(Change("changed", delta))
    return (*deleted, *others)


def write(
    session: Session, draft: Draft, changed: Sequence[Change], commit: NewCommit
) -> tuple[int, set[UUID]]:
    """Write a draft and commit it.

    All statements are sent before the first answer comes. So an error does not tell whether the
    commit was made, unless the server has answered with it.

    :returns: the number of the commit, and the objects of the new items
    :raises psycopg.Error: when the server is unavailable, or refuses
    """
    deltas = [change.delta for change in changed]
    with session.limited() as connection, connection.pipeline():
        added = _write_items(connection, draft, deltas)
        _write_indexes(connection, deltas)
        _write_images(connection, deltas)
        if commit.version % _PRUNE_EVERY == 0:
            _prune(connection)
        bumped = connection.execute(
            _BUMP,
            {
                "places": sum(d.old is None or d.is_recreated for d in deltas if d.new is not None),
                "more": sum((d.new is not None) - (d.old is not None) for d in deltas),
                "token": commit.token,
                "ids": [delta.id for delta in deltas],
                "kinds": [change.kind for change in changed],
                "channel": commit.channel,
            },
        )
        connection.execute("COMMIT")
    row = bumped.fetchone()
    assert row is not None, "the table has one row"
    return int(row[0]), {row[0] for row in added.fetchall()} if added is not None else set()


def touch(session: Session) -> None:
    """Commit the present transaction, after noting that a writer has touched the store."""
    session.execute("UPDATE image_store SET touched = clock_timestamp(); COMMIT")


def prune(session: Session) -> int:
    """Forget the oldest commits, if they are older than the grace period.

    :returns: the number of commits, or of their changes if these are more
    """
    with session.limited() as connection:
        return max(cursor.rowcount for cursor in _prune(connection))


def _prune(connection: Connection) -> tuple[Cursor, Cursor]:
    connection.execute(_SET_PRUNED, {"limit": FORGOTTEN_AT_ONCE})
    return connection.execute(_FORGET_CHANGES), connection.execute(_FORGET_COMMITS)


def _write_items(
    connection: Connection, draft: Draft, deltas: Iterable[RecordDelta]
) -> Cursor | None:
    removed = [d.id for d in deltas if d.old is not None and (d.new is None or d.is_recreated)]
    if removed:
        connection.execute(_REMOVE_ITEMS_OF, [removed])
    if draft.files:
        ids = [image_id for image_id, _ in draft.files]
        keys = [key.encode() for _, key in draft.files]
        connection.execute(_REPLACE_ITEMS, [ids, keys])
        contents = columns(_content_row(content) for content in _shared(draft.files.values()))
        return connection.execute(_ADD_ITEMS, [ids, keys, *contents])
    return None


def _shared(contents: Iterable[Content]) -> Iterator[StagedBlob]:
    """Iterate over contents, each replaced by the first one that equals it."""
    first: dict[tuple[str, int], StagedBlob] = {}
    for content in contents:
        assert isinstance(content, StagedBlob), "contents are stored before they are referred to"
        yield first.setdefault((content.digest, content.size), content)


def _content_row(content: StagedBlob) -> tuple[UUID, int, str, bool, bool]:
    return content.id, content.size, content.digest, content.is_stored, content.may_share


def _write_indexes(connection: Connection, deltas: Iterable[RecordDelta]) -> None:
    lost_names: list[bytes] = []
    new_names: list[tuple[bytes, str]] = []
    lost_digests: list[tuple[str, str]] = []
    new_digests: list[tuple[str, str]] = []
    for delta in deltas:
        both = delta.old, delta.new
        before, after = (set(r.names) if r else set() for r in both)
        lost_names += [hash_of(name) for name in before - after]
        new_names += [(hash_of(name), delta.id) for name in after - before]
        before, after = (set(r.digests) if r else set() for r in both)
        lost_digests += [(digest, delta.id) for digest in before - after]
        new_digests += [(digest, delta.id) for digest in after - before]
    if lost_names:
        connection.execute(_REMOVE_NAMES, [lost_names])
    if new_names:
        connection.execute(_ADD_NAMES, columns(new_names))
    if lost_digests:
        connection.execute(_REMOVE_DIGESTS, columns(lost_digests))
    if new_digests:
        connection.execute(_ADD_DIGESTS, columns(new_digests))


def _write_images(connection: Connection, deltas: Iterable[RecordDelta]) -> None:
    removed: list[str] = []
    updated: list[tuple[str, str]] = []
    added: list[tuple[str, str]] = []
    for delta in deltas:
        old, new = delta.old, delta.new
        if old is not None and (new is None or delta.is_recreated):
            removed.append(delta.id)
        if new is not None:
            stays = old is not None and not delta.is_recreated
            (updated if stays else added).append((delta.id, bytes(new.raw).decode()))
    if removed:
        connection.execute(_REMOVE_IMAGES, [removed])
    if updated:
        connection.execute(_UPDATE_IMAGES, columns(updated))
    if added:
        connection.execute(_ADD_IMAGES, columns(added))


def used(session: Session, blobs: Sequence[UUID]) -> set[UUID]:
    """Return which of these objects items have."""
    rows = session.rows("SELECT blob FROM image_items WHERE blob = ANY(%s)", [list(blobs)])
    return {row[0] for row in rows}


def find_commit(session: Session, since: int, token: UUID) -> int | None:
    """Return the number of the commit that has this token; ``None`` when it was not made."""
    row = session.execute(
        "SELECT version FROM image_commits WHERE version > %s AND token = %s", [since, token]
    ).fetchone()
    return None if row is None else int(row[0])
