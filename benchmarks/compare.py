"""Counts the work of two revisions of the library, in turns, and compares them."""

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
"""Runs a command in a directory, and returns its instructions or seconds."""


@dataclass(frozen=True)
class Ratio:
    """What this revision takes for a row, divided by what the other one takes."""

    row: str
    ratio: float
    ours: float
    theirs: float


class NothingToCompareError(Exception):
    """There is no release to compare with."""


def _resolve(revision: str) -> str:
    """Return the name of a revision for git."""
    if revision != RELEASE:
        return revision
    settings = tomllib.loads((HERE / "pyproject.toml").read_text())
    released = settings["tool"].get("benchmarks", {}).get("last-release")
    if released is None:
        raise NothingToCompareError("pyproject.toml names no commit of a release yet")
    return str(released)


def check_out(revision: str, directory: Path) -> Path:
    """Put the library of a revision and the benchmarks of this one into a new directory.

    :raises NothingToCompareError: when there is no release, or git does not have its commit
    :raises SystemExit: when git does not have another revision
    """
    commit = _resolve(revision)
    command = ["git", "-C", str(HERE), "archive", commit, "aimagestore"]
    archived = subprocess.run(command, capture_output=True, check=False)
    if archived.returncode:
        message = f"git archive {commit}: {archived.stderr.decode().strip()}"
        if revision == RELEASE:
            raise NothingToCompareError(message)
        sys.exit(message)
    path = directory / "other"
    with tarfile.open(fileobj=BytesIO(archived.stdout)) as archive:
        archive.extractall(path, filter="data")
    shutil.copytree(HERE / "benchmarks", path / "benchmarks")
    return path


def find_counter(directory: Path) -> tuple[str, Count]:
    """Return the unit and the way of counting: instructions if possible, else processor time."""
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
    # cachegrind counts as callgrind does, in half the time.
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
    """Run a command, and return its standard error."""
    # Both get the same hashes of strings, and keep bytecode outside the source directories.
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
    """Count the rows for both revisions. Rows that the other one cannot do are left out."""
    make_store(scratch / "seed", SIZE)
    turns = _TURNS_BY_TIME if counter is _by_time else 1
    base_counts: dict[tuple[str, Path], list[float]] = {}

    def command(row: str, times: int) -> list[str]:
        # A commit leaves a store that takes less to read: each command gets a new one.
        store = scratch / "store"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(scratch / "seed", store)
        return [sys.executable, "-m", "benchmarks.work", row, str(times), str(store)]

    ratios = []
    for row in rows:
        _run(command(row, 1), HERE)
        try:
            _run(command(row, 1), other)
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip().rpartition("\n")[2]
            print(f"     -  {row}: left out, because the other revision cannot do it: {reason}")
            continue
        totals: dict[Path, list[float]] = {other: [], HERE: []}
        for _ in range(turns):
            for where in other, HERE:
                bases = base_counts.setdefault((ROWS[row].base, where), [])
                if len(bases) < turns:
                    bases.append(counter(command(row, 0), where))
                totals[where].append(counter(command(row, ROWS[row].times), where))
        ours, theirs = (
            statistics.median(totals[where]) - statistics.median(base_counts[ROWS[row].base, where])
            for where in (HERE, other)
        )
        ratios.append(Ratio(row, ours / theirs, ours / ROWS[row].times, theirs / ROWS[row].times))
        print(f"{ratios[-1].ratio:6.2f}  {row}", flush=True)
    return ratios
