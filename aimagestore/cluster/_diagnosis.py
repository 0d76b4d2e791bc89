"""The results of examining the servers of a cluster's store."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .._core.plain import PlainEnum, PlainType


class Severity(StrEnum, metaclass=PlainEnum):
    """How much a diagnosis matters."""

    OK = "ok"
    """Nothing is wrong."""
    NOTE = "note"
    """Worth knowing, or could not be examined; the text says why."""
    WARNING = "warning"
    """It works, but will do harm."""
    ERROR = "error"
    """It does not work, or loses data."""


@dataclass(frozen=True, slots=True)
class Diagnosis(metaclass=PlainType):
    """The result for one thing that :func:`doctor` examined.

    :ivar severity: how much it matters
    :ivar about: what was examined, in a word or two
    :ivar text: what was found; without secrets
    :ivar advice: what to do; ``""`` if there is nothing to do
    """

    severity: Severity
    about: str
    text: str
    advice: str = ""
