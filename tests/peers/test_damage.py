"""Stores that podman refuses: what a check says about them, and that a repair makes podman work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aimagestore import FindingKind as Kind, check, repair

from ..support.stores import edit_index
from .tools import Tools, require

pytestmark = pytest.mark.peers

NAME = "localhost/hello:1"
Change = Callable[[list[dict[str, Any]]], object]

REFUSED: dict[str, Change] = {
    "the image's": lambda records: records[0].update({"digest": "sha256:x"}),
    "the image's, without algorithm": lambda records: records[0].update({"digest": "x"}),
    "a manifest's": lambda records: records[0]["big-data-digests"].update({"manifest": "sha256:x"}),
    "a manifest's, empty": lambda records: records[0]["big-data-digests"].update({"manifest": ""}),
}
"""Malformed digests."""


async def test_podman_works_again_after_a_repair_of_malformed_digests(short_path: Path) -> None:
    require("podman", "buildah")
    tools = Tools(short_path)
    image_id = tools.commit(NAME, "hello")
    path = tools.image_store
    whole = json.loads((path / "images.json").read_bytes())
    for change in REFUSED.values():
        edit_index(path, change)
        with pytest.raises(AssertionError, match="invalid checksum digest"):
            tools.names()
        report = await check(path)
        assert {(f.kind, f.id) for f in report.findings} == {(Kind.DIGEST_MALFORMED, image_id)}
        await repair(path, report)
        assert tools.names() == {image_id: [NAME]}
        assert json.loads((path / "images.json").read_bytes()) == whole
