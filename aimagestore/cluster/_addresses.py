"""Addresses of databases and buckets, and their names in messages, which have no credentials."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

import psycopg
from obstore.store import S3Store
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from .._core.addresses import is_address

# Each side notices a lost peer within 25 seconds, not two hours: a lost client may hold the lock.
# The check interval has the server end a query, or a wait for the lock, whose client has left.
# Calls have deadlines of their own, so the time limits that the role may have do not apply.
# psycopg reads dates in one style, and writes bytes for one way to quote, so these are set as well.
SERVER_SETTINGS = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "client_connection_check_interval": "2000",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "datestyle": "ISO",
    "standard_conforming_strings": "on",
}
"""The server's settings for every session, sent when it is opened."""

_DEFAULTS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "fallback_application_name": "aimagestore",
}

# Records and keys are texts of Unicode, whatever the role or the environment of the program say.
_ENCODING = {"client_encoding": "UTF8"}

# A password that is not percent-encoded makes parts of itself the host, the port or the database.
# Messages show these, so they are refused when they contain what belongs to none of them.
_URL = re.compile(
    r"postgres(?:ql)?://(?:[^@/\s]*@)?[^@/\s?#]*(?:/[^@/\s?#]*)?(?:\?[^@\s#]*)?", re.ASCII
)
_HOSTS = re.compile(r"[\w.,:%-]*|[/@][^\s,]*(?:,[/@][^\s,]*)*")
_PORTS = re.compile(r"[0-9,]*")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_SEGMENT = re.compile(r"(?!\.{1,2}$)[^\s/?#\\]+")

_SETTINGS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


@dataclass(frozen=True, slots=True)
class DatabaseAddress:
    """The address of the database that has the records.

    :ivar conninfo: the connection string for libpq, which may contain a password
    :ivar name: its name in messages
    """

    conninfo: str
    name: str

    @classmethod
    def of(cls, records_url: str) -> DatabaseAddress:
        """Parse a libpq URL or connection string.

        :raises ValueError: when it is malformed; without the address, which may contain a password
        """
        given = _parse(records_url)
        host = given.get("host") or given.get("hostaddr") or given.get("service") or ""
        port = f":{given['port']}" if given.get("port") else ""
        settings = (f"-c {setting}={value}" for setting, value in SERVER_SETTINGS.items())
        # libpq reads the variable only where it is given no options.
        more = given.get("options") or os.environ.get("PGOPTIONS", "")
        options = " ".join([*settings, str(more)]).rstrip()
        name = f"postgresql://{host}{port}/{given.get('dbname', '')}"
        parameters: dict[str, Any] = {**_DEFAULTS, **given, **_ENCODING, "options": options}
        return cls(make_conninfo("", **parameters), name)

    def __repr__(self) -> str:
        return f"DatabaseAddress({self.name!r})"

    def connect(self, *, autocommit: bool = False) -> psycopg.Connection[tuple[Any, ...]]:
        """Open a session, without any time limit but the connection string's.

        :raises psycopg.Error: when that fails
        """
        failure: psycopg.Error
        try:
            return psycopg.connect(self.conninfo, autocommit=autocommit)
        except psycopg.Error as error:
            # Without the connection, which is an attribute whose repr has the password.
            failure = type(error)(*error.args)
        raise failure


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """The address of the objects that have the big data.

    :ivar name: its name in messages: the URL
    :ivar bucket: the name of the bucket
    :ivar prefix: the prefix of all objects' names
    """

    name: str
    bucket: str
    prefix: str

    @classmethod
    def of(cls, blobs_url: str) -> BucketAddress:
        """Parse a URL such as ``s3://bucket/prefix``.

        :raises ValueError: when it is malformed
        """
        bucket, _, prefix = blobs_url.removeprefix("s3://").partition("/")
        segments = prefix.rstrip("/").split("/") if prefix.rstrip("/") else []
        is_fine = (
            blobs_url.startswith("s3://")
            and blobs_url.isprintable()
            and _BUCKET.fullmatch(bucket) is not None
            and all(_SEGMENT.fullmatch(segment) for segment in segments)
        )
        if not is_fine:
            raise ValueError(
                "blobs_url must be a URL such as s3://bucket/prefix; credentials and the endpoint "
                "come from the environment: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL…"
            )
        return cls("/".join(["s3:/", bucket, *segments]), bucket, "/".join(segments))

    def open(self, *, attempt: float, retries: float) -> S3Store:
        """Return a client, perhaps one that other stores use too. It sends no request yet.

        :param attempt: seconds within which the response to a request must begin, and within
            which each further piece of it must come
        :param retries: seconds from the first attempt in which another one may begin
        :raises ValueError: when a setting in the environment cannot be used, or credentials would
            be sent over the network in the clear
        """
        _check_environment()
        return _client(self, attempt, retries, os.getpid(), frozenset(os.environ.items()))


