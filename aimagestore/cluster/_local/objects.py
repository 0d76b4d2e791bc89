"""An object store on this machine: a server of the S3 protocol."""

from __future__ import annotations

import secrets
import urllib.error
import urllib.request
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

from obstore.store import S3Store

from .server import HOST, Server

BUCKET = "images"
REGION = "us-east-1"


class ObjectServer(Server):
    """A server on the loopback interface, with one bucket and random keys.

    :ivar port: the port of the S3 protocol
    :ivar access_key: the access key ID
    :ivar secret_key: the secret access key
    """

    def __init__(self, root: Path, port: int) -> None:
        super().__init__(root)
        self.port = port
        self.access_key = secrets.token_hex(10)
        self.secret_key = secrets.token_urlsafe()

    @abstractmethod
    def create(self) -> None:
        """Create the directory of a new server, start it, and create its bucket."""

    @property
    def endpoint(self) -> str:
        """The URL of the S3 protocol."""
        return f"http://{HOST}:{self.port}"

    @property
    def environment(self) -> Mapping[str, str]:
        """The endpoint and the keys, as environment variables for clients."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
        }

    def is_ready(self) -> bool:
        """Return whether it answers, if only that it requires credentials."""
        try:
            urllib.request.urlopen(self.endpoint, timeout=5).close()
        except urllib.error.HTTPError as answer:
            answer.close()
            return answer.code < 500
        except OSError:
            return False
        return True

    def bucket(self, prefix: str = "", *, retries: int = 10) -> S3Store:
        """Return a client of the bucket."""
        return S3Store(
            BUCKET,
            prefix=prefix or None,
            endpoint=self.endpoint,
            access_key_id=self.access_key,
            secret_access_key=self.secret_key,
            region=REGION,
            client_options={"allow_http": True},
            retry_config={"max_retries": retries},
        )
