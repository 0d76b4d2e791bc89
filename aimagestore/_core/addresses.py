"""Tells the address of a server, however it is misspelled, from the path of a directory."""

from __future__ import annotations

import re
from typing import Final

# Nobody means a directory by these, not even without the slashes that belong to them.
_CLUSTER: Final = re.compile(r"\s*(?:postgres|s3)[\w+.-]*:", re.IGNORECASE)

# pathlib makes one slash of two. A drive's letter is no scheme.
_URL: Final = re.compile(r"\s*[a-z][a-z0-9+.-]+:/|.*://", re.IGNORECASE | re.DOTALL)

# What a connection string of libpq begins with, and what makes any text a secret.
_PARAMETER: Final = re.compile(
    r"\s*(?:host|hostaddr|port|dbname|user|passfile|service|servicefile|options|sslmode)\s*="
    r"|.*password\s*=",
    re.IGNORECASE | re.DOTALL,
)

_PATHS: Final = ("/", "./", "../")


def is_address(text: str) -> bool:
    """Return whether a text is meant as the address of a server, well-formed or not.

    A text that begins with ``/``, ``./`` or ``../`` is a path, whatever follows.
    """
    return not text.startswith(_PATHS) and any(
        pattern.match(text) for pattern in (_CLUSTER, _URL, _PARAMETER)
    )
