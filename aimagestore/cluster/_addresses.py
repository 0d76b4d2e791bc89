"""Addresses of databases and buckets, and their names in messages, which have no credentials."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import psycopg
from obstore.store import S3Store
from psycopg.conninfo import conninfo_to_dict, make_conninfo

# Either side notices a lost peer after this, not after two hours: a lost client may hold the lock.
# The check interval has the server end a query, or a wait for the lock, whose client has left.
_SERVER_OPTIONS = (
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
    " -c tcp_user_timeout=20000 -c client_connection_check_interval=2000"
)
_DEFAULTS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "fallback_application_name": "aimagestore",
}


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

        :raises ValueError: when it is malformed
        """
        try:
            given = conninfo_to_dict(records_url)
        except psycopg.ProgrammingError:
            # libpq's message quotes the address, and with it a password.
            raise ValueError(
                "records_url must be a URL or connection string of PostgreSQL, such as "
                "postgresql://host/database"
            ) from None
        host = given.get("host") or given.get("hostaddr") or given.get("service") or ""
        port = f":{given['port']}" if given.get("port") else ""
        options = f"{_SERVER_OPTIONS} {given.get('options') or ''}".rstrip()
        name = f"postgresql://{host}{port}/{given.get('dbname', '')}"
        parameters: dict[str, Any] = _DEFAULTS | given | {"options": options}
        return cls(make_conninfo("", **parameters), name)

    def __repr__(self) -> str:
        return f"DatabaseAddress({self.name!r})"


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
        url = urlsplit(blobs_url)
        if url.scheme != "s3" or not url.netloc or "@" in url.netloc or url.query or url.fragment:
            raise ValueError(
                "blobs_url must be a URL such as s3://bucket/prefix; credentials and the endpoint "
                "come from the environment: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL…"
            )
        prefix = url.path.strip("/")
        return cls(f"s3://{url.netloc}/{prefix}".rstrip("/"), url.netloc, prefix)

    def open(self, *, attempt: float, retries: float) -> S3Store:
        """Return a client. It sends no request yet, and may be that of another store.

        :param attempt: seconds within which the response to a request begins, and between two
            parts of it
        :param retries: seconds from the first attempt in which another one may begin
        :raises ValueError: when credentials would be sent over the network in the clear
        """
        return _client(self, attempt, retries, os.getpid(), frozenset(os.environ.items()))


# Making a client reads all certificates of this machine, which stops every thread of the process,
# the event loop's too, for about 20 ms. All else that it reads is in the environment.
@lru_cache(maxsize=32)
def _client(
    address: BucketAddress,
    attempt: float,
    retries: float,
    process: int,
    environment: frozenset[tuple[str, str]],
) -> S3Store:
    del process, environment  # a client is good for one of each
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


def _allows_http() -> bool:
    """Return whether the endpoint is used without TLS: on this machine, or where allowed."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    endpoint = urlsplit(next((url for name in names if (url := os.environ.get(name))), ""))
    if endpoint.scheme != "http":
        return False
    if _is_loopback(endpoint.hostname or "") or _is_true(os.environ.get("AWS_ALLOW_HTTP", "")):
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
