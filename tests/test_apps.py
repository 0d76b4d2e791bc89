"""What the README tells people to run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

APPS = Path(__file__).parent / "apps"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_first_look(tmp_path: Path, backend: str) -> None:
    command = [sys.executable, str(APPS / "first_look.py"), "--backend", backend]
    output = subprocess.run(
        command, cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert "1 image, written by buildah" in output[0]
    assert output[-2].endswith("1409 bytes of big data  localhost/hello:1, localhost/hello:latest")
    assert output[-1].endswith("914 bytes of big data  localhost/copy:1")
    assert len(list(tmp_path.glob("demo-*/vfs-images/images.json"))) == 1
