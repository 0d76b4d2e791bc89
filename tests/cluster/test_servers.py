"""The servers of tests and demos: they keep acknowledged data, and say why they cannot start."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("psycopg", reason="needs the clients: pip install 'aimagestore[cluster]'")
pytest.importorskip("obstore", reason="needs the clients: pip install 'aimagestore[cluster]'")

import psycopg

from aimagestore.cluster._local import postgres as postgres_module
from aimagestore.cluster._local.cluster import LocalCluster
from aimagestore.cluster._local.postgres import Postgres
from aimagestore.cluster._local.server import ServersMissingError, free_ports

from ..support.stores import becomes_true
from . import moto_lacks

if TYPE_CHECKING:
    from .proxy import Proxy
    from .servers import Servers


@pytest.fixture
def table(servers: Servers) -> Postgres:
    """The server, with an empty table ``noted``."""
    servers.postgres.execute("CREATE TABLE IF NOT EXISTS noted (number int)")
    servers.postgres.execute("TRUNCATE noted")
    return servers.postgres


@pytest.mark.parametrize("end", [Postgres.kill, Postgres.stop])
def test_postgres_keeps_what_it_has_acknowledged(
    table: Postgres, end: Callable[[Postgres], None]
) -> None:
    table.execute("INSERT INTO noted VALUES (1)")
    end(table)
    assert not table.is_ready()
    table.start()
    assert table.execute("SELECT number FROM noted") == [(1,)]


def test_the_ports_of_a_server_that_is_down_are_not_given_to_others() -> None:
    ports = free_ports(2)
    asking = (
        "from aimagestore.cluster._local import server\n"
        f"server._PORTS = {ports}\n"
        "print(server.free_ports(1))"
    )
    asked = subprocess.run([sys.executable, "-c", asking], check=True, capture_output=True)
    assert asked.stdout == b"[]\n"


def test_a_process_that_has_reserved_ports_ends_without_a_warning() -> None:
    reserving = "from aimagestore.cluster._local.server import free_ports; assert free_ports(2)"
    command = [sys.executable, "-W", "always", "-c", reserving]
    assert subprocess.run(command, check=True, capture_output=True).stderr == b""


@moto_lacks.durability
def test_the_object_store_keeps_what_it_has_acknowledged(servers: Servers) -> None:
    bucket = servers.objects.bucket("kept")
    bucket.put("item", b"x" * 100_000)
    servers.objects.kill()
    assert not servers.objects.is_ready()
    servers.objects.start()
    assert bucket.get("item").bytes() == b"x" * 100_000


def test_a_standby_receives_commits_and_refuses_changes(servers: Servers, table: Postgres) -> None:
    with servers.standby() as standby:
        table.execute("INSERT INTO noted VALUES (2)")
        ((end,),) = table.execute("SELECT pg_current_wal_lsn()")
        replayed = "SELECT pg_last_wal_replay_lsn() >= %s"
        assert becomes_true(lambda: standby.execute(replayed, [end]) == [(True,)], 60)
        assert standby.execute("SELECT number FROM noted") == [(2,)]
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            standby.execute("INSERT INTO noted VALUES (3)")


def test_sessions_can_be_ended(servers: Servers) -> None:
    with psycopg.connect(servers.postgres.url()) as connection:
        assert servers.postgres.end_sessions("postgres") >= 1
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_a_proxy_can_cut_refuse_and_delay_connections(servers: Servers, to_postgres: Proxy) -> None:
    url = servers.postgres.url(port=to_postgres.port)
    connection = psycopg.connect(url)
    assert connection.execute("SELECT 1").fetchall() == [(1,)]
    to_postgres.cut()
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    with to_postgres.refusing(), pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    with to_postgres.silent(), pytest.raises(psycopg.errors.ConnectionTimeout):
        psycopg.connect(url, connect_timeout=2)
    to_postgres.cut_after(500)
    with psycopg.connect(url) as connection, pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT length(%s)", ["x" * 1000])
    psycopg.connect(url).close()


def test_a_proxy_can_lose_an_answer(table: Postgres, to_postgres: Proxy) -> None:
    connection = psycopg.connect(table.url(port=to_postgres.port))
    connection.execute("INSERT INTO noted VALUES (4)")
    to_postgres.lose_answer_to(b"COMMIT\0")
    with pytest.raises(psycopg.OperationalError):
        connection.commit()
    assert to_postgres.has_lost_it
    assert table.execute("SELECT number FROM noted") == [(4,)]


def test_the_data_of_a_server_are_private_to_its_user(servers: Servers) -> None:
    assert stat.S_IMODE(servers.postgres.root.stat().st_mode) == 0o700


def test_a_server_can_be_ended_when_a_command_of_its_preparation_has_just_ended(
    tmp_path: Path, servers: Servers
) -> None:
    server = Postgres(tmp_path / "postgres", servers.postgres.programs)
    command = subprocess.Popen(["true"], start_new_session=True)
    command.wait()
    server._commands.add(command)
    server.end()


def test_a_server_that_cannot_start_says_why(tmp_path: Path, servers: Servers) -> None:
    second = Postgres(servers.postgres.root, servers.postgres.programs)
    with pytest.raises(RuntimeError, match="lock file"):
        second.start()
    assert servers.postgres.is_ready()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for whom PostgreSQL runs as nobody")
def test_programs_that_only_root_can_run_are_copied_for_the_server(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "_is_open_to_all", lambda path: False)
    server = Postgres(servers.local.root / "hidden")
    server.create()
    server.start()
    assert server.execute("SELECT 1") == [(1,)]
    server.kill()
    assert (server.root / "programs").is_dir()


def test_missing_servers_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(postgres_module, "_DEBIAN", tmp_path)
    with pytest.raises(ServersMissingError, match="PostgreSQL is not installed: install the extra"):
        LocalCluster()
    monkeypatch.undo()
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(ServersMissingError, match="SeaweedFS is not installed"):
        LocalCluster()
