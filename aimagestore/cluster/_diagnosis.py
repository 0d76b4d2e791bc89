"""What a look at a cluster's servers says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .._core.plain import PlainEnum, PlainType


class Severity(StrEnum, metaclass=PlainEnum):
    """How much a diagnosis matters."""

    OK = "ok"
    """It is as it should be."""
    NOTE = "note"
    """Worth knowing; or it is not known, and the text says why."""
    WARNING = "warning"
    """It works, and will do harm one day."""
    ERROR = "error"
    """It does not work, or loses data."""


@dataclass(frozen=True, slots=True)
class Diagnosis(metaclass=PlainType):
    """One thing that was looked at.

    :ivar severity: how much it matters
    :ivar about: what was looked at, in a word or two
    :ivar text: what was found; without secrets
    :ivar advice: what to do; ``""`` where there is nothing to do
    """

    severity: Severity
    about: str
    text: str
    advice: str = ""
