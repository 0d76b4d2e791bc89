"""A store with one image that buildah has written."""

from __future__ import annotations

from pathlib import Path

FIXTURE = Path(__file__).parents[1] / "data" / "vfs-images"
FIXTURE_ID = "f5b637858f34c3ec1d1fe5127a2a01f1b8d8283ab0735becad262855d3d40872"
FIXTURE_DIGEST = "sha256:917f4f848ab58c0c11f90fdc6887e42c855b200fdf1fb147248447a6c1ff970a"
SOME_DIGEST = "sha256:" + "7" * 64
"""A digest that nothing in the store has."""
