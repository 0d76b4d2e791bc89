"""The tables, and their migration to a newer version."""

from __future__ import annotations

import psycopg
from psycopg.errors import UndefinedTable

from ..errors import StoreSchemaError, StoreUnavailableError
from ._addresses import DatabaseAddress
from ._sessions import Connection, Session

_STEPS = (
    # One row. Every commit updates it, so all commits have one order.
    """
    CREATE TABLE image_store (
        single boolean PRIMARY KEY DEFAULT true CHECK (single),
        schema_version integer NOT NULL,
        version bigint NOT NULL DEFAULT 0,
        pruned bigint NOT NULL DEFAULT 0,
        last_place bigint NOT NULL DEFAULT 0,
        images bigint NOT NULL DEFAULT 0,
        touched timestamptz NOT NULL DEFAULT clock_timestamp()
    ) WITH (fillfactor = 10);
    COMMENT ON COLUMN image_store.version IS 'the number of the last commit';
    COMMENT ON COLUMN image_store.pruned IS 'of the last commit that image_changes has lost';

    CREATE TABLE images (
        id text COLLATE "C" PRIMARY KEY,
        place bigint NOT NULL UNIQUE,
        record text NOT NULL
    );
    COMMENT ON TABLE images IS 'records, as they would stand in images.json';

    CREATE TABLE image_names (
        name bytea PRIMARY KEY,
        image_id text COLLATE "C" NOT NULL
    );
    COMMENT ON COLUMN image_names.name IS
        'SHA-256 of the name: a name may be longer than an index takes';

    CREATE TABLE image_digests (
        digest text COLLATE "C",
        image_id text COLLATE "C",
        PRIMARY KEY (digest, image_id)
    );

    CREATE TABLE image_items (
        blob uuid PRIMARY KEY,
        image_id text COLLATE "C" NOT NULL,
        key bytea NOT NULL,
        size bigint NOT NULL,
        removed timestamptz
    );
    CREATE UNIQUE INDEX image_items_current ON image_items (image_id, key)
        WHERE removed IS NULL;
    CREATE INDEX image_items_removed ON image_items (removed) WHERE removed IS NOT NULL;
    COMMENT ON TABLE image_items IS 'which object has which item''s content';

    CREATE TABLE image_commits (
        version bigint PRIMARY KEY,
        token uuid NOT NULL,
        made timestamptz NOT NULL
    );

    CREATE TABLE image_changes (
        version bigint,
        number integer,
        image_id text COLLATE "C" NOT NULL,
        kind text NOT NULL,
        PRIMARY KEY (version, number)
    );

    INSERT INTO image_store (schema_version) VALUES (0);
    """,
)

SCHEMA_VERSION = len(_STEPS)
"""The version that this library works with."""


def migrate(records_url: str) -> int:
    """Create the tables of a cluster's store, or bring them up to date. Blocks.

    Everything happens in one transaction. The role that does it owns the tables; the roles that
    use the store need fewer privileges.

    :param records_url: as for :class:`ClusterLocation`
    :returns: the version that the tables have now
    :raises ValueError: when the address is malformed
    :raises StoreSchemaError: when the tables are newer than this library
    :raises StoreUnavailableError: when the server is unavailable, or refuses
    """
    address = DatabaseAddress.of(records_url)
    try:
        with address.connect() as connection:
            # Two migrations at the same time would both create the tables.
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('aimagestore migrate'))")
            present = _present_version(connection, address.name)
            for step in _STEPS[present:]:
                connection.execute(step)
            connection.execute("UPDATE image_store SET schema_version = %s", [SCHEMA_VERSION])
    except psycopg.Error as error:
        reason = str(error).strip().partition("\n")[0]
        raise StoreUnavailableError(f"{address.name}: {reason}") from error
    return SCHEMA_VERSION


def _present_version(connection: Connection, name: str) -> int:
    row = connection.execute("SELECT to_regclass('image_store') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        found = connection.execute("SHOW server_encoding").fetchone()
        if found is None or found[0] != "UTF8":
            raise StoreSchemaError(f"{name} must be a database of encoding UTF8", path=name)
        return 0
    row = connection.execute("SELECT schema_version FROM image_store").fetchone()
    assert row is not None, "the table has one row"
    present: int = row[0]
    if present > SCHEMA_VERSION:
        raise _newer(name, present)
    return present


def check_schema(session: Session, name: str) -> None:
    """Check the version of the tables.

    :raises StoreSchemaError: when there are none, or this library works with another version
    """
    try:
        row = session.execute("SELECT schema_version FROM image_store").fetchone()
    except UndefinedTable:
        raise StoreSchemaError(
            f"{name} has no tables of a store: run aimagestore cluster migrate", path=name
        ) from None
    present: int = row[0] if row is not None else 0
    if present > SCHEMA_VERSION:
        raise _newer(name, present)
    if present < SCHEMA_VERSION:
        raise StoreSchemaError(
            f"the tables of {name} have version {present}, and {SCHEMA_VERSION} is needed: run "
            "aimagestore cluster migrate",
            path=name,
        )


def _newer(name: str, present: int) -> StoreSchemaError:
    return StoreSchemaError(
        f"the tables of {name} have version {present}, this library knows {SCHEMA_VERSION}: "
        "use a newer aimagestore",
        path=name,
    )
