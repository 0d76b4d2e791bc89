"""Tells the address of a server, misspelled or not, from the path of a directory."""

from __future__ import annotations

import re
from typing import Final

# An address even where its slashes were forgotten: no directory is called this.
_CLUSTER: Final = r"\s*(?:postgres|s3)[\w+.-]*:"

# One slash is enough, because pathlib collapses two. A single letter is a drive, not a scheme.
_URL: Final = r"\s*[a-z][a-z0-9+.-]+:/|.*://"

# How a connection string of libpq begins; and a password, wherever it is in the text.
_PARAMETER: Final = (
    r"\s*(?:host|hostaddr|port|dbname|user|passfile|service|servicefile|options|sslmode)\s*="
    r"|.*password\s*="
)

_PATHS: Final = ("/", "./", "../")


def is_address(text: str) -> bool:
    """Return whether a text is meant as the address of a server, even a malformed one.

    A text that begins with ``/``, ``./`` or ``../`` is a path, whatever follows.
    """
    # Most paths have none of these marks, so that no pattern is compiled.
    has_mark = ":" in text or "=" in text
    return (
        has_mark
        and not text.startswith(_PATHS)
        and any(
            re.match(pattern, text, re.IGNORECASE | re.DOTALL)
            for pattern in (_CLUSTER, _URL, _PARAMETER)
        )
    )
