"""The Go peer's program, built where Go and Debian's containers/storage are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

_GOPATH = Path("/usr/share/gocode")
_TAGS = "exclude_graphdriver_btrfs exclude_graphdriver_devicemapper"


def find_missing() -> str:
    """What is not installed that the peer needs; ``""`` when all is there."""
    if shutil.which("go") is None:
        return "Go is not installed"
    if not (_GOPATH / "src/github.com/containers/storage").is_dir():
        return "golang-github-containers-storage-dev is not installed"
    return ""


def build(directory: Path) -> Path:
    """Build the program into a directory.

    :raises subprocess.CalledProcessError: when Go does not like it
    """
    program = directory / "go-peer"
    environment = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": str(_GOPATH),
        "GOFLAGS": "",
    }
    source = Path(__file__).parent / "go" / "main.go"
    command = ["go", "build", "-tags", _TAGS, "-o", str(program), str(source)]
    subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    return program
