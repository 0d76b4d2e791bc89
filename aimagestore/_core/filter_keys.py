"""The keys of podman's filters of images, which the help of commands shows."""

from __future__ import annotations

from typing import Final

FILTERS: Final = (
    "before",
    "dangling",
    "digest",
    "id",
    "intermediate",
    "label",
    "manifest",
    "readonly",
    "reference",
    "since",
    "until",
)
"""The keys of filters. ``after`` is another word for ``since``."""
