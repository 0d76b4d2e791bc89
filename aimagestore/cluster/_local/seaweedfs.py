"""A SeaweedFS server on this machine: an object store with the S3 protocol."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sysconfig
import time
from pathlib import Path

from obstore.exceptions import BaseError

from .objects import BUCKET, ObjectServer
from .server import HOST, ServersMissingError, free_ports

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


class SeaweedFS(ObjectServer):
    """A SeaweedFS on the loopback interface."""

    def __init__(self, root: Path) -> None:
        find_program()
        self._ports = free_ports(8)
        super().__init__(root, self._ports[-1])

    def create(self) -> None:
        """Create the directory of a new server, start it, and create its bucket, with fsync."""
        (self.root / "data").mkdir(0o700, parents=True)
        keys = {"accessKey": self.access_key, "secretKey": self.secret_key}
        identity = {"name": "aimagestore", "credentials": [keys], "actions": ["Admin"]}
        identities = self.root / "identities.json"
        identities.touch(0o600)
        identities.write_text(json.dumps({"identities": [identity]}))
        self._begin()
        self._configure(
            f"s3.bucket.create -name {BUCKET}",
            f"fs.configure -locationPrefix=/buckets/{BUCKET}/ -fsync -apply",
        )
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

    def _begin(self) -> None:
        names = ("master", "volume", "filer", "s3")
        ports = zip(names, self._ports[:4], self._ports[4:], strict=True)
        command = [find_program(), "server", "-filer", "-s3", f"-dir={self.root / 'data'}"]
        command += [f"-ip={HOST}", f"-ip.bind={HOST}", "-volume.max=0", "-master.telemetry=false"]
        for name, internal, port in ports:
            command += [f"-{name}.port={port}", f"-{name}.port.grpc={internal}"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        # There is one master, so its election need not wait for others.
        command += ["-master.electionTimeout=100ms"]
        command += [f"-s3.config={self.root / 'identities.json'}"]
        self._launch(command, environment=os.environ | {"TMPDIR": str(self.root)})

    def _configure(self, *lines: str) -> None:
        internal, _, _, _, port, *_ = self._ports
        self._run_command(
            [find_program(), "shell", f"-master={HOST}:{port}.{internal}"],
            "\n".join(lines).encode(),
        )

    def _wait_until_writable(self) -> None:
        # SeaweedFS answers before it can store anything.
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
        # SeaweedFS creates them there, whatever TMPDIR is, and leaves them when it is killed.
        for port in self._ports:
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
                path.unlink(missing_ok=True)
