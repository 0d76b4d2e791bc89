"""Where a store in a directory is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .._core.names import INDEX_FILE
from .._engine.protocol import OtherStores
from ..errors import GraphRootError
from .beside import IMAGE_STORE_SUFFIX
from .engine import DirectoryEngine

if TYPE_CHECKING:
    from .check import DirectoryChecker
    from .repair import DirectoryRepairer


class DirectoryLocation:
    """The path of a directory; see :class:`aimagestore._engine.protocol.Location`.

    :param container_stores: directories besides the usual one in which podman records containers
        of its images
    """

    def __init__(
        self, path: str | os.PathLike[str], *, container_stores: Iterable[str] = ()
    ) -> None:
        name = os.fspath(path)
        if not isinstance(name, str):
            raise TypeError(f"a path must be a str or os.PathLike[str], not {type(path).__name__}")
        if not name:
            raise ValueError("a store needs the path of a directory, not an empty one")
        if "\0" in name:
            raise ValueError(f"the path of a store cannot have a NUL: {name!r}")
        self.name = name
        self._container_stores = tuple(container_stores)

    def __repr__(self) -> str:
        return f"DirectoryLocation({self.name!r})"

    def open(self, *, read_only: bool) -> DirectoryEngine:
        return DirectoryEngine.opened(
            self._path(), read_only=read_only, container_stores=self._container_stores
        )

    def checker(self, *, verify: bool, others: OtherStores | None = None) -> DirectoryChecker:
        from .check import DirectoryChecker  # noqa: PLC0415 (rarely used)

        return DirectoryChecker(
            self._path, verify=verify, container_stores=self._container_stores, others=others
        )

    def repairer(self, others: OtherStores | None = None) -> DirectoryRepairer:
        from .repair import DirectoryRepairer  # noqa: PLC0415 (rarely used)

        return DirectoryRepairer(self._path(), others)

    def _path(self) -> str:
        """Return the absolute path, which outlasts a change of the working directory.

        :raises GraphRootError: when it is a graph root, which holds image stores
        """
        path = os.path.abspath(self.name)
        if os.path.lexists(os.path.join(path, INDEX_FILE)):
            return path
        try:
            names = os.listdir(path)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return path
        stores = sorted(
            os.path.join(path, name)
            for name in names
            if name.endswith(IMAGE_STORE_SUFFIX) and os.path.isdir(os.path.join(path, name))
        )
        if stores or "storage.lock" in names:
            use = " or ".join(stores) or "its image store, once podman has made one"
            raise GraphRootError(
                f"{path} is the graph root of containers/storage, not an image store: use {use}",
                path=path,
                stores=tuple(stores),
            )
        return path
