"""Full names of images, as podman makes them when it loads one (libimage: ``NormalizeName``)."""

from __future__ import annotations

import re
from functools import cache

from .digest import is_digest

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_LONGEST = 255

DOCKER = "docker.io"
_LOCALHOST = "localhost"

_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)


def is_reference(name: str) -> bool:
    """Return whether podman can read a name of an image; with any other ``podman images`` fails."""
    return full_name(name, DOCKER) is not None and _HEX.fullmatch(name) is None


@cache
def _reference() -> re.Pattern[str]:
    """Return the pattern of a name, which takes long to compile and is rarely needed."""
    return re.compile(
        rf"(?:(?P<domain>{_DOMAIN})/)?(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
        r"(?::(?P<tag>\w[\w.-]{0,127}))?"
        r"(?:@(?P<digest>.+))?",
        re.ASCII,
    )


def full_name(name: str, registry: str = _LOCALHOST) -> str | None:
    """Return the full name, with a registry and a tag or digest; ``None`` if it is not a name.

    As in podman, a tag beside a digest does not count.

    :param registry: the registry of a name that has none
    """
    # A longer text is no name, and would take long to match.
    found = _reference().fullmatch(name) if len(name) <= 4 * _LONGEST else None
    if found is None or (found["digest"] and not is_digest(found["digest"])):
        return None
    domain, path = found["domain"] or "", found["path"]
    if not ("." in domain or ":" in domain or domain == _LOCALHOST):
        domain, path = registry, f"{domain}/{path}".lstrip("/")
    if domain == "index.docker.io":
        domain = DOCKER
    if domain == DOCKER and "/" not in path:
        path = f"library/{path}"
    if path != path.lower() or len(f"{domain}/{path}") > _LONGEST:
        return None
    if found["digest"]:
        return f"{domain}/{path}@{found['digest']}"
    return f"{domain}/{path}:{found['tag'] or 'latest'}"
