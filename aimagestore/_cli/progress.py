"""A progress bar on standard error, if that is a terminal, for calls that take long."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from .human import printable

if TYPE_CHECKING:
    from rich.progress import Progress

DELAY = 0.5
"""Seconds before a bar is shown. Calls that end earlier show none."""


class Bar:
    """Shows how many bytes of something are done, or shows nothing."""

    def __init__(self, progress: Progress | None, what: str, total: int | None) -> None:
        self._progress = progress
        self._what = what
        self._total = total
        self._due = monotonic() + DELAY

    def show(self, done: int, total: int | None) -> None:
        """Show how many bytes are done, and the total if it is known."""
        if total is not None:
            self._total = total
        if self._progress is None or monotonic() < self._due:
            return
        if not self._progress.tasks:
            self._progress.add_task(printable(self._what))
            self._progress.start()
        self._progress.update(self._progress.tasks[0].id, completed=done, total=self._total)


@contextmanager
def progress_bar(
    what: str, total: int | None = None, *, beside_data: bool = False
) -> Iterator[Bar]:
    """Show a bar while the block runs, if standard error is a terminal.

    :param beside_data: whether the data itself comes from a terminal or goes to one, which a bar
        would garble
    """
    if beside_data or not sys.stderr.isatty():
        yield Bar(None, what, total)
        return
    from rich.console import Console  # noqa: PLC0415 - the import is slow, and most commands are short
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # Other output goes directly to its stream.
        redirect_stdout=False,
        redirect_stderr=False,
    )
    try:
        yield Bar(progress, what, total)
    finally:
        progress.stop()
