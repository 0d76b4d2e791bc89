"""Checks of a store against what its workers report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from aimagestore import Image, ImageStore

from .worker import COUNTER, SHARED


def check_images(images: Mapping[str, Image], reports: list[dict[str, Any]]) -> None:
    """Check that no update is lost, and that no name belongs to two images."""
    expected: set[str] = {SHARED, COUNTER}
    for report in reports:
        expected |= report["images"].keys()
        assert images.keys().isdisjoint(report["deleted"])
        for image_id, made in report["images"].items():
            image = images[image_id]
            assert set(image.names) - {"localhost/moving:1"} == {made["name"]}
            assert image.metadata == made["metadata"]
            assert "text" in image.big_data_names
            assert "manifest" in image.big_data_names
    assert images.keys() == expected
    names = [name for image in images.values() for name in image.names]
    assert len(names) == len(set(names)), "a name belongs to two images"
    assert names.count("localhost/moving:1") == 1
    shared = chain.from_iterable(report["shared_names"] for report in reports)
    assert sorted(images[SHARED].names) == sorted(shared)
    assert json.loads(images[COUNTER].metadata)["count"] == sum(r["counted"] for r in reports)


async def check_data(
    store: ImageStore, images: Iterable[Image], reports: list[dict[str, Any]]
) -> None:
    """Check that every item has the content that was set last."""
    for report in reports:
        for image_id, made in report["images"].items():
            assert await store.big_data(image_id, "text") == made["data"].encode()
        item = await store.big_data(SHARED, f"{report['worker']}.item")
        assert item == report["shared_item"].encode()
    for image in images:
        for key in image.big_data_names:
            async with store.open_big_data(image.id, key, verify=True) as reader:
                await reader.read()


def check_freshness(reports: list[dict[str, Any]]) -> None:
    """Check that each read that began after a change had returned saw it, in whichever process."""
    done = sorted(chain.from_iterable(report["counts"] for report in reports))
    looks = sorted(chain.from_iterable(report["looks"] for report in reports))
    at_least = 0
    for when, seen in looks:
        while done and done[0][0] < when:
            at_least = max(at_least, done.pop(0)[1])
        assert seen >= at_least
