"""The generation of podman, buildah, skopeo and containers/storage that the tests run beside.

``AIMAGESTORE_GENERATION`` names a Debian suite. The tests then use the programs of the root that
``roots`` has made of it, and compile the Go program with its library; otherwise this machine's.
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
    # An error, not a skip: whoever names a generation wants it tested.
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip())


def _own_suite() -> str:
    """Return the generation of this machine's own programs; the newest one if it is unknown."""
    try:
        suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        suite = ""
    return suite if suite in _SUITES else _SUITES[-1]


_chosen = os.environ.get("AIMAGESTORE_GENERATION", "")

ROOT = _find_root(_chosen) if _chosen else Path("/")
"""The root directory under which the programs are installed."""

GENERATION = _chosen or _own_suite()
"""The suite that the programs come from."""


@dataclass(frozen=True)
class Behaviour:
    """Where the generations differ.

    :ivar loses_cut_index: a truncated index is read as far as it goes, and the next save loses the
        rest; otherwise the whole store is refused
    :ivar checks_key_first: setting an item with an empty key of an unknown image is an error about
        the key; otherwise about the image
    :ivar creates_with_items: an image is created with its items under one hold of the lock, in
        several saves
    :ivar keeps_trees: images have directories for other data than big data, and those without a
        record are collected as garbage
    """

    loses_cut_index: bool
    checks_key_first: bool
    creates_with_items: bool
    keeps_trees: bool


BEHAVIOUR_OF = {
    "bookworm": Behaviour(
        loses_cut_index=True,
        checks_key_first=True,
        creates_with_items=False,
        keeps_trees=False,
    ),
    "trixie": Behaviour(
        loses_cut_index=False,
        checks_key_first=False,
        creates_with_items=True,
        keeps_trees=True,
    ),
    "forky": Behaviour(
        loses_cut_index=False,
        checks_key_first=False,
        creates_with_items=True,
        keeps_trees=True,
    ),
}
"""From the oldest to the newest."""

BEHAVIOUR = BEHAVIOUR_OF[GENERATION]
"""How the programs of this run behave."""


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
"""The directory of Debian's Go libraries, in the root."""


def storage_import() -> str | None:
    """Return the import path of the Go library containers/storage; ``None`` if it is missing.

    Since the library has moved, its old path is a link to the new one. A program that imported it
    by the old path would contain the library twice.
    """
    for path in ("go.podman.io/storage", "github.com/containers/storage"):
        if Path(f"{ROOT}{GOPATH}/src/{path}").is_dir():
            return path
    return None
