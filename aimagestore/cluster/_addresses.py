"""Where a cluster keeps its images, and what may be said of that: never a credential."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import psycopg
from obstore.store import S3Store
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from .patience import PATIENCE

# A server that is gone without a word is noticed after this, not after two hours; and by the server
# a client, for it may hold the lock that all others wait for.
_SERVER_OPTIONS = (
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
    " -c tcp_user_timeout=20000"
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
class Records:
    """Where the records are.

    :ivar conninfo: what libpq connects to; it may have a password in it
    :ivar name: what to call it in messages
    """

    conninfo: str
    name: str

    @classmethod
    def at(cls, records: str) -> Records:
        """Read a libpq URL or connection string.

        :raises ValueError: when it is none
        """
        try:
            given = conninfo_to_dict(records)
        except psycopg.ProgrammingError:
            # What libpq says of it quotes it, and with it a password.
            raise ValueError(
                "records must be a URL or connection string of PostgreSQL, such as "
                "postgresql://host/database"
            ) from None
        host = given.get("host") or given.get("hostaddr") or given.get("service") or ""
        port = f":{given['port']}" if given.get("port") else ""
        options = f"{_SERVER_OPTIONS} {given.get('options') or ''}".rstrip()
        name = f"postgresql://{host}{port}/{given.get('dbname', '')}"
        parameters: dict[str, Any] = _DEFAULTS | given | {"options": options}
        return cls(make_conninfo("", **parameters), name)

    def __repr__(self) -> str:
        return f"Records({self.name!r})"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where big data is.

    :ivar name: what to call it in messages: its URL
    :ivar bucket: the bucket's name
    :ivar prefix: what the names of all objects begin with
    """

    name: str
    bucket: str
    prefix: str

    @classmethod
    def at(cls, blobs: str) -> Bucket:
        """Read a URL such as ``s3://bucket/prefix``.

        :raises ValueError: when it is another
        """
        url = urlsplit(blobs)
        if url.scheme != "s3" or not url.netloc or "@" in url.netloc or url.query or url.fragment:
            raise ValueError(
                "blobs must be a URL such as s3://bucket/prefix; credentials and the endpoint "
                "come from the environment: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL…"
            )
        prefix = url.path.strip("/")
        return cls(f"s3://{url.netloc}/{prefix}".rstrip("/"), url.netloc, prefix)

    def open(self) -> S3Store:
        """A client of it. Nothing is asked of the server yet.

        :raises ValueError: when credentials would go over the network in the clear
        """
        return S3Store(
            self.bucket,
            prefix=self.prefix or None,
            client_options={
                "allow_http": _allows_http(),
                "connect_timeout": timedelta(seconds=5),
                # Of silence. The whole of an item may take longer than any limit.
                "read_timeout": timedelta(seconds=30),
                "timeout": timedelta(days=1),
            },
            retry_config={
                "retry_timeout": timedelta(seconds=PATIENCE),
                "max_retries": 100,
                "backoff": {"max_backoff": timedelta(seconds=1)},
            },
        )


def _allows_http() -> bool:
    """Whether the endpoint may be spoken to without TLS: on this machine, or where it is said."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    endpoint = urlsplit(next((url for name in names if (url := os.environ.get(name))), ""))
    if endpoint.scheme != "http":
        return False
    if _is_loopback(endpoint.hostname or "") or _is_true(os.environ.get("AWS_ALLOW_HTTP", "")):
        return True
    raise ValueError(
        "the object store's endpoint is plain http: use https, or set AWS_ALLOW_HTTP=true where "
        "the network between is trusted"
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _is_true(text: str) -> bool:
    return text.lower() in {"1", "true", "yes", "on"}
