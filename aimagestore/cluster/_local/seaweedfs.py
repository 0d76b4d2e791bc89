"""A SeaweedFS of one's own: an object store that speaks S3."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
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

_PATIENCE = 60
_FIRST = b"x" * 10_000


def find_program() -> str:
    """SeaweedFS's one program, ``weed``.

    :raises ServersMissingError: when there is none
    """
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if found is None:
        raise ServersMissingError("SeaweedFS")
    return found


class SeaweedFS(Server):
    """A SeaweedFS on the loopback interface, with one bucket and keys made up for it.

    :ivar port: where it speaks S3
    :ivar access_key: what one names oneself with
    :ivar secret_key: what one shows it with
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.access_key = secrets.token_hex(10)
        self.secret_key = secrets.token_urlsafe()
        self._ports = free_ports(8)
        self.port = self._ports[-1]

    @property
    def endpoint(self) -> str:
        """Where it is found."""
        return f"http://{HOST}:{self.port}"

    @property
    def environment(self) -> Mapping[str, str]:
        """What clients find it by, and the keys to it."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
        }

    def create(self) -> None:
        """Make a new server's directory, start it, and make its bucket, safe from a power cut."""
        (self.root / "data").mkdir(0o700, parents=True)
        keys = {"accessKey": self.access_key, "secretKey": self.secret_key}
        identity = {"name": "aimagestore", "credentials": [keys], "actions": ["Admin"]}
        identities = self.root / "identities.json"
        identities.touch(0o600)
        identities.write_text(json.dumps({"identities": [identity]}))
        self._begin()
        self._command(f"s3.bucket.create -name {BUCKET}")
        self._command(f"fs.configure -locationPrefix=/buckets/{BUCKET}/ -fsync -apply")
        self._wait_until_it_stores()

    def start(self) -> None:
        """Begin to serve, after a crash too; returns when it does."""
        self._begin()
        self._wait_until_it_stores()

    def stop(self) -> None:
        """End it in order, which takes it a while."""
        self._end(signal.SIGTERM)
        self._remove_sockets()

    def kill(self) -> None:
        """End it at once. Idempotent."""
        self._end(signal.SIGKILL)
        self._remove_sockets()

    def is_ready(self) -> bool:
        """Whether it answers, if only that it wants to know who asks."""
        try:
            urllib.request.urlopen(self.endpoint, timeout=5).close()
        except urllib.error.HTTPError as answer:
            answer.close()
            return answer.code < 500
        except OSError:
            return False
        return True

    def bucket(self, prefix: str = "") -> S3Store:
        """The bucket, as a client of it sees it."""
        return S3Store(
            BUCKET,
            prefix=prefix or None,
            endpoint=self.endpoint,
            access_key_id=self.access_key,
            secret_access_key=self.secret_key,
            region=REGION,
            client_options={"allow_http": True},
        )

    def _begin(self) -> None:
        names = ("master", "volume", "filer", "s3")
        ports = zip(names, self._ports[:4], self._ports[4:], strict=True)
        command = [find_program(), "server", "-filer", "-s3", f"-dir={self.root / 'data'}"]
        command += [f"-ip={HOST}", f"-ip.bind={HOST}", "-volume.max=0", "-master.telemetry=false"]
        for name, internal, port in ports:
            command += [f"-{name}.port={port}", f"-{name}.port.grpc={internal}"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        # The one master has nobody to wait for.
        command += ["-master.electionTimeout=100ms"]
        command += [f"-s3.config={self.root / 'identities.json'}"]
        self._launch(command, environment=os.environ | {"TMPDIR": str(self.root)})

    def _command(self, line: str) -> None:
        internal, _, _, _, port, *_ = self._ports
        subprocess.run(
            [find_program(), "shell", f"-master={HOST}:{port}.{internal}"],
            input=line.encode(),
            check=True,
            capture_output=True,
            cwd=self.root,
        )

    def _wait_until_it_stores(self) -> None:
        # It serves before it knows where to store what it is given.
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                self.bucket().put("first", _FIRST)
            except BaseError:
                if time.monotonic() > until:
                    raise
            else:
                self.bucket().delete("first")
                return

    def _remove_sockets(self) -> None:
        # It makes them there, whatever TMPDIR is, and leaves them when it is killed.
        for port in self._ports:
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
                path.unlink(missing_ok=True)
