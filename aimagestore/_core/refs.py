"""Refs that name an image by a digest: ``sha256:<id>`` and ``name@sha256:<digest>``."""

from __future__ import annotations

from .digest import CANONICAL, is_digest

_ID_PREFIX = CANONICAL + ":"


def id_in_ref(ref: str) -> str | None:
    """Return the ID in ``sha256:<id>``, as ``podman images --no-trunc`` prints it, or ``None``.

    As in podman, it must be a whole ID, not a prefix.
    """
    return ref.removeprefix(_ID_PREFIX) if ref.startswith(_ID_PREFIX) else None


def repository_and_digest(ref: str) -> tuple[str, str] | None:
    """Split ``name@<digest>`` into the name's repository and the digest, or return ``None``.

    As in podman, a tag beside the digest does not count.
    """
    name, _, digest = ref.rpartition("@")
    repository = repository_of(name)
    return (repository, digest) if repository and is_digest(digest) else None


def repository_of(name: str) -> str:
    """Return an image's name without its tag and its digest."""
    name = name.partition("@")[0]
    # A colon before the last slash belongs to a registry's port.
    start = name.rfind("/") + 1
    return name[:start] + name[start:].partition(":")[0]
