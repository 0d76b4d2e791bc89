"""Finds out which rules the installed podman follows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import lru_cache

from ._rules import RULES, Rules

_PIECE = 1 << 20


def installed_rules(environ: Mapping[str, str]) -> Rules | None:
    """Return the rules of the podman in ``PATH``; ``None`` if they are not known. Blocking.

    The program is not run, because that could start processes in a user namespace. It is searched
    for names of functions, which every Go program contains.
    """
    program = shutil.which("podman", path=environ.get("PATH"))
    if program is None:
        return None
    try:
        status = os.stat(program)
        return _rules_of(os.path.realpath(program), status.st_mtime_ns, status.st_size)
    except OSError:
        return None


@lru_cache
def _rules_of(program: str, _modified: int, _size: int) -> Rules | None:
    best = len(RULES)
    overlap = max(len(rules.symbol) for rules in RULES) - 1
    with open(program, "rb") as file:
        # In small pieces, because a search blocks all other threads.
        piece = b""
        while best and (more := file.read(_PIECE)):
            piece = piece[-overlap:] + more
            for number, rules in enumerate(RULES[:best]):
                if rules.symbol in piece:
                    best = number
                    break
    return RULES[best] if best < len(RULES) else None
