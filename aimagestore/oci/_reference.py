"""Names of images, made full as podman does when it loads one (libimage: ``NormalizeName``)."""

from __future__ import annotations

import re

from .._core.digest import is_digest

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:(?P<domain>{_DOMAIN})/)?(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?"
    r"(?:@(?P<digest>.+))?",
    re.ASCII,
)
_LONGEST = 255


def full_name(name: str) -> str | None:
    """The full name, with a registry (``localhost`` where there is none) and a tag or digest.

    ``None`` when it is no name of an image.
    """
    # Longer ones are none, and would take long to find out about.
    found = _REFERENCE.fullmatch(name) if len(name) <= 4 * _LONGEST else None
    if found is None or (found["digest"] and not is_digest(found["digest"])):
        return None
    domain, path = found["domain"] or "", found["path"]
    if not ("." in domain or ":" in domain or domain == "localhost"):
        domain, path = "localhost", f"{domain}/{path}".lstrip("/")
    if domain == "index.docker.io":
        domain = "docker.io"
    if domain == "docker.io" and "/" not in path:
        path = f"library/{path}"
    if path != path.lower() or len(f"{domain}/{path}") > _LONGEST:
        return None
    if found["digest"] and not found["tag"]:
        return f"{domain}/{path}@{found['digest']}"
    return f"{domain}/{path}:{found['tag'] or 'latest'}"
