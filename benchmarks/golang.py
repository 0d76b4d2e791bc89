"""The program of the Go peer, built for each installed generation of containers/storage."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

_GOCODE = "usr/share/gocode"
_IMPORTS = ("go.podman.io/storage", "github.com/containers/storage")
"""The import paths of the library; since it has moved, its old path is a link to the new one."""

_SOURCE = Path(__file__).parent / "go" / "main.go"
_ROOTS = Path(__file__).parent.parent / "tests" / "peers" / "roots"
_TAGS = " ".join(f"exclude_graphdriver_{name}" for name in ("btrfs", "devicemapper", "zfs"))


@dataclass(frozen=True)
class Generation:
    """One generation of containers/storage.

    :ivar label: its name in the tables
    :ivar root: the root directory in which the library is installed
    :ivar prefix: the beginning of commands that run in that root
    """

    label: str
    root: Path
    prefix: tuple[str, ...] = ()

    def find_missing(self) -> str:
        """Return which package the peer needs and lacks; ``""`` if it lacks none."""
        if not (self.root / "usr/bin/go").exists():
            return "Go is not installed"
        if self._import() is None:
            return "golang-github-containers-storage-dev is not installed"
        return ""

    def _import(self) -> str | None:
        sources = self.root / _GOCODE / "src"
        return next((path for path in _IMPORTS if (sources / path).is_dir()), None)

    def build(self, directory: Path) -> tuple[str, ...]:
        """Build the program into a directory, and return the command that runs it.

        :raises subprocess.CalledProcessError: when it cannot be compiled
        """
        library = self._import()
        assert library is not None, "call find_missing() first"
        source = directory / self.label.replace(" ", "-") / "main.go"
        source.parent.mkdir()
        source.write_text(_SOURCE.read_text().replace(f'"{_IMPORTS[-1]}"', f'"{library}"'))
        program = source.parent / "peer"
        environment = {
            **os.environ,
            "GO111MODULE": "off",
            "GOPATH": f"/{_GOCODE}",
            "GOFLAGS": "",
            "TMPDIR": str(directory),
        }
        command = [*self.prefix, "go", "build", "-tags", _TAGS, "-o", str(program), str(source)]
        subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
        return (*self.prefix, str(program))


def generations() -> list[Generation]:
    """Return this machine's own generation, and those of the roots of ``tests/peers/roots``."""
    kept = Path(os.environ.get("AIMAGESTORE_ROOTS") or Path.home() / ".cache/aimagestore-roots")
    found = [Generation("go", Path("/"))]
    for root in sorted(kept.glob("*-[0-9]"), reverse=True):
        suite = root.name.rpartition("-")[0]
        found.append(Generation(f"go {suite}", root, (str(_ROOTS), "run", suite)))
    return found
