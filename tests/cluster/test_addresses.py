"""Addresses: malformed ones are refused, and no message shows a password, whatever its form."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch
from urllib.parse import quote

import pytest
from click.testing import Result
from hypothesis import example, given, settings, strategies as st

from aimagestore import ImageStore, Report, StoreUnavailableError, check, repair

for package in ("psycopg", "obstore"):
    pytest.importorskip(package, reason="needs the clients: pip install 'aimagestore[cluster]'")

from aimagestore._cli.human import without_secrets
from aimagestore.cluster import ClusterLocation, migrate
from aimagestore.cluster._addresses import BucketAddress, DatabaseAddress
from aimagestore.cluster._blobs import Blobs

from ..support.commands import invoke

if TYPE_CHECKING:
    from .servers import Place, Servers

# The beginning and the end of every password, which no text may contain.
MARKS = ("s3cr3tA", "s3cr3tB")

# Nothing listens there.
CLOSED = "127.0.0.1:1"

PASSWORDS = st.text(
    st.characters() | st.sampled_from("@:/?#[]%&=+'\"\\ \n\t;,$\0\x7fé€\ud800"), max_size=12
).map(lambda text: text.join(MARKS))

HARD = ["@/:?#%&=+ '\"\\$,;", "é\u2028\n\t%2 %40\\'", "' host='://[::1]@h/1?password=x"]


def texts_of(error: BaseException) -> Iterator[str]:
    """Iterate over all texts that an error or its causes could show."""
    yield "".join(traceback.format_exception(error))
    seen: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        found = pending.pop()
        if found is not None and found not in seen:
            seen.append(found)
            pending += [found.__cause__, found.__context__]
            yield repr((found, found.args, str(found), getattr(found, "__notes__", [])))
            yield repr(vars(found))


def assert_secret(*texts: str) -> None:
    for text in texts:
        for mark in MARKS:
            assert mark not in text


def fits_environment(text: str) -> bool:
    """Return whether an environment variable can have this value."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    with patch.dict(os.environ, variables):
        yield


# Passwords of the database

Form = Callable[..., str]


