"""The progress of a transfer of several files."""

from __future__ import annotations

from .._async.staging import Progress


class Meter:
    """Adds up the parts of a transfer, which are transferred one after the other.

    :ivar total: the bytes of all parts
    :ivar done: the bytes of the parts that have ended
    """

    def __init__(self, progress: Progress | None) -> None:
        self.total = 0
        self.done = 0
        self._progress = progress
        self._reported = (0, 0)

    def report(self, part: int, _total: int | None = None) -> None:
        """Report how many bytes of the current part are done."""
        now = (self.done + part, self.total)
        if self._progress is not None and now != self._reported:
            self._reported = now
            self._progress(*now)

    def end(self, part: int) -> None:
        """Report the end of a part of this many bytes."""
        self.done += part
        self.report(0)
