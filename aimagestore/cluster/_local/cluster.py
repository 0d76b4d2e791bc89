"""The servers of a cluster's store, on this machine."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from .objects import BUCKET, ObjectServer
from .postgres import Postgres, find_programs
from .seaweedfs import SeaweedFS


class LocalCluster:
    """Runs PostgreSQL and an object store for the duration of a ``with`` block, then removes them.

    :param programs: the directory of PostgreSQL's programs; ``None`` to look for one
    :param objects: the object store to run
    :ivar root: the directory of everything that they write
    :ivar postgres: has the records
    :ivar objects: has the big data
    :raises ServersMissingError: when one of them is not installed
    """

    def __init__(
        self,
        programs: Path | None = None,
        objects: Callable[[Path], ObjectServer] = SeaweedFS,
    ) -> None:
        programs = programs or find_programs()
        # In a directory that every user may enter, because PostgreSQL may run as another user.
        self.root = Path(tempfile.mkdtemp(prefix="aimagestore-"))
        self.root.chmod(0o711)
        try:
            self.postgres = Postgres(self.root / "postgres", programs)
            self.objects = objects(self.root / "objects")
        except BaseException:
            shutil.rmtree(self.root)
            raise
        # Held while the servers write files that close() must not miss.
        self._starting = threading.Lock()

    @property
    def environment(self) -> Mapping[str, str]:
        """The credentials and the endpoint, as environment variables for clients."""
        return {"PGPASSWORD": self.postgres.password, **self.objects.environment}

    def blobs_url(self, prefix: str) -> str:
        """Return the URL of a prefix in the bucket."""
        return f"s3://{BUCKET}/{prefix}"

    def __enter__(self) -> Self:
        try:
            with self._starting, ThreadPoolExecutor() as threads:
                creating = threads.submit(self.objects.create)
                self.postgres.create()
                self.postgres.start()
                creating.result()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill both servers, and remove everything that they have written. Idempotent.

        Callable in any thread, also while another one starts the servers: that fails then.
        """
        self.objects.end()
        self.postgres.end()
        with self._starting:
            shutil.rmtree(self.root, ignore_errors=True)
