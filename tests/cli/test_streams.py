"""Every command, beside what can happen to its standard streams, its interpreter and itself."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ..support.commands import all_commands, invoke
from ..support.layouts import files_of, hello
from ..support.loops import pairs
from ..support.stores import becomes_true
from ..support.template import Template
from .conftest import Cli, environment

_CLUSTER = """
import os, types
from aimagestore._cli import clusters
def call(*args):
    if BLOCKS:
        os.write(4, b"x")
        os.read(3, 1)
    return 3
found = types.SimpleNamespace(severity="ok", about="it", text="is well", advice="")
module = types.SimpleNamespace(
    migrate=call, adopt=call, set_grace_period=call, doctor=lambda _: call() and [found],
    Severity=types.SimpleNamespace(OK="ok", NOTE="note"),
)
clusters.cluster_module = lambda: module
clusters.given_cluster = lambda _: None
"""

# A real one has no end; what it follows has tests of its own.
_WATCH = """
import contextlib
from aimagestore import ChangeEvent, ImageStore
@contextlib.asynccontextmanager
async def watch(self):
    async def changes():
        yield ChangeEvent("changed", "one", await self.get("x:1"))
    yield changes()
ImageStore.watch = watch
"""

# Each command comes here after its signal handlers are installed, and before it does anything.
_GATE = """
import os, anyio
from aimagestore._cli.session import Session
locate = Session._locate
async def wait(self, **options):
    Session._locate = locate
    os.write(4, b"x")
    await anyio.to_thread.run_sync(os.read, 3, 1, abandon_on_cancel=True)
    return await locate(self, **options)
Session._locate = wait
"""

_SHORT = """
import os
write = os.write
os.write = lambda fd, data: write(fd, data[:7]) if fd == 1 else write(fd, data)
"""

_LATE = """
import errno, os
close, dup = os.close, os.dup
copies = set()
def dup_of(fd):
    copy = dup(fd)
    if fd == 1:
        copies.add(copy)
    return copy
def fail(fd):
    close(fd)
    if fd in copies:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
