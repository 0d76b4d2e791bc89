"""What a terminal shows, and a pipe does not."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..support.layouts import hello
from ..support.template import Template
from .conftest import Cli
from .test_items import LARGE

_AT_ONCE = "from aimagestore._cli import progress; progress.DELAY = 0\n"


@dataclass(frozen=True)
class Terminal:
    """A terminal, and the program on it.

    :ivar path: where other programs find it
    """

    template: Template
    root: Path
    main: int
    terminal: int

    @property
    def path(self) -> str:
        return os.ttyname(self.terminal)

    def __call__(
        self,
        *arguments: object,
        on: tuple[int, ...] = (1, 2),
        typed: bytes = b"",
        **options: object,
    ) -> str:
        """Run a command, and return what the terminal shows.

        :param on: which of the standard streams are on the terminal
        """
        code = options.pop("code", 0)
        shown = bytearray()

        def read() -> None:
            while not shown.endswith(b"\x00end"):
                shown.extend(os.read(self.main, 65536))

        thread = threading.Thread(target=read)
        thread.start()
        null = os.open(os.devnull, os.O_RDWR)
        files = [self.terminal if number in on else null for number in range(3)]
        names = ("stdin", "stdout", "stderr")
        streams = dict(zip(names, files, strict=True))
        os.write(self.main, typed)
        started = self.template.start("--root", self.root, *arguments, **streams, **options)  # type: ignore[arg-type]
        ended = self.template.wait(started)
        os.write(self.terminal, b"\x00end")
        thread.join()
        os.close(null)
        text = shown.removesuffix(b"\x00end").decode().replace("\r\n", "\n")
        assert ended == code, text
        return text


@pytest.fixture
def terminal(template: Template, cli: Cli, tmp_path: Path) -> Iterator[Terminal]:
    """A terminal of 80 columns, and a store with an image that has a large item."""
    (tmp_path / "large").write_bytes(LARGE)
    cli("create", "--id", "a" * 64, "--name", "a:1", "--data", f"large={tmp_path / 'large'}")
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    yield Terminal(template, cli.root, main, terminal)
    os.close(main)
    os.close(terminal)


# Bars


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("put a:1 again {}/large", "again"),
        ("get a:1 large {}/out", "large"),
        ("check", "check"),
        ("repair", "check"),
        ("create --data item={}/large", "item"),
    ],
)
def test_progress_with_speed(terminal: Terminal, tmp_path: Path, arguments: str, what: str) -> None:
    parts = arguments.replace("{}", str(tmp_path)).split()
    shown = terminal(*parts, on=(2,), prepare=_AT_ONCE)
    assert what in shown
    assert "5.2/5.2 MB" in shown
    assert "MB/s" in shown or "bytes/s" in shown or "?" in shown


@pytest.mark.parametrize(("seconds", "is_shown"), [(0.49, False), (0.5, True)])
def test_no_bar_in_the_first_half_second(
    terminal: Terminal, tmp_path: Path, seconds: float, is_shown: bool
) -> None:
    times = f"""
import itertools
from aimagestore._cli import progress
progress.monotonic = itertools.chain([0], itertools.repeat({seconds})).__next__
"""
    shown = terminal("put", "a:1", "again", tmp_path / "large", on=(2,), prepare=times)
    assert ("again" in shown) == is_shown
    assert bool(shown) == is_shown


def test_no_bar_where_the_data_goes_to_the_terminal(terminal: Terminal, cli: Cli) -> None:
    (cli.root.parent / "text").write_text("text\n" * 3)
    cli("put", "a:1", "text", cli.root.parent / "text")
    assert terminal("get", "a:1", "text", prepare=_AT_ONCE) == "text\n" * 3
    assert terminal("get", "a:1", "text", terminal.path, on=(2,), prepare=_AT_ONCE) == "text\n" * 3
    assert "text" in terminal("get", "a:1", "text", on=(2,), prepare=_AT_ONCE)


@pytest.mark.parametrize(
    "arguments", ["put a:1 typed -", "create --data typed=-", "put a:1 typed {}"]
)
def test_no_bar_where_the_data_comes_from_the_terminal(terminal: Terminal, arguments: str) -> None:
    parts = arguments.replace("{}", terminal.path).split()
    shown = terminal(*parts, on=(0, 2), typed=b"some\n\x04", prepare=_AT_ONCE)
    assert shown.replace("^D", "").replace("\b", "").split() == ["some"]  # what it echoes


@pytest.mark.parametrize("arguments", ["export a:1 -", "export a:1 {}", "save a:1"])
def test_archives_are_not_for_terminals(terminal: Terminal, arguments: str) -> None:
    parts = arguments.replace("{}", terminal.path).split()
    assert "an archive is not written to a terminal" in terminal(*parts, code=2)


@pytest.mark.parametrize("arguments", ["import -", "import {}", "load"])
def test_archives_are_not_read_from_terminals(terminal: Terminal, arguments: str) -> None:
    parts = arguments.replace("{}", terminal.path).split()
    assert "redirect it" in terminal(*parts, on=(0, 1, 2), code=2)


def test_no_progress_in_a_pipe(terminal: Terminal, tmp_path: Path) -> None:
    shown = terminal("put", "a:1", "again", tmp_path / "large", on=(1,), prepare=_AT_ONCE)
    assert shown == ""


# Tables of 80 columns


def test_images_show_whole_ids_and_fold_long_names(terminal: Terminal, cli: Cli) -> None:
    cli("tag", "a:1", "localhost/" + "long/" * 30 + "\x1b[31mred:2", "größe/漢字:3")
    shown = terminal("images").splitlines()
    assert shown[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    rows = [line for line in shown if "5.24 MB" in line]
    assert len(rows) == 3
    assert all("a" * 12 in row for row in rows)
    assert "\x1b" not in "".join(shown)
    assert max(map(len, shown)) <= 80
    folded = "".join(line[: line.find(" ") if " " in line else None] for line in shown)
    assert "localhost/" + "long/" * 30 + r"\x1b[31mred" in folded
    piped = cli("images").lines
    assert len(piped) == 4
    assert any("localhost/" + "long/" * 30 in line for line in piped)


def test_whole_ids_are_never_cut_off(terminal: Terminal) -> None:
    shown = terminal("images", "--no-trunc").splitlines()
    assert "a" * 64 in shown[1]
    assert "5.24 MB" in shown[1]


def test_inspect_shows_whole_keys(terminal: Terminal, cli: Cli, tmp_path: Path) -> None:
    (image_id,) = cli("import", hello().write(tmp_path / "layout")).lines
    keys = cli("images", "--json").json[0]["big_data_names"]
    assert any(len(key) == 71 for key in keys)
    shown = terminal("inspect", image_id).splitlines()
    rows = [line for line in shown if " B " in line and not line.startswith("Size")]
    assert {row.split()[2] for row in rows} == set(keys)
    assert all(len(row) <= 80 for row in rows if " sha256:" in row and " manifest" not in row)
    manifest = cli("digest", image_id).lines[0]
    assert any(" manifest " in row and row.endswith(manifest) for row in rows)


@pytest.mark.damage
def test_findings_show_whole_paths_and_keys(terminal: Terminal) -> None:
    (terminal.root / ("a" * 64) / "large").unlink()
    shown = terminal("check", code=4)
    assert str(terminal.root / ("a" * 64) / "large") in shown
    assert "item-missing" in shown
    assert " large" in shown
