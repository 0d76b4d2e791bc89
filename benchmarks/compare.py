"""Two revisions of the library, in turns: what this one takes by what the other one takes."""

from __future__ import annotations

import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from .images import make_store
from .work import ROWS, SIZE

HERE = Path(__file__).parent.parent
RELEASE = "release"
"""Stands for the commit of the last release, which pyproject.toml names."""

_TURNS_BY_TIME = 7

Count = Callable[[Sequence[str], Path], float]
"""Returns what a command takes that runs in a directory."""


@dataclass(frozen=True)
class Ratio:
    """What this revision takes of a row, by what the other one takes."""

    row: str
    ratio: float
    ours: float
    theirs: float


def resolve(revision: str) -> str:
    """The name of a revision for git."""
    if revision != RELEASE:
        return revision
    settings = tomllib.loads((HERE / "pyproject.toml").read_text())
    return str(settings["tool"]["benchmarks"]["last-release"])


def check_out(revision: str, directory: Path) -> Path:
    """Put a revision's library, beside the benchmarks of this one, into a directory.

    :raises SystemExit: when git does not know the revision
    """
    command = ["git", "-C", str(HERE), "archive", resolve(revision), "aimagestore"]
    archived = subprocess.run(command, capture_output=True, check=False)
    if archived.returncode:
        sys.exit(f"git archive {resolve(revision)}: {archived.stderr.decode()}")
    path = directory / "other"
    with tarfile.open(fileobj=BytesIO(archived.stdout)) as archive:
        archive.extractall(path, filter="data")
    shutil.copytree(HERE / "benchmarks", path / "benchmarks")
    return path


def find_counter(directory: Path) -> tuple[str, Count]:
    """What counts here, and how: instructions if possible, else seconds of the processor."""
    for name, counter in ("perf", _by_perf), ("valgrind", _by_valgrind):
        if shutil.which(name) is not None:
            try:
                counter(["true"], directory)
            except ValueError:
                continue
            return f"instructions, counted by {name}", counter
    return "seconds of the processor", _by_time


def _by_perf(command: Sequence[str], directory: Path) -> float:
    tool = ["perf", "stat", "-x", ",", "-e", "instructions:u", "--"]
    found = re.search(
        r"^(\d+),[^,]*,instructions:u", _run([*tool, *command], directory), re.MULTILINE
    )
    if found is None:
        raise ValueError("perf counts no instructions here")
    return float(found[1])


def _by_valgrind(command: Sequence[str], directory: Path) -> float:
    # It counts as callgrind does, in half the time.
    tool = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    found = re.search(r"I +refs: +([\d,]+)", _run([*tool, *command], directory))
    if found is None:
        raise ValueError("valgrind counts no instructions here")
    return float(found[1].replace(",", ""))


def _by_time(command: Sequence[str], directory: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _run(command, directory)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime


def _run(command: Sequence[str], directory: Path) -> str:
    """Run a command, and return what it says on standard error."""
    # Strings have the same hashes in both; what is compiled is kept, but not in the sources.
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(directory),
        "PYTHONPYCACHEPREFIX": str(directory.parent / "pycache"),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=True
    )
    return done.stderr


def count(other: Path, scratch: Path, counter: Count, rows: Sequence[str]) -> list[Ratio]:
    """Count the rows for both revisions."""
    make_store(scratch / "store", SIZE)
    turns = _TURNS_BY_TIME if counter is _by_time else 1
    base_counts: dict[tuple[str, Path], list[float]] = {}

    def take(row: str, times: int, where: Path) -> float:
        command = [sys.executable, "-m", "benchmarks.work", row, str(times), str(scratch / "store")]
        return counter(command, where)

    ratios = []
    for row in rows:
        totals: dict[Path, list[float]] = {other: [], HERE: []}
        for where in other, HERE:
            _run([sys.executable, "-m", "benchmarks.work", row, "1", str(scratch / "store")], where)
        for _ in range(turns):
            for where in other, HERE:
                bases = base_counts.setdefault((ROWS[row].base, where), [])
                if len(bases) < turns:
                    bases.append(take(row, 0, where))
                totals[where].append(take(row, ROWS[row].times, where))
        ours, theirs = (
            statistics.median(totals[where]) - statistics.median(base_counts[ROWS[row].base, where])
            for where in (HERE, other)
        )
        ratios.append(Ratio(row, ours / theirs, ours / ROWS[row].times, theirs / ROWS[row].times))
        print(f"{ratios[-1].ratio:6.2f}  {row}", flush=True)
    return ratios