os.dup, os.close = dup_of, fail
"""


@dataclass(frozen=True)
class Row:
    """A command, and what it needs.

    :ivar arguments: with ``{}`` for the directory of the test
    :ivar prints: whether it writes to standard output
    :ivar is_text: whether that is for people
    :ivar reads: whether it reads standard input
    :ivar prepare: what has to be run before it
    """

    arguments: str
    prints: bool = True
    is_text: bool = True
    reads: bool = False
    prepare: str = ""


TABLE = {
    "images": Row("images"),
    "inspect": Row("inspect x:1"),
    "exists": Row("exists x:1", prints=False),
    "create": Row("create --id two"),
    "tag": Row("tag x:1 y:1", prints=False),
    "untag": Row("untag x:1 größe:1", prints=False),
    "rm": Row("rm x:1"),
    "put": Row("put x:1 key {}/layout.tar", prints=False),
    "put -": Row("put x:1 key -", prints=False, reads=True),
    "get": Row("get x:1 manifest"),
    "digest": Row("digest x:1 manifest"),
    "flag": Row("flag x:1"),
    "import": Row("import {}/layout"),
    "import -": Row("import -", reads=True),
    "load": Row("load", reads=True),
    "save": Row("save x:1", is_text=False),
    "export": Row("export x:1 {}/new", prints=False),
    "export -": Row("export x:1 -", is_text=False),
    "copy": Row("copy {}/store {}/other"),
    "copy -": Row("copy {}/store oci:{}/new x:1"),
    "watch": Row("watch", prepare=_WATCH),
    "check": Row("check"),
    "repair": Row("repair"),
    "df": Row("df"),
    "prune": Row("prune --all"),
    "gc": Row("gc"),
    "cluster migrate": Row("cluster migrate postgresql://host/database", prepare=_CLUSTER),
    "cluster adopt": Row(
        "cluster adopt --root 'postgresql://host/database s3://bucket/prefix'", prepare=_CLUSTER
    ),
    "cluster doctor": Row(
        "cluster doctor --root 'postgresql://host/database s3://bucket/prefix'", prepare=_CLUSTER
    ),
    "cluster grace-period": Row(
        "cluster grace-period 1 postgresql://host/database", prints=False, prepare=_CLUSTER
    ),
    "--help": Row("--help"),
    "images --help": Row("images --help"),
    "--version": Row("--version"),
}
COMMANDS = {name: row for name, row in TABLE.items() if "--" not in name}
PRINTING = {name: row for name, row in TABLE.items() if row.prints}
# Each writes in another way.
SOME = {name: TABLE[name] for name in ("images", "get", "export -", "--help")}

MODES: dict[str, tuple[Sequence[str], dict[str, str]]] = {
    "usual": ((), {}),
    "unbuffered": (("-W", "error"), {"PYTHONUNBUFFERED": "1"}),
    "optimized": (("-OO",), {}),
    "C locale": ((), {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
}


def rows(table: dict[str, Row]) -> Any:
    return pytest.mark.parametrize("row", list(table.values()), ids=list(table))


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    output: bytes
    errors: bytes


@dataclass
class Program:
    """Runs the program on copies of one store.

    :ivar mode: which interpreter runs it
    """

    original: Path
    directory: Path
    templates: dict[str, Template] = field(default_factory=dict)
    mode: str = "usual"

    def start(self, row: Row, **options: Any) -> int:
        """Start a command on the store."""
        if self.mode not in self.templates:
            flags, variables = MODES[self.mode]
            variables = {"PYTHONUNBUFFERED": "", **variables}  # the tests may be run so
            self.templates[self.mode] = Template(*flags, variables=environment(**variables))
        prepare = f"BLOCKS = False\n{row.prepare}" + options.pop("prepare", "")
        arguments = shlex.split(row.arguments.replace("{}", str(self.directory)))
        root = ("--root", self.directory / "store")
        return self.templates[self.mode].start(*root, *arguments, prepare=prepare, **options)

    def wait(self, process: int) -> int:
        """Wait for a command, and return its exit code."""
        return self.templates[self.mode].wait(process)

    def run(self, row: Row, *, stdout: int | None = None, **options: Any) -> Ended:
        """Run a command, with standard output in a file unless it is given."""
        files = {name: os.memfd_create(name) for name in ("output", "errors")}
        source = self.directory / ("layout.tar" if row.reads else "empty")
        stdin = os.open(source, os.O_RDONLY)
        try:
            output = files["output"] if stdout is None else stdout
            started = self.start(row, stdin=stdin, stdout=output, stderr=files["errors"], **options)
            code = self.wait(started)
            output_bytes, errors = (os.pread(fd, 1 << 24, 0) for fd in files.values())
        finally:
            for fd in (*files.values(), stdin):
                os.close(fd)
        return Ended(code, output_bytes, errors)


@pytest.fixture(scope="module")
def templates(template: Template) -> Iterator[dict[str, Template]]:
    """The processes that copies are made of, by mode."""
    found = {"usual": template}
    yield found
    for mode, each in found.items():
        if mode != "usual":
            each.close()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an image, and a layout as a directory and a tar file."""
    directory = tmp_path_factory.mktemp("original")
    maker = hello(config={"created": "2020-01-02T03:04:05Z"})
    maker.write(directory / "layout")
    maker.write(directory / "layout.tar")
    (directory / "empty").touch()
    cli = Cli(directory / "store")
    (image_id,) = cli("import", directory / "layout", "--name", "x:1").lines
    cli("tag", image_id, "größe:1")
    cli("flag", image_id, "flag", "1")
    return directory


