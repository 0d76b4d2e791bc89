"""What differs between versions of containers/storage in finding a store."""

from __future__ import annotations

from dataclasses import dataclass

SYSTEM_DIRECTORIES = ("/usr/share/containers", "/etc/containers")
"""The directories of the distribution's files and of the administrator's, which have precedence."""

SYSTEM_GRAPH_ROOT = "/var/lib/containers/storage"
SYSTEM_RUN_ROOT = "/run/containers/storage"


@dataclass(frozen=True, slots=True)
class Rules:
    """How a range of versions finds its store.

    :ivar versions: the versions of containers/storage
    :ivar symbol: the name of a function that is in every program built with one of these versions,
        and in none built with a later one
    :ivar merges_files: whether ``storage.conf`` has drop-in directories, the file in a user's home
        applies to root as well, and the system's settings apply to users; otherwise one file counts
    :ivar reads_once: if one file counts: whether root's own file counts only if the system has
        none, and a file that root names need not have a run root
    :ivar has_image_store: whether ``imagestore`` and ``driver_priority`` are known
    :ivar tries_overlay: whether a user's storage without a configured driver uses the driver of its
        images, or overlay; otherwise it uses vfs
    :ivar counts_vfs: whether a directory of vfs counts as a driver that the graph root has
    :ivar drivers: the drivers that may be chosen without a configuration, in this order
    :ivar run_directory: the name of a user's runtime directory in the temporary directory
    """

    versions: str
    symbol: bytes
    merges_files: bool
    reads_once: bool
    has_image_store: bool
    tries_overlay: bool
    counts_vfs: bool
    drivers: tuple[str, ...]
    run_directory: str


RULES = (
    Rules(
        versions="1.63 and later",
        symbol=b"storage/types.LoadStoreOptions",
        merges_files=True,
        reads_once=True,
        has_image_store=True,
        tries_overlay=True,
        counts_vfs=True,
        drivers=("overlay", "btrfs", "zfs"),
        run_directory="storage-run",
    ),
    Rules(
        versions="1.47 to 1.62",
        symbol=b"storage/types.canUseRootlessOverlay",
        merges_files=False,
        reads_once=True,
        has_image_store=True,
        tries_overlay=True,
        counts_vfs=True,
        drivers=("overlay", "aufs", "btrfs", "zfs"),
        run_directory="storage-run",
    ),
    Rules(
        versions="1.46 and earlier",
        symbol=b"storage/types.loadDefaultStoreOptions",
        merges_files=False,
        reads_once=False,
        has_image_store=False,
        tries_overlay=False,
        counts_vfs=False,
        drivers=("overlay", "aufs", "btrfs", "zfs"),
        run_directory="podman-run",
    ),
)
"""The newest first."""