# Making a client reads all certificates of this machine, which stops every thread of the process,
# the event loop's too, for about 20 ms. Everything else that it reads is in the environment.
@lru_cache(maxsize=32)
def _client(
    address: BucketAddress,
    attempt: float,
    retries: float,
    process: int,
    environment: frozenset[tuple[str, str]],
) -> S3Store:
    del process, environment  # only part of the cache's key: a client serves one of each
    return S3Store(
        address.bucket,
        prefix=address.prefix or None,
        client_options={
            "allow_http": _allows_http(),
            "connect_timeout": timedelta(seconds=min(attempt, 5.0)),
            # Without a byte. An item as a whole may take longer than any limit.
            "read_timeout": timedelta(seconds=attempt),
            "timeout": timedelta(days=1),
        },
        retry_config={
            "retry_timeout": timedelta(seconds=retries),
            "max_retries": 100 if retries else 0,
            "backoff": {"max_backoff": timedelta(seconds=1)},
        },
    )


def _parse(records_url: str) -> Mapping[str, Any]:
    """Return the parameters of a libpq URL or connection string.

    :raises ValueError: when it is malformed
    """
    given: Mapping[str, Any] | None = None
    if records_url.strip() and "\0" not in records_url:
        # Raised below, without these errors, which quote the address.
        with suppress(psycopg.ProgrammingError, UnicodeError):
            given = conninfo_to_dict(records_url)
    if given is None:
        raise ValueError(
            "records_url must be a URL or connection string of PostgreSQL, such as "
            "postgresql://host/database"
        )
    is_url = "://" in records_url.partition("=")[0]
    is_fine = (
        (not is_url or _URL.fullmatch(records_url) is not None)
        and _HOSTS.fullmatch(str(given.get("host", ""))) is not None
        and _HOSTS.fullmatch(str(given.get("hostaddr", ""))) is not None
        and _PORTS.fullmatch(str(given.get("port", ""))) is not None
        and str(given.get("service", "")).isprintable()
        and _is_name(str(given.get("dbname", "")))
    )
    if not is_fine:
        raise ValueError(
            "records_url must be one URL, with the user, the password and the database "
            "percent-encoded (%40 for @, %2F for /, %20 for a blank), or one connection string: "
            "postgresql://host/database, or 'host=host dbname=database'"
        )
    return given


def _is_name(database: str) -> bool:
    """Return whether it can be the name of a database, and is not an address or part of one."""
    is_part = re.search(r":.*@", database) is not None
    return database.isprintable() and not is_part and not is_address(database)


def _check_environment() -> None:
    """Check the settings of the S3 client, which panics over some characters.

    :raises ValueError: when one of them cannot be used
    """
    for name in _SETTINGS:
        value = os.environ.get(name, "")
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"{name} must be one line of ASCII characters, without a line end")


def endpoint() -> SplitResult | None:
    """Return the endpoint of the object store, if one is set.

    :raises ValueError: when one that is set, even if it is not used, is malformed or has
        credentials, which messages would show
    """
    found = [_endpoint(name) for name in _ENDPOINTS if os.environ.get(name)]
    return found[0] if found else None


def _endpoint(name: str) -> SplitResult:
    with suppress(ValueError):  # raised below, without this error, which quotes the URL
        found = urlsplit(os.environ[name])
        _ = found.port
        is_fine = found.scheme in {"http", "https"} and bool(found.hostname)
        if is_fine and not set("@?# ") & set(os.environ[name]):
            return found
    raise ValueError(
        f"{name} must be a URL such as https://host:port, without credentials: these come from "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )


def _allows_http() -> bool:
    """Return whether the endpoint is used without TLS: on this machine, or where allowed."""
    found = endpoint()
    if found is None or found.scheme != "http":
        return False
    if _is_loopback(found.hostname or "") or _is_true(os.environ.get("AWS_ALLOW_HTTP", "")):
        return True
    raise ValueError(
        "the endpoint of the object store is plain http: use https, or set AWS_ALLOW_HTTP=true "
        "where the network is trusted"
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _is_true(text: str) -> bool:
    return text.lower() in {"1", "true", "yes", "on"}
