"""How much memory this process takes, as the kernel counts it."""

from __future__ import annotations

import re
from pathlib import Path


def _field(file: str, field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path(file).read_text(), re.MULTILINE)
    assert match is not None, f"{file} has no {field}"
    return int(match[1]) * 1024


def proportional() -> int:
    """Resident bytes, each shared page divided by those that share it (PSS)."""
    return _field("/proc/self/smaps_rollup", "Pss")


def resident() -> int:
    """Resident bytes."""
    return _field("/proc/self/status", "VmRSS")


def peak() -> int:
    """The most resident bytes since the last reset."""
    return _field("/proc/self/status", "VmHWM")


def reset_peak() -> None:
    """Begin to look for the peak anew."""
    Path("/proc/self/clear_refs").write_text("5")
