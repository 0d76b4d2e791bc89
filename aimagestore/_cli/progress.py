"""A bar with its speed on standard error, for what takes long; none where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from .human import printable


class Bar:
    """How much of something is done, in bytes."""

    def __init__(self, progress: Progress, what: str, total: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task(printable(what), total=total)

    def show(self, done: int, total: int | None) -> None:
        """Show how much is done, and of how much if that is known."""
        if total is None:
            self._progress.update(self._task, completed=done)
        else:
            self._progress.update(self._task, completed=done, total=total)


@contextmanager
def progress_bar(what: str, total: int | None = None) -> Iterator[Bar]:
    """Show a bar for as long as the block takes, where standard error is a terminal."""
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # What is printed meanwhile goes where it is sent, and not through this.
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with progress if sys.stderr.isatty() else nullcontext():
        yield Bar(progress, what, total)
