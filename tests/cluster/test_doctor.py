"""What the doctor finds when one thing at a time is wrong with the servers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ..support.commands import run
from ..support.stores import becomes_true
from .gateway import Answer, error, lets_through
from .pooler import Pooler

if TYPE_CHECKING:
    from aimagestore.cluster import Diagnosis

    from .gateway import Gateway
    from .servers import Place, Servers

pytest.importorskip("psycopg")

ERROR, WARNING, NOTE, OK = "error", "warning", "note", "ok"


@pytest.fixture(autouse=True, scope="module")
def _durable(servers: Servers) -> Iterator[None]:
    """Let the servers write through to the disk."""
    servers.write_through(True)
    yield
    servers.write_through(False)


@pytest.fixture(scope="module")
def opened(servers: Servers, _durable: None) -> Iterator[Place]:
    """A place where a store was opened once. All tests share it."""
    with servers.new_place() as place:
        place.location().open(read_only=False).close()
        yield place


def examine(place: Place, **options: Any) -> tuple[Diagnosis, ...]:
    from aimagestore.cluster import doctor

    found = doctor(place.location(**options))
    for diagnosis in found:
        assert "s3cr3t" not in repr(diagnosis)
    return found


def wrong(place: Place, **options: Any) -> list[tuple[str, str, str]]:
    """Return the findings that are wrong: severity, subject and text."""
    found = examine(place, **options)
    return [(d.severity.value, d.about, d.text) for d in found if d.severity in {WARNING, ERROR}]


def texts(place: Place, severity: str, about: str) -> list[str]:
    return [d.text for d in examine(place) if (d.severity, d.about) == (severity, about)]


def test_well_configured_servers_have_no_findings(servers: Servers, opened: Place) -> None:
    from .drills import Bucket

    before = Bucket(servers, opened).read()
    found = examine(opened)
    assert [d for d in found if d.severity in {WARNING, ERROR}] == []
    assert Bucket(servers, opened).read() == before
    assert not [d for d in found if "is not known" in d.text]
    assert {d.about for d in found if d.severity == OK} >= {
        "database",
        "tables",
        "role",
        "pooler",
        "time limits",
        "durability",
        "sessions",
        "clock",
        "bucket",
        "listing",
        "writing",
        "identity",
    }
    assert {d.about for d in found} >= {"standby", "versioning", "lifecycle"}


def test_a_store_that_nobody_has_opened_is_no_error(place: Place) -> None:
    assert wrong(place) == []
    assert texts(place, NOTE, "identity") == ["no store has been opened for writing yet"]


# The database


def test_a_pooler_that_shares_sessions_is_an_error(servers: Servers, opened: Place) -> None:
    with Pooler(opened.records_url, shares=True) as pooler:
        found = wrong(servers.by_way_of(opened, pooler.port))
    assert (ERROR, "pooler") in {d[:2] for d in found}


def test_a_pooler_that_keeps_sessions_is_fine_but_drops_their_options(
    servers: Servers, opened: Place
) -> None:
    with (
        setting_of_role(servers, opened, statement_timeout="5s"),
        Pooler(opened.records_url, shares=False) as pooler,
    ):
        there = servers.by_way_of(opened, pooler.port)
        assert texts(there, OK, "pooler") == ["a pooler keeps a session for each client"]
        found = wrong(there)
    assert {d[:2] for d in found} == {(WARNING, "time limits")}
    assert {d[2].split()[0] for d in found} == {
        "statement_timeout",
        "client_connection_check_interval",
    }


@contextmanager
def setting_of_role(servers: Servers, place: Place, **settings: str) -> Iterator[None]:
    execute: Any = servers.postgres.execute
    role = f"ALTER ROLE postgres IN DATABASE {place.database}"
    for name, value in settings.items():
        execute(f"{role} SET {name} = '{value}'")
    try:
        yield
    finally:
        execute(f"{role} RESET ALL")


@pytest.mark.parametrize(
    "name", ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"]
)
def test_a_limit_in_the_address_is_a_warning(opened: Place, name: str) -> None:
    limited = replace(opened, records_url=f"{opened.records_url}?options=-c%20{name}%3D1s")
    ((severity, about, text),) = wrong(limited)
    assert (severity, about) == (WARNING, "time limits")
    assert text.startswith(f"{name} is 1000 ms")


def test_limits_of_the_role_do_not_apply(servers: Servers, opened: Place) -> None:
    limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    with setting_of_role(servers, opened, **dict.fromkeys(limits, "1s")):
        assert wrong(opened) == []


@contextmanager
def role(servers: Servers, place: Place, *statements: str, options: str = "") -> Iterator[Place]:
    """Yield the place as another role sees it, which gets its rights from the statements."""
    execute: Any = servers.postgres.execute
    execute(f"CREATE ROLE examined LOGIN {options} PASSWORD '{servers.postgres.password}'")
    try:
        for statement in statements:
            execute(statement, (), place.database)
        yield replace(place, records_url=place.records_url.replace("postgres@", "examined@"))
    finally:
        execute("DROP OWNED BY examined", (), place.database)
        execute("DROP ROLE examined")


READ = "GRANT SELECT ON ALL TABLES IN SCHEMA public TO examined"
WRITE = "GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO examined"


def test_missing_privileges_of_the_role_are_named(servers: Servers, opened: Place) -> None:
    revoked = "REVOKE UPDATE ON images, image_store FROM examined"
    with role(servers, opened, READ, WRITE, revoked) as there:
        text = "the role lacks UPDATE on image_store, UPDATE on images"
        assert wrong(there) == [(ERROR, "role", text)]
    with role(servers, opened, READ, "REVOKE SELECT ON image_names FROM examined") as there:
        assert wrong(there) == [(ERROR, "role", "the role lacks SELECT on image_names")]


def test_a_role_may_read_only(servers: Servers, opened: Place) -> None:
    with role(servers, opened, READ) as there:
        assert wrong(there) == []
        assert len(texts(there, NOTE, "role")) == 1


@pytest.mark.parametrize(("limit", "severity"), [(8, ERROR), (24, WARNING), (40, OK)])
def test_too_few_free_sessions_are_reported(
    servers: Servers, opened: Place, limit: int, severity: str
) -> None:
    with role(servers, opened, READ, options=f"CONNECTION LIMIT {limit}") as there:
        (found,) = [d for d in examine(there) if d.about == "sessions"]
        assert found.severity == severity
        assert int(found.text.split()[0]) <= limit


@contextmanager
def server_setting(servers: Servers, name: str, value: str) -> Iterator[None]:
    servers.set(**{name: value})
    try:
        yield
    finally:
        servers.set(**{name: None})


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
def test_a_server_that_does_not_write_through_is_an_error(
    servers: Servers, opened: Place, name: str
) -> None:
    with server_setting(servers, name, "off"):
        ((severity, about, text),) = wrong(opened)
    assert (severity, about, text.split()[0]) == (ERROR, "durability", name)


def test_commits_that_do_not_wait_for_the_disk_are_an_error(
    servers: Servers, opened: Place
) -> None:
    with setting_of_role(servers, opened, synchronous_commit="off"):
        ((severity, about, text),) = wrong(opened)
    assert (severity, about, text.split()[0]) == (ERROR, "durability", "synchronous_commit")


def test_commits_that_wait_for_a_missing_standby_are_an_error(
    servers: Servers, opened: Place
) -> None:
    with server_setting(servers, "synchronous_standby_names", "*"):
        ((severity, about, text),) = wrong(opened)
        assert (severity, about) == (ERROR, "standby")
        assert "every commit waits" in text
    with (
        setting_of_role(servers, opened, synchronous_commit="local"),
        server_setting(servers, "synchronous_standby_names", "*"),
    ):
        assert (WARNING, "durability") in {d[:2] for d in wrong(opened)}


def test_standbys_are_examined_from_both_sides(servers: Servers, opened: Place) -> None:
    with servers.standby() as standby:
        there = servers.by_way_of(opened, standby.port)
        assert becomes_true(lambda: bool(texts(there, OK, "identity")), 60)
        assert wrong(there) == []
        assert len(texts(there, OK, "standby")) == 1
        assert becomes_true(lambda: bool(texts(opened, OK, "standby")), 60)
        (text,) = texts(opened, NOTE, "standby")
        assert "asynchronous" in text
        with role(servers, opened, READ) as blind:
            (text,) = texts(blind, NOTE, "standby")
            assert "may not see" in text
        standby.execute("SELECT pg_wal_replay_pause()")
        state = "SELECT pg_get_wal_replay_pause_state()"
        assert becomes_true(lambda: standby.execute(state) == [("paused",)])
        assert (WARNING, "standby") in {d[:2] for d in wrong(there)}
        standby.execute("SELECT pg_wal_replay_resume()")


def test_a_standby_that_is_far_behind_is_a_warning(
    servers: Servers, opened: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aimagestore.cluster._doctor_database import DatabaseDoctor

    rows = [("near", "async", 0, 0.1), ("late", "async", 10, 61.0), ("far", "async", 1 << 30, None)]
    real = DatabaseDoctor._ask

    def ask(doctor: Any, statement: Any, *values: object) -> Any:
        return rows if "pg_stat_replication" in statement else real(doctor, statement, *values)

    monkeypatch.setattr(DatabaseDoctor, "_ask", ask)
    assert [text.split()[0] for _, _, text in wrong(opened)] == ["late", "far"]


def test_tables_that_are_missing_are_an_error(servers: Servers, opened: Place) -> None:
    name = f"{opened.database}_empty"
    servers.postgres.create_database(name)
    empty = replace(opened, records_url=servers.postgres.url(name))
    ((severity, about, text),) = wrong(empty)
    assert (severity, about) == (ERROR, "tables")
    assert "cluster migrate" in text
    servers.postgres.drop_database(name)


def test_a_database_that_does_not_answer_is_an_error(opened: Place) -> None:
    closed = replace(opened, records_url="postgresql://u:s3cr3t@127.0.0.1:1/db")
    assert [d[:2] for d in wrong(closed, deadline=1.0)] == [(ERROR, "database")]
    refused = replace(
        opened, records_url=opened.records_url.replace("postgres@", "postgres:s3cr3t@")
    )
    ((_, _, text),) = wrong(refused)
    assert "password authentication failed" in text


def test_a_database_of_another_store_is_an_error(servers: Servers, place: Place) -> None:
    place.location().open(read_only=False).close()
    statement = "UPDATE image_store SET identity = gen_random_uuid()"
    servers.postgres.execute(statement, (), place.database)
    ((severity, about, text),) = wrong(place)
    assert (severity, about) == (ERROR, "identity")
    assert "cluster adopt" in text


# Clocks


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_wrong_clock_of_this_machine_is_a_warning(
    opened: Place, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)
    way = "ahead of" if seconds > 0 else "behind"
    assert [(d[1], way in d[2], "this machine" in d[2]) for d in wrong(opened)] == 2 * [
        ("clock", True, True)
    ]


def test_a_wrong_clock_of_the_database_is_a_warning(
    opened: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = SimpleNamespace(time=lambda: time.time() - 3600)
    monkeypatch.setattr("aimagestore.cluster._doctor_bucket.time", behind)
    found = {text for _, _, text in wrong(opened)}
    assert any("the database is 3" in text and "that of the object store" in text for text in found)


# The bucket


def refusing(wanted: str, part: str = "") -> Callable[[str, str, str], Answer | None]:
    """Return a rule that refuses requests of a method with ``part`` in the query."""

    def rule(method: str, path: str, query: str) -> Answer | None:
        is_it = method == wanted and part in query and "versioning" not in query
        is_marker = path.endswith("aimagestore.json")
        return error(403, "AccessDenied") if is_it and not is_marker else lets_through("", "", "")

    return rule


@pytest.mark.parametrize(
    ("method", "part", "about"),
    [("GET", "list-type", "listing"), ("PUT", "", "writing"), ("POST", "delete", "removing")],
)
def test_missing_permissions_of_the_credentials_are_named(
    opened: Place, gateway: Gateway, method: str, part: str, about: str
) -> None:
    gateway.rule = refusing(method, part)
    ((severity, found, text),) = wrong(opened)
    assert (severity, found) == (ERROR, about)
    assert "the credentials do not permit" in text


def test_a_reader_need_not_write(servers: Servers, opened: Place, gateway: Gateway) -> None:
    gateway.rule = refusing("PUT")
    with role(servers, opened, READ) as there:
        assert wrong(there) == []


def test_a_bucket_that_ignores_conditions_is_an_error(opened: Place, gateway: Gateway) -> None:
    written: set[str] = set()

    def rule(method: str, path: str, query: str) -> Answer | None:
        if method == "PUT" and path in written:
            return Answer(200, headers=(("ETag", '"1"'),))
        written.add(path)
        return None

    gateway.rule = rule
    ((severity, about, text),) = wrong(opened)
    assert (severity, about) == (ERROR, "writing")
    assert "ignores conditions" in text


def test_a_bucket_that_is_missing_is_an_error(opened: Place) -> None:
    elsewhere = replace(opened, blobs_url="s3://no-such-bucket/prefix")
    ((severity, about, text),) = wrong(elsewhere)
    assert (severity, about) == (ERROR, "bucket")
    assert "no such bucket" in text


EXPIRE = "<Expiration><Days>30</Days></Expiration>"
MARKERS = "<Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>"
ARCHIVE = "<Transition><Days>30</Days><StorageClass>{}</StorageClass></Transition>"
ABORT = "<AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation></Abort{}>"


@pytest.mark.parametrize(
    ("rule", "errors"),
    [
        (f"<Filter><Prefix></Prefix></Filter>{EXPIRE}<Status>Enabled</Status>", 1),
        (f"<Prefix>OWN/</Prefix>{EXPIRE}<Status>Enabled</Status>", 1),
        (f"<Prefix>OWN/ab</Prefix>{EXPIRE}<Status>Enabled</Status>", 1),
        (f"<Prefix>logs/</Prefix>{EXPIRE}<Status>Enabled</Status>", 0),
        (f"<Prefix>OWN/</Prefix>{EXPIRE}<Status>Disabled</Status>", 0),
        (f"{MARKERS}<Status>Enabled</Status>", 0),
        (f"{ARCHIVE.format('GLACIER')}<Status>Enabled</Status>", 1),
        (f"{ARCHIVE.format('STANDARD_IA')}<Status>Enabled</Status>", 0),
    ],
)
def test_a_rule_that_deletes_objects_is_an_error(
    opened: Place, gateway: Gateway, rule: str, errors: int
) -> None:
    own = opened.blobs_url.removeprefix("s3://").partition("/")[2]
    text = f"<C xmlns='http://s3'><Rule>{rule.replace('OWN', own)}</Rule></C>"
    gateway.rule = lambda method, path, query: (
        Answer(200, text) if query.startswith("lifecycle") else None
    )
    assert [d[:2] for d in wrong(opened)] == errors * [(ERROR, "lifecycle")]


def test_a_rule_that_ends_incomplete_uploads_is_reported(opened: Place, gateway: Gateway) -> None:
    abort = ABORT.format("IncompleteMultipartUpload")
    text = f"<C><Rule>{abort}<Status>Enabled</Status></Rule></C>"
    gateway.rule = lambda method, path, query: (
        Answer(200, text) if query.startswith("lifecycle") else None
    )
    assert texts(opened, OK, "lifecycle") == ["incomplete uploads are ended"]
    gateway.rule = lets_through
    assert len(texts(opened, NOTE, "lifecycle")) == 1


@pytest.mark.parametrize(
    ("answer", "severity", "part"),
    [
        (Answer(200, "<V xmlns='http://s3'><Status>Enabled</Status></V>"), OK, "keeps versions"),
        (Answer(200, "<V><Status>Suspended</Status></V>"), NOTE, "keeps no versions"),
        (Answer(200, "<V/>"), NOTE, "keeps no versions"),
        (error(403, "AccessDenied"), NOTE, "is not known: the server answers AccessDenied"),
        (Answer(501), NOTE, "is not known: the server answers 501"),
        (Answer(200, "not XML"), NOTE, "is not known: the server's answer is not XML"),
    ],
)
def test_whether_the_bucket_keeps_versions_is_reported_or_unknown(
    opened: Place, gateway: Gateway, answer: Answer, severity: str, part: str
) -> None:
    gateway.rule = lambda method, path, query: answer if query.startswith("versioning") else None
    (text,) = texts(opened, severity, "versioning")
    assert part in text
    assert wrong(opened) == []


# The command


def test_the_command_prints_a_table_and_says_whether_anything_is_wrong(
    servers: Servers, opened: Place
) -> None:
    root = f"{opened.records_url} {opened.blobs_url}"
    table = run("--root", root, "cluster", "doctor")
    assert table.split("\n")[0].split() == ["SEVERITY", "ABOUT", "FOUND", "ADVICE"]
    found = json.loads(run("--root", root, "cluster", "doctor", "--json"))
    assert found[0]["severity"] == "ok"
    assert found[0].keys() == {"severity", "about", "text", "advice"}
    with setting_of_role(servers, opened, synchronous_commit="off"):
        run("--root", root, "cluster", "doctor", code=1)
    run("cluster", "doctor", code=2)


def test_only_a_cluster_has_a_doctor() -> None:
    from aimagestore.cluster import doctor

    nowhere: Any = "postgresql://h/db"
    with pytest.raises(TypeError, match="ClusterLocation"):
        doctor(nowhere)