@pytest.fixture
def program(templates: dict[str, Template], original: Path, tmp_path: Path, path: Path) -> Program:
    """The program, on a copy of the store that is checked after the test."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    assert path.is_dir()
    return Program(original, tmp_path, templates)


def test_the_table_has_every_command() -> None:
    assert {name.removesuffix(" -") for name in COMMANDS} == {name for name, _ in all_commands()}
    assert invoke("--help").exit_code == 0


def expected(program: Program, row: Row) -> bytes:
    """What a command prints, found out on another copy."""
    known = _EXPECTED.get(row.arguments)
    if known is None:
        directory = program.directory / "before"
        shutil.copytree(program.original, directory)
        ended = Program(program.original, directory, program.templates).run(row)
        assert (ended.code, ended.errors) == (0, b""), ended
        shutil.rmtree(directory)
        known = ended.output.replace(bytes(directory), b"{}")
        assert bool(known) == row.prints
        _EXPECTED[row.arguments] = known
    return known.replace(b"{}", bytes(program.directory))


_EXPECTED: dict[str, bytes] = {}


# Standard output that takes nothing


@rows(PRINTING)
def test_a_full_disk(program: Program, row: Row) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    ended = program.run(row, stdout=full)
    os.close(full)
    assert ended.code == 1
    assert ended.errors == b"aimagestore: standard output: No space left on device\n"


@rows(SOME)
def test_a_file_system_that_reports_a_failure_late(program: Program, row: Row) -> None:
    ended = program.run(row, prepare=_LATE)
    assert ended.code == 1
    assert ended.errors == b"aimagestore: standard output: Disk quota exceeded\n"


@rows(PRINTING)
def test_nobody_reads(program: Program, row: Row) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = program.run(row, stdout=writer)
    os.close(writer)
    assert (ended.code, ended.errors) == (141, b"")


@rows(SOME)
def test_standard_output_that_only_reads(program: Program, row: Row) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    ended = program.run(row, stdout=null)
    os.close(null)
    assert ended.code == 1
    assert ended.errors == b"aimagestore: standard output: closed, or not open for writing\n"


# Standard output that takes a little at a time


@rows(PRINTING)
def test_short_writes(program: Program, row: Row) -> None:
    output = expected(program, row)
    assert program.run(row, prepare=_SHORT) == Ended(0, output, b"")


@rows(PRINTING)
def test_a_pipe_that_is_full_and_set_not_to_wait(program: Program, row: Row) -> None:
    output = expected(program, row)
    reader, writer = os.pipe()
    filler = bytes(fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096))
    os.write(writer, filler)
    os.set_blocking(writer, False)
    got = bytearray()

    def read() -> None:
        while piece := os.read(reader, 65536):
            got.extend(piece)

    # Reading begins when the program waits for it.
    null = os.open(os.devnull, os.O_RDWR)
    stdin = os.open(program.directory / "layout.tar", os.O_RDONLY)
    started = program.start(row, stdin=stdin, stdout=writer, stderr=null)
    os.close(writer)
    assert becomes_true(lambda: "poll" in wait_channels(started))
    thread = threading.Thread(target=read)
    thread.start()
    code = program.wait(started)
    thread.join()
    for fd in (reader, null, stdin):
        os.close(fd)
    assert code == 0
    assert bytes(got) == filler + output


def wait_channels(process: int) -> str:
    """Where the threads of a process wait."""
    channels = []
    for task in os.listdir(f"/proc/{process}/task"):
        with suppress(OSError):  # it ends meanwhile
            syscall = Path(f"/proc/{process}/task/{task}/syscall").read_text().split()[0]
            channels.append("poll" if syscall in _POLL else syscall)
    return " ".join(channels)


_POLL = {"7", "271", "73"}  # poll and ppoll, of x86-64 and of arm64


# Closed streams


@pytest.mark.parametrize(
    ("row", "closed"), pairs(TABLE, {str(files): files for files in [(0,), (1,), (2,), (0, 1, 2)]})
)
def test_closed_streams(program: Program, row: Row, closed: tuple[int, ...]) -> None:
    output = expected(program, row)
    before = files_of(program.directory)
    ended = program.run(row, closed=closed)
    fails = (row.prints and 1 in closed) or (row.reads and 0 in closed)
    assert ended.code == (1 if fails else 0)
    if fails and 2 not in closed:
        assert ended.errors.count(b"\n") == 1
        assert b"closed" in ended.errors
    else:
        assert ended.errors == b""
    assert ended.output == (b"" if fails or 1 in closed else output)
    # Nothing went into another file.
    after = files_of(program.directory)
    changed = {name for name, data in before.items() if after.get(name) not in {data, None}}
    assert changed <= {"store/images.json", "store/images.lock"}
    assert len(after["store/images.lock"]) == 64
    assert b"closed" not in b"".join(after.values())


# Interpreters


@pytest.mark.parametrize(
    ("row", "mode"), pairs(TABLE, {mode: mode for mode in MODES if mode != "usual"})
)
def test_modes_of_the_interpreter(program: Program, row: Row, mode: str) -> None:
    output = expected(program, row)
    program.mode = mode
    ended = program.run(row)
    assert (ended.code, ended.errors) == (0, b"")
    if mode == "C locale" and row.is_text:
        output = output.replace("größe".encode(), rb"gr\xf6\xdfe")
    assert ended.output == output


@rows(SOME)
def test_a_full_disk_without_a_buffer_of_pythons(program: Program, row: Row) -> None:
    program.mode = "unbuffered"
    full = os.open("/dev/full", os.O_WRONLY)
    ended = program.run(row, stdout=full)
    os.close(full)
    assert (ended.code, ended.errors.count(b"\n")) == (1, 1)


# Signals


@dataclass
class Gated:
    """A command that has begun, and waits."""

    process: int
    opener: int

    def go_on(self) -> None:
        os.write(self.opener, b"x")


class Gates:
    """Starts commands that wait when they have begun."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._files: list[int] = []
        self.errors = os.memfd_create("errors")
        self.output = os.memfd_create("output")

    def start(self, row: Row, ignored: Sequence[int] = ()) -> Gated:
        """Start a command, and return when it has begun."""
        source = self.program.directory / "layout.tar"
        stdin = os.open(source, os.O_RDONLY)
        here, opener = os.pipe()
        begun, there = os.pipe()
        self._files += [stdin, here, opener, begun]
        process = self.program.start(
            row,
            stdin=stdin,
            stdout=self.output,
            stderr=self.errors,
            gates=(here, there),
            ignored=ignored,
            prepare="BLOCKS = True\n" + _GATE,
        )
        os.close(there)
        assert os.read(begun, 1) == b"x"
        return Gated(process, opener)

    def close(self) -> None:
        for fd in (*self._files, self.errors, self.output):
            os.close(fd)


