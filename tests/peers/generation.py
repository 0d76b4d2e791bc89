"""Which podman, buildah, skopeo and containers/storage the tests run beside.

``AIMAGESTORE_GENERATION`` names a suite of Debian whose root ``roots`` has made: its programs are
used then, and the Go program is compiled from its library. Otherwise this machine's own are.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SUITES = ("bookworm", "trixie", "forky")
"""From containers/storage 1.43 (2022) to 1.57 and 1.64."""

_ROOTS = Path(__file__).with_name("roots")


def _find_root(suite: str) -> Path:
    assert suite in _SUITES, f"AIMAGESTORE_GENERATION is one of {_SUITES}, not {suite!r}"
    command = [str(_ROOTS), "find", suite]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    # Not skipped: who names a generation wants it tested.
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip())


def _own_suite() -> str:
    """Return the generation of this machine's own programs, the newest one if it is not known."""
    try:
        suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        suite = ""
    return suite if suite in _SUITES else _SUITES[-1]


_chosen = os.environ.get("AIMAGESTORE_GENERATION", "")

ROOT = _find_root(_chosen) if _chosen else Path("/")
"""Where the programs are installed."""

GENERATION = _chosen or _own_suite()
"""The suite that they are of."""


@dataclass(frozen=True)
class Behaviour:
    """Where the generations differ.

    :ivar loses_cut_index: an index that is cut short is read as far as it goes, and the rest is
        lost with the next save; otherwise the whole store is refused
    :ivar looks_at_empty_key_first: an item without a key, for an image that there is not, is the
        key's error; otherwise it is the image's
    :ivar creates_with_items: an image is created with its items under one hold of the lock, in
        several steps
    :ivar keeps_trees: images have directories for what podman keeps with them, and those without a
        record are collected
    """

    loses_cut_index: bool
    looks_at_empty_key_first: bool
    creates_with_items: bool
    keeps_trees: bool


BEHAVIOUR_OF = {
    "bookworm": Behaviour(
        loses_cut_index=True,
        looks_at_empty_key_first=True,
        creates_with_items=False,
        keeps_trees=False,
    ),
    "trixie": Behaviour(
        loses_cut_index=False,
        looks_at_empty_key_first=False,
        creates_with_items=True,
        keeps_trees=True,
    ),
    "forky": Behaviour(
        loses_cut_index=False,
        looks_at_empty_key_first=False,
        creates_with_items=True,
        keeps_trees=True,
    ),
}
"""From the oldest to the newest."""

BEHAVIOUR = BEHAVIOUR_OF[GENERATION]
"""What is to be expected of the programs."""


def command(*parts: object) -> list[str]:
    """Return the command that runs a program of the generation."""
    enter = [str(_ROOTS), "run", _chosen] if _chosen else []
    return [*enter, *(str(part) for part in parts)]


def has_program(name: str) -> bool:
    """Return whether a program is installed."""
    directories = [f"{ROOT}/usr/local/bin", f"{ROOT}/usr/bin", f"{ROOT}/usr/sbin"]
    path = os.pathsep.join(directories) if _chosen else None
    return shutil.which(name, path=path) is not None


GOPATH = "/usr/share/gocode"
"""Where Debian's Go libraries are, in the root."""


def storage_import() -> str | None:
    """Return the import path of the Go library containers/storage; ``None`` where it is missing.

    Where it has moved, the old path is a link, through which a program would have two of it.
    """
    for path in ("go.podman.io/storage", "github.com/containers/storage"):
        if Path(f"{ROOT}{GOPATH}/src/{path}").is_dir():
            return path
    return None
