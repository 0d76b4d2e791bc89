"""All that a cluster's store needs, on this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from .postgres import Postgres, find_programs
from .seaweedfs import BUCKET, SeaweedFS, find_program


class LocalCluster:
    """A PostgreSQL and a SeaweedFS, for the length of a ``with`` block; nothing of them is left.

    :ivar postgres: where records are kept
    :ivar objects: where big data is kept
    """

    def __init__(self) -> None:
        find_programs()
        find_program()
        # Not below a directory that only this user gets at: PostgreSQL may run as another one.
        self.root = Path(tempfile.mkdtemp(prefix="aimagestore-"))
        self.root.chmod(0o711)
        self.postgres = Postgres(self.root / "postgres")
        self.objects = SeaweedFS(self.root / "seaweedfs")

    @property
    def environment(self) -> Mapping[str, str]:
        """The credentials, and where the object store is, for the environment of clients."""
        return {"PGPASSWORD": self.postgres.password, **self.objects.environment}

    def blobs_url(self, prefix: str) -> str:
        """A part of the bucket."""
        return f"s3://{BUCKET}/{prefix}"

    def __enter__(self) -> Self:
        try:
            with ThreadPoolExecutor() as threads:
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
        """End both, and remove all that they have written. Idempotent."""
        self.objects.kill()
        self.postgres.kill()
        shutil.rmtree(self.root, ignore_errors=True)