@pytest.fixture
def gates(program: Program) -> Iterator[Gates]:
    """Starts commands that wait when they have begun."""
    found = Gates(program)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("row", "number"),
    pairs(COMMANDS, {each.name: each for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}),
)
def test_signals_that_end_a_command(gates: Gates, row: Row, number: int) -> None:
    before = files_of(gates.program.directory)
    begun = gates.start(row)
    os.kill(begun.process, number)
    assert gates.program.wait(begun.process) == 128 + number
    assert os.pread(gates.errors, 1000, 0).count(b"\n") == 1
    assert os.pread(gates.output, 1000, 0) == b""
    assert files_of(gates.program.directory) == before


@rows(COMMANDS)
def test_signals_that_are_ignored(gates: Gates, row: Row) -> None:
    output = expected(gates.program, row)
    begun = gates.start(row, ignored=[signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        os.kill(begun.process, number)
    begun.go_on()
    assert gates.program.wait(begun.process) == 0
    assert os.pread(gates.output, 1 << 24, 0) == output


@rows(COMMANDS)
def test_a_command_that_is_stopped_goes_on(gates: Gates, row: Row) -> None:
    output = expected(gates.program, row)
    begun = gates.start(row)
    os.kill(begun.process, signal.SIGSTOP)
    stat = Path(f"/proc/{begun.process}/stat")
    assert becomes_true(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
    begun.go_on()
    os.kill(begun.process, signal.SIGCONT)
    assert gates.program.wait(begun.process) == 0
    assert os.pread(gates.output, 1 << 24, 0) == output
