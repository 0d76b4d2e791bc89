"""What a terminal shows, and a pipe does not."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import PROGRAM, Cli, environment
from .test_items import LARGE


@pytest.fixture
def image(cli: Cli, tmp_path: Path) -> Cli:
    """An image with a large item."""
    (tmp_path / "large").write_bytes(LARGE)
    cli("create", "--id", "a" * 64, "--name", "a:1", "--data", f"large={tmp_path / 'large'}")
    return cli


def on_terminal(stream: str, root: Path, *arguments: object) -> str:
    """What a terminal gets on standard output or standard error."""
    main, terminal = pty.openpty()
    command = [*PROGRAM, "--root", str(root), *map(str, arguments)]
    variables = environment(TERM="xterm", COLUMNS="100")
    streams: dict[str, Any] = {stream: terminal}
    with subprocess.Popen(command, env=variables, **streams) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                shown += os.read(main, 65536)
            except OSError:  # how a terminal says that nobody has it open any more
                break
        assert process.wait(30) == 0
    os.close(main)
    return shown.decode()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["put", "a:1", "again", "large"], "again"),
        (["get", "a:1", "large", "out"], "large"),
        (["check"], "check"),
        (["repair"], "check"),
        (["create", "--data", "item=large"], "item"),
    ],
)
def test_progress_with_speed(
    image: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = on_terminal("stderr", image.root, *arguments)
    assert what in shown
    assert "5.2/5.2 MB" in shown
    assert "MB/s" in shown or "bytes/s" in shown or "?" in shown


def test_no_progress_in_a_pipe(image: Cli, tmp_path: Path) -> None:
    command = [*PROGRAM, "--root", str(image.root), "put", "a:1", "again", str(tmp_path / "large")]
    result = subprocess.run(command, capture_output=True, env=environment(), check=True)
    assert result.stdout == result.stderr == b""


def test_a_table_that_fits(image: Cli) -> None:
    image("tag", "a:1", "localhost/" + "long/" * 30 + "\x1b[31mred:2")
    shown = on_terminal("stdout", image.root, "images")
    assert "\x1b[1mREPOSITORY" in shown
    assert "\x1b[31m" not in shown
    assert "a" * 12 in shown
    assert "About" not in shown
    assert "5.24 MB" in shown
    plain = re.sub(r"\x1b\[\d*m", "", shown)
    assert max(map(len, plain.splitlines())) <= 100
    piped = image("images").lines
    assert len(piped) == 3
    assert "\x1b" not in "".join(piped)
