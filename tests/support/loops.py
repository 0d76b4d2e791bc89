"""The event loops that tests run on, and how much of what can be tried is tried."""

from __future__ import annotations

import os
from typing import Any

import pytest

NIGHTLY = bool(os.environ.get("AIMAGESTORE_NIGHTLY"))
"""Whether everything is tried on every loop, for as long as that takes."""

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
"""What anyio calls each loop."""

EVERY_LOOP = [pytest.param(backend, id=name) for name, backend in OPTIONS.items()]
ASYNCIO_LOOPS = EVERY_LOOP[:2]
# uvloop is another asyncio: it matters where the library deals with the loop itself, which the
# tests of cancellation try on all three.
USUAL_LOOPS = EVERY_LOOP if NIGHTLY else [EVERY_LOOP[0], EVERY_LOOP[2]]
