"""A tar file that images are exported into; blocking."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import Executor
from tarfile import PAX_FORMAT, TarInfo

from .._core.digest import CANONICAL
from .._directory.output import Output
from .._engine.digesting import Digester
from .._engine.protocol import StagedContent
from ._documents import INDEX_FILE, LAYOUT_FILE, MARKER, Descriptor, blob_path
from ._foreign import MANIFEST_FILE
from ._index import with_entries
from ._layout import LayoutFile
from ._tar import BLOCK
from ._target import Content


class _Blob(io.BufferedIOBase):
    """A blob that is being written into an archive, and the sink for it."""

    def __init__(self, output: Output, path: str, size: int, helpers: Executor) -> None:
        self._output = output
        self._digester = Digester(helpers, CANONICAL)
        self.size = 0
        self.is_open = True
        self.is_stored = False
        output.write(_header(path, size))

    @property
    def sink(self) -> io.BufferedIOBase:
        return self

    @property
    def digest(self) -> str:
        self._digester.finish()
        return self._digester.digest

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._digester.add(data)
        self._output.write(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self._digester.finish()

    def finish(self) -> None:
        self._output.write(bytes(-self.size % BLOCK))
        self.is_open = False

    def interrupt(self) -> None:
        """Give up a write that waits for a reader."""
        self._output.stop()

    def discard(self) -> None:
        self.is_open = False


class ArchiveTarget:
    """A new tar file. No file in it has a time or an owner, so equal images give equal archives.

    :param docker_manifest: the ``manifest.json`` that makes it an archive for ``docker load``, too;
        ``None`` for none
    """

    def __init__(self, output: Output, helpers: Executor, docker_manifest: bytes | None) -> None:
        self._output = output
        self._helpers = helpers
        self._docker_manifest = docker_manifest

    def find(self, content: Content) -> LayoutFile | None:
        return None

    def begin(self, content: Content) -> StagedContent:
        return _Blob(self._output, blob_path(content.digest), content.size, self._helpers)

    def complete(self, entries: Sequence[Descriptor]) -> None:
        files = {LAYOUT_FILE: MARKER, INDEX_FILE: with_entries(None, entries, "")}
        if self._docker_manifest is not None:
            files[MANIFEST_FILE] = self._docker_manifest
        for path, data in files.items():
            self._output.write(_header(path, len(data)) + data + bytes(-len(data) % BLOCK))
        self._output.write(bytes(2 * BLOCK))
        self._output.finish()

    def commit(self, entries: Sequence[Descriptor]) -> None:
        self._output.commit()

    def stop(self) -> bool:
        return self._output.stop()

    def close(self) -> None:
        self._output.close()


def _header(path: str, size: int) -> bytes:
    info = TarInfo(path)
    info.size = size
    return info.tobuf(PAX_FORMAT)
