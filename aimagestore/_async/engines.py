"""What a store is given to work with."""

from __future__ import annotations

import os

from .._directory.engine import DirectoryEngine
from .._engine.protocol import Engine


def engine_of(place: str | os.PathLike[str] | Engine) -> Engine:
    """The engine of a directory; or the engine that was given itself."""
    return DirectoryEngine(place) if isinstance(place, str | os.PathLike) else place
