"""The program as a whole: streams, signals, and messages about missing packages."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aimagestore import LockTimeoutError
from aimagestore._cli.exits import ExitCode, exit_code

from ..support.commands import invoke
from ..support.faults import Faults
from ..support.foreign import locked_by_another_process
from .conftest import PROGRAM, Cli, environment, program
from .test_items import LARGE
from .test_records import sha256

COMMANDS = (
    "images inspect exists create tag untag rm put get digest flag import load export save copy "
    "df prune watch check repair gc cluster"
)


@pytest.fixture
def image(cli: Cli, tmp_path: Path) -> Cli:
    """An image with a large item."""
    (tmp_path / "large").write_bytes(LARGE)
    cli("create", "--id", "one", "--name", "a:1", "--data", f"large={tmp_path / 'large'}")
    return cli


def start(
    root: Path, *arguments: object, variables: Mapping[str, str] | None = None, **streams: Any
) -> subprocess.Popen[bytes]:
    parts = [*PROGRAM, "--root", str(root), *map(str, arguments)]
    env = environment(**(variables or {}))
    return subprocess.Popen(parts, stderr=subprocess.PIPE, env=env, **streams)


def test_standard_streams(image: Cli) -> None:
    program("--root", image.root, "put", "one", "data", "-", data=LARGE)
    assert program("--root", image.root, "get", "one", "data").stdout == LARGE
    assert program("--root", image.root, "get", "one", "data", "-").stdout == LARGE
    program("--root", image.root, "create", "--id", "two", "--data", "k=-", data=b"some")
    assert program("--root", image.root, "get", "two", "k", "-").stdout == b"some"


def test_the_root_from_the_environment(image: Cli) -> None:
    found = program("images", "--quiet", variables={"AIMAGESTORE_ROOT": str(image.root)})
    assert found.stdout == b"one\n"
    assert b"must not be empty" in program("--root", "", "images", code=2).stderr


def test_only_a_timeout_of_the_stores_lock_exits_as_locked() -> None:
    assert exit_code(LockTimeoutError("the lock was not free in time")) is ExitCode.LOCKED
    assert exit_code(OSError(errno.ETIMEDOUT, "Connection timed out")) is ExitCode.FAILED


def test_a_message_advises_options_and_commands_of_the_program(
    image: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's messages advise parameters and calls."""
    with locked_by_another_process(image.root):
        locked = image("--lock-timeout", "0", "tag", "one", "b:1", code=5).errors
    assert "give a longer --lock-timeout" in locked
    taken = image("create", "--name", "a:1", code=1).errors
    assert "move it with tag" in taken
    with Faults(monkeypatch).fail("fsync", errno.ENOSPC, lambda number: True):
        full = image("tag", "one", "b:1", code=1).errors
    assert "or use gc" in full


def test_version_and_help() -> None:
    assert program("--version").stdout.startswith(b"aimagestore 0.")
    text = program("--help").stdout.decode()
    assert "the store's lock was not free in time" in text
    for name in COMMANDS.split():
        assert f"\n  {name} " in text
        assert Cli(Path("never"))(name, "--help").output
    assert len(text.partition("\nCommands:\n")[2].splitlines()) == len(COMMANDS.split())


def test_a_signal_that_was_ignored_at_the_start_ends_no_command(image: Cli) -> None:
    ignored = partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "preexec_fn": ignored}
    with start(image.root, "--verbose", "watch", **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while b"watching" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        image("tag", "one", "b:1")
        assert process.stdout.readline().startswith(b"changed one")
        process.terminate()
        assert process.wait(30) == 143


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_in_the_middle_of_a_put(
    image: Cli, tmp_path: Path, number: int, code: int
) -> None:
    before = sorted(os.listdir(image.root))
    os.mkfifo(tmp_path / "fifo")
    with start(image.root, "put", "one", "data", tmp_path / "fifo") as process:
        with (tmp_path / "fifo").open("wb", buffering=0) as fifo:
            # More than a pipe holds: the program has read some of it.
            fifo.write(LARGE)
            process.send_signal(number)
            assert process.wait(30) == code
        assert process.stderr is not None
        assert process.stderr.read().count(b"\n") == 1
    assert sorted(os.listdir(image.root)) == before
    assert image("inspect", "one", "--json").json[0]["big_data_names"] == ["large"]


def test_ctrl_c_while_a_command_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("aimagestore._cli.app.importlib.import_module", interrupted)
    result = invoke("images")
    assert (result.exit_code, result.output) == (130, "")


def test_a_signal_while_nobody_reads(image: Cli) -> None:
    with start(image.root, "get", "one", "large", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == LARGE[:1]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_a_signal_while_nobody_opens_the_other_end(image: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with start(image.root, "--verbose", "put", "one", "data", tmp_path / "fifo") as process:
        assert process.stderr is not None
        assert b"the store is" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


@pytest.mark.parametrize("arguments", [["images"], ["images", "--json"], ["get", "one", "large"]])
def test_a_closed_pipe_ends_the_program_silently(image: Cli, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with start(image.root, *arguments, stdout=writer) as process:
        os.close(writer)
        assert process.wait(30) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_errors_are_one_line_without_verbose(image: Cli) -> None:
    errors = program("--root", image.root, "inspect", "x", code=3).stderr
    assert errors == b"aimagestore: no image is known by 'x'\n"
    errors = program("--verbose", "--root", image.root, "inspect", "x", code=3).stderr
    assert b"Traceback" in errors
    assert errors.endswith(b"\naimagestore: no image is known by 'x'\n")
    program("--root", "/dev/null", "images", code=1)


def test_text_that_the_locale_cannot_encode(image: Cli) -> None:
    image("tag", "one", "größe:1")
    variables = {"PYTHONIOENCODING": "ascii"}
    with start(image.root, "images", variables=variables, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        shown = process.stdout.read()
    assert b"gr\\xf6\\xdfe" in shown


def test_without_the_extra() -> None:
    code = "import sys; sys.modules['click'] = None; "
    code += "from aimagestore.__main__ import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 1
    assert result.stdout == b""
    assert b"pip install 'aimagestore[cli]'" in result.stderr
    assert result.stderr.count(b"\n") == 1


def test_the_library_works_without_the_extra() -> None:
    code = "import sys, aimagestore; print({'rich', 'click'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout == b"set()\n"


def test_a_large_item_is_streamed(image: Cli) -> None:
    """A transfer takes the memory of a few chunks, not of the item."""
    with start(image.root, "put", "one", "zeros", "-", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        chunk = bytes(1024 * 1024)
        for _ in range(150):
            process.stdin.write(chunk)
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.stdin.close()
        assert process.wait(60) == 0
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 120_000
    assert image("digest", "one", "zeros").lines == [sha256(bytes(150 * 1024 * 1024))]


def test_a_command_collects_garbage_though_the_start_does_not(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "freeze", lambda: None)
    gc.disable()
    try:
        cli("create", "--id", "a")
        assert gc.isenabled()
    finally:
        gc.enable()