def quoted(value: str) -> str:
    """Quote a value for a connection string."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def encoded(password: str) -> str:
    return quote(password.encode("utf-8", "surrogatepass"), safe="")


GOOD: dict[str, Form] = {
    "URL": lambda where, p, db="db": f"postgresql://difficult:{encoded(p)}@{where}/{db}",
    "query": lambda where, p, db="db": (
        f"postgresql://{where}/{db}?user=difficult&password={encoded(p)}"
    ),
    "string": lambda where, p, db="db": (
        f"host={where.split(':')[0]} port={where.split(':')[1]} user=difficult "
        f"password={quoted(p)} dbname={db}"
    ),
}
BAD: dict[str, Form] = {
    "raw URL": lambda where, p: f"postgresql://postgres:{p}@{where}/db",
    "raw query": lambda where, p: f"postgresql://{where}/db?password={p}",
    "raw string": lambda where, p: f"host=127.0.0.1 password={p} dbname=db",
    "string first": lambda where, p: f"password={p} host=127.0.0.1",
    "dialect": lambda where, p: f"postgresql+psycopg://postgres:{p}@{where}/db",
    "upper case": lambda where, p: f"Postgresql://postgres:{encoded(p)}@{where}/db",
    "blank": lambda where, p: f" postgresql://postgres:{encoded(p)}@{where}/db",
    "two": lambda where, p: f"postgresql://postgres:{encoded(p)}@{where}/db s3://b/x",
    "with a comma": lambda where, p: f"postgresql://postgres:{encoded(p)}@{where}/db,s3://b/x",
    "in brackets": lambda where, p: f"postgresql://postgres:{encoded(p)}@[::1/db",
    "bad port": lambda where, p: f"postgresql://postgres:{encoded(p)}@127.0.0.1:port/db",
    "bad option": lambda where, p: f"postgresql://postgres:{encoded(p)}@{where}/db?nonsense=1",
    "in the database": lambda where, p: f"host=127.0.0.1 dbname={quoted(f'user:{p}@host/db')}",
    "in the port": lambda where, p: f"host=127.0.0.1 port={quoted(p)}",
}


@pytest.mark.parametrize("form", [*GOOD, *BAD])
@settings(max_examples=40)
@given(password=PASSWORDS)
@example("\ud800".join(MARKS))
@example("@x".join(MARKS))
@example("/x".join(MARKS))
def test_no_location_shows_its_password(form: str, password: str) -> None:
    try:
        location = ClusterLocation((GOOD | BAD)[form](CLOSED, password), "s3://bucket/prefix")
    except ValueError as error:
        assert_secret(*texts_of(error))
        assert form in BAD or "\0" in password or not is_text(password)
    else:
        assert_secret(location.name, repr(location), str(location), repr(ImageStore(location)))


def is_text(password: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in password)


@pytest.mark.parametrize("form", GOOD)
@settings(max_examples=10)
@given(password=PASSWORDS.filter(lambda text: "\0" not in text and is_text(text)))
def test_no_error_of_opening_shows_the_password(form: str, password: str) -> None:
    location = ClusterLocation(GOOD[form](CLOSED, password), "s3://bucket", deadline=0.02)
    with pytest.raises(StoreUnavailableError) as caught:
        location.open(read_only=True)
    assert_secret(*texts_of(caught.value))


@settings(max_examples=10)
@given(password=PASSWORDS.filter(fits_environment))
def test_no_password_in_the_environment_is_shown(password: str) -> None:
    location = ClusterLocation(f"postgresql://{CLOSED}/db", "s3://bucket", deadline=0.02)
    with environment(PGPASSWORD=password), pytest.raises(StoreUnavailableError) as caught:
        location.open(read_only=True)
    assert_secret(*texts_of(caught.value))


@pytest.mark.parametrize("form", [*GOOD, "environment"])
async def test_every_password_opens_the_store(servers: Servers, place: Place, form: str) -> None:
    """Any characters work in every form. A wrong password is refused and not shown."""
    where = f"127.0.0.1:{servers.postgres.port}"
    await servers.execute(place, "CREATE ROLE difficult LOGIN SUPERUSER")
    try:
        for text in HARD:
            password = text.join(MARKS)
            literal = "E'" + password.replace("\\", "\\\\").replace("'", "\\'") + "'"
            await servers.execute(place, f"ALTER ROLE difficult PASSWORD {literal}")
            for given_password in (password, password + "x"):
                variables = {} if form in GOOD else {"PGPASSWORD": given_password}
                address = f"postgresql://difficult@{where}/{place.database}"
                if form in GOOD:
                    address = GOOD[form](where, given_password, place.database)
                location = ClusterLocation(address, place.blobs_url)
                with environment(**variables):
                    if given_password == password:
                        async with ImageStore(location) as store:
                            assert_secret(repr(store))
                    else:
                        with pytest.raises(StoreUnavailableError, match="password") as caught:
                            async with ImageStore(location):
                                pass
                        assert_secret(*texts_of(caught.value))
    finally:
        await servers.execute(place, "DROP ROLE difficult")


# Keys of the object store


@pytest.mark.parametrize(
    "name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"]
)
@settings(max_examples=20)
@given(secret=PASSWORDS.filter(fits_environment))
@example("\n".join(MARKS))
@example("".join(MARKS) + "\n")
def test_no_key_of_the_object_store_is_shown(name: str, secret: str) -> None:
    variables = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": f"http://{CLOSED}",
    }
    variables[name] = secret if name != "AWS_ENDPOINT_URL" else f"http://user:{secret}@{CLOSED}"
    with environment(**variables), pytest.raises((ValueError, StoreUnavailableError)) as caught:
        list(Blobs(BucketAddress.of("s3://bucket/prefix"), deadline=0.02).pages())
    assert_secret(*texts_of(caught.value))


@pytest.mark.parametrize(
    "value", ["", "http://", "host:80", "ftp://host", "http://host:port", "http://[::1", "a b"]
)
def test_a_malformed_endpoint_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    bucket = BucketAddress.of("s3://bucket")
    if not value:
        assert bucket.open(attempt=1, retries=0) is not None
        return
    with pytest.raises(ValueError, match="AWS_ENDPOINT_URL must be a URL") as caught:
        bucket.open(attempt=1, retries=0)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "blobs",
    [
        "",
        " ",
        "bucket",
        "s3:",
        "s3:/bucket",
        "s3://",
        "s3:///x",
        "S3://bucket/x",
        " s3://bucket/x",
        "s3://bucket/x ",
        "s3://bucket/x\n",
        "s3://bucket//x",
        "s3://bucket/../x",
        "s3://bucket/x s3://bucket/y",
        "s3://bucket/x,postgresql://u:s3cr3tA@h/db",
        "https://bucket/x",
        "postgresql://u:s3cr3tA@h/db",
        "s3://key:s3cr3tA@bucket",
        "s3://key:s3cr3tA/s3cr3tB@bucket/x",
        "s3://key:s3cr3tA\u2100@bucket",
        "s3://bucket?secret=s3cr3tA",
    ],
)
def test_invalid_addresses_of_big_data_are_refused(blobs: str) -> None:
    with pytest.raises(ValueError, match="s3://bucket/prefix") as caught:
        ClusterLocation("postgresql://host/database", blobs)
    assert_secret(*texts_of(caught.value))


@pytest.mark.parametrize(("blobs", "bucket", "prefix"), [
    ("s3://bucket", "bucket", ""),
    ("s3://bucket/", "bucket", ""),
    ("s3://bucket/a/b/", "bucket", "a/b"),
    ("s3://My_bucket.1/é@x", "My_bucket.1", "é@x"),
])  # fmt: skip
def test_valid_addresses_of_big_data_are_accepted(blobs: str, bucket: str, prefix: str) -> None:
    address = BucketAddress.of(blobs)
    assert (address.bucket, address.prefix) == (bucket, prefix)
    assert address.name == blobs.rstrip("/")


@pytest.mark.parametrize(
    "records",
    [
        "",
        "\n",
        "s3cr3tA",
        "a=b c",
        "s3://bucket/s3cr3tA",
        "postgresql://host/db ",
        "postgresql://host/db\n",
        "postgresql://user:1/s3cr3tA?password=x@host/db",  # all of it is valid for libpq
        "postgresql://host/db?user=u@host",
    ],
)
def test_invalid_addresses_of_records_are_refused(records: str) -> None:
    for call in (lambda: ClusterLocation(records, "s3://bucket"), lambda: migrate(records)):
        with pytest.raises(ValueError, match="postgresql://host/database") as caught:
            call()
        assert_secret(*texts_of(caught.value))


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ("postgresql://", "postgresql:///"),
        ("postgres://host", "postgresql://host/"),
        ("postgresql://a,b:2/db?target_session_attrs=read-write", "postgresql://a,b:,2/db"),
        ("postgresql://u:p%40w@[::1]:5/a%20b?options=-csearch_path%3Dx", "postgresql://::1:5/a b"),
        ("host=/run/postgresql dbname=db", "postgresql:///run/postgresql/db"),
        ("postgresql:///db?host=/run/postgresql", "postgresql:///run/postgresql/db"),
        ("service=name", "postgresql://name/"),
    ],
)
def test_valid_addresses_of_records_are_accepted(records: str, name: str) -> None:
    assert ClusterLocation(records, "s3://bucket").name == f"{name} with s3://bucket"


def test_options_of_the_environment_are_used(
    servers: Servers, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = place.records_url

    def work_mem(records_url: str) -> tuple[object, ...] | None:
        with DatabaseAddress.of(records_url).connect() as connection:
            return connection.execute("SHOW work_mem").fetchone()

    monkeypatch.setenv("PGOPTIONS", "-c work_mem=3MB")
    assert work_mem(url) == ("3MB",)
    assert work_mem(f"{url}?options=-c%20work_mem%3D5MB") == ("5MB",)


# Addresses where a directory belongs

CLUSTER = "postgresql://u:s3cr3tA@h/db s3://b/x"

NEAR_MISSES = [
    "postgresql://u:s3cr3tA@h/db",
    CLUSTER,
    "postgresql+psycopg://u:s3cr3tA@h/db s3://b/x",
    "Postgresql://u:s3cr3tA@h/db s3://b/x",
    "POSTGRES://u:s3cr3tA@h/db s3://b/x",
    " postgresql://u:s3cr3tA@h/db s3://b/x",
    "\tpostgresql://u:s3cr3tA@h/db s3://b/x",
    "postgresql:/u:s3cr3tA@h/db",
    "postgresql:u:s3cr3tA@h/db",
    "postgresql://u:s3cr3tA@h/db,s3://b/x",
    "postgresql://u:s3cr3tA@h/db  s3://b/x y",
    "postgresql://u:s3cr3tA@h/db S3://b/x",
    "s3://b/x",
    "S3://b/x",
    "s3:b/x",
    "s3a://b/x",
    "s3://b/x postgresql://u:s3cr3tA@h/db",
    "host=h password=s3cr3tA s3://b/x",
    "host = h dbname=x",
    "Password=s3cr3tA",
    "h,password=s3cr3tA",
    "images s3://b/x",
    "mysql://u:s3cr3tA@h/db",
    "https://u:s3cr3tA@h/db",
]


@pytest.mark.parametrize("where", [*NEAR_MISSES, *map(Path, NEAR_MISSES[:6])], ids=str)
async def test_an_address_is_not_taken_for_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str | Path
) -> None:
    monkeypatch.chdir(tmp_path)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: ImageStore(where).__aenter__(),
        lambda: ImageStore(where, read_only=True).__aenter__(),
        lambda: check(where),
        lambda: repair(where, Report()),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="not the path of a directory") as caught:
            await call()
        assert_secret(*texts_of(caught.value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a:b", "a=b", "year=2024", "C:/x", "images", " x", "s3", "h o"])
async def test_a_directory_may_have_an_unusual_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    async with ImageStore(name) as store:
        await store.create()
    for where in (f"./{NEAR_MISSES[0]}", str(tmp_path / NEAR_MISSES[0]), f"./{NEAR_MISSES[-5]}"):
        async with ImageStore(where) as store:
            await store.create()
    assert len(list(tmp_path.iterdir())) == 3


def run(*arguments: str) -> Result:
    return invoke("--verbose", *arguments)


COMMANDS = {
    "near miss": [["--root", root, "create"] for root in NEAR_MISSES if root != CLUSTER],
    "no root": [
        ["postgresql://u:s3cr3tA@h/db", "images"],
        ["images", "postgresql://u:s3cr3tA@h/db"],
        ["images", "--x=postgresql://u:s3cr3tA@h/db"],
        ["--password=s3cr3tA", "images"],
        ["--lock-timeout", "postgresql://u:s3cr3tA@h/db", "images"],
    ],
    "migrate": [
        ["cluster", "migrate", "s3://b", "postgresql://u:s3cr3tA@h/db"],
        ["cluster", "migrate", "Postgresql://u:s3cr3tA@h/db"],
        ["cluster", "migrate", "postgresql://u:s3cr3tA@h@h/db"],
        ["cluster", "postgresql://u:s3cr3tA@h/db"],
        ["--root", NEAR_MISSES[0], "cluster", "migrate"],
    ],
    "copy": [
        ["copy", "postgresql://u:s3cr3tA@h/db", "s3://b/x", "elsewhere"],
        ["copy", "elsewhere", " postgresql://u:s3cr3tA@h/db s3://b/x"],
    ],
}


@pytest.mark.parametrize("kind", [name for name in COMMANDS if name != "near miss"])
def test_wrong_usage_shows_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for arguments in COMMANDS[kind]:
        result = run(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert_secret(result.output)
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_a_root_that_is_nearly_an_address_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in COMMANDS["near miss"]:
        result = run(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert "addresses of a cluster in one argument" in result.output
        assert_secret(result.output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["get", "inspect"])
def test_an_address_that_was_given_for_an_image_is_not_repeated(
    tmp_path: Path, command: str
) -> None:
    key = ["k"] if command == "get" else []
    root = str(tmp_path / "x")
    run("--root", root, "create")
    result = run("--root", root, command, "postgresql://u:s3cr3tA @s3cr3tB@h/db", *key)
    assert result.exit_code == 3
    assert "postgresql://…@h/db" in result.stderr
    assert_secret(result.output)


def test_texts_without_secrets_are_shown_unchanged() -> None:
    for text in ["docker://h/a@sha256:0", "name@sha256:0", "postgresql://h/db", "", "a\nb@c"]:
        assert without_secrets(text) == text


def test_a_server_that_fails_shows_no_password(place: Place) -> None:
    """The program runs in a process of its own, which logs and prints as users see it."""
    address = place.records_url.replace("postgres@", "postgres:s3cr3tA@")
    command = ["--verbose", "--root", f"{address} {place.blobs_url}", "images"]
    result = subprocess.run(
        [sys.executable, "-m", "aimagestore", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    assert "authentication failed" in result.stderr
    assert "Traceback" in result.stderr
    assert_secret(result.stdout, result.stderr)
