"""A SeaweedFS server on this machine: an object store with the S3 protocol."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from obstore.exceptions import BaseError
from obstore.store import S3Store

from .server import HOST, Server, ServersMissingError, free_ports

BUCKET = "images"
REGION = "us-east-1"

_TIMEOUT = 60
_FIRST = b"x" * 10_000


def find_program() -> str:
    """Return the path of SeaweedFS's program, ``weed``.

    :raises ServersMissingError: when there is none
    """
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if found is None:
        raise ServersMissingError("SeaweedFS")
    return found


class SeaweedFS(Server):
    """A SeaweedFS on the loopback interface, with one bucket and random keys.

    :ivar port: the port of the S3 protocol
    :ivar access_key: the access key ID
    :ivar secret_key: the secret access key
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.access_key = secrets.token_hex(10)
        self.secret_key = secrets.token_urlsafe()
        self._ports = free_ports(8)
        self.port = self._ports[-1]

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

    def create(self) -> None:
        """Create the directory of a new server, start it, and create its bucket, with fsync."""
        (self.root / "data").mkdir(0o700, parents=True)
        keys = {"accessKey": self.access_key, "secretKey": self.secret_key}
        identity = {"name": "aimagestore", "credentials": [keys], "actions": ["Admin"]}
        identities = self.root / "identities.json"
        identities.touch(0o600)
        identities.write_text(json.dumps({"identities": [identity]}))
        self._begin()
        self._command(f"s3.bucket.create -name {BUCKET}")
        self._command(f"fs.configure -locationPrefix=/buckets/{BUCKET}/ -fsync -apply")
        self._wait_until_writable()

    def start(self) -> None:
        """Start it, also after a crash, and return when it serves."""
        self._begin()
        self._wait_until_writable()

    def stop(self) -> None:
        """Stop it in order, which takes a while."""
        self._end(signal.SIGTERM)
        self._remove_sockets()

    def kill(self) -> None:
        """Kill it at once. Idempotent."""
        self._end(signal.SIGKILL)
        self._remove_sockets()

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

    def _begin(self) -> None:
        names = ("master", "volume", "filer", "s3")
        ports = zip(names, self._ports[:4], self._ports[4:], strict=True)
        command = [find_program(), "server", "-filer", "-s3", f"-dir={self.root / 'data'}"]
        command += [f"-ip={HOST}", f"-ip.bind={HOST}", "-volume.max=0", "-master.telemetry=false"]
        for name, internal, port in ports:
            command += [f"-{name}.port={port}", f"-{name}.port.grpc={internal}"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        # With one master, an election need not wait.
        command += ["-master.electionTimeout=100ms"]
        command += [f"-s3.config={self.root / 'identities.json'}"]
        self._launch(command, environment=os.environ | {"TMPDIR": str(self.root)})

    def _command(self, line: str) -> None:
        internal, _, _, _, port, *_ = self._ports
        self._run_command(
            [find_program(), "shell", f"-master={HOST}:{port}.{internal}"], line.encode()
        )

    def _wait_until_writable(self) -> None:
        # It answers before it can store anything.
        until = time.monotonic() + _TIMEOUT
        bucket = self.bucket(retries=0)
        while True:
            try:
                bucket.put("first", _FIRST)
            except BaseError:
                if self._process is None or time.monotonic() > until:
                    raise
            else:
                bucket.delete("first")
                return

    def _remove_sockets(self) -> None:
        # It creates them there, whatever TMPDIR is, and leaves them when it is killed.
        for port in self._ports:
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
                path.unlink(missing_ok=True)
