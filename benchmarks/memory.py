"""The memory of this process, in bytes, as the kernel counts it."""

from __future__ import annotations

import re
from pathlib import Path


def _field(file: str, field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path(file).read_text(), re.MULTILINE)
    assert match is not None, f"{file} has no {field}"
    return int(match[1]) * 1024


def proportional() -> int:
    """Return the resident bytes, each shared page divided by the processes that share it (PSS)."""
    return _field("/proc/self/smaps_rollup", "Pss")


def resident() -> int:
    """Return the resident bytes."""
    return _field("/proc/self/status", "VmRSS")


def peak() -> int:
    """Return the peak of resident bytes since the last reset."""
    return _field("/proc/self/status", "VmHWM")


def reset_peak() -> None:
    """Reset the peak."""
    Path("/proc/self/clear_refs").write_text("5")
