"""Which images a policy prunes, and the reasons for keeping others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from aimagestore import Image, ImageStore, PrunePolicy
from aimagestore._core.pruning import plan_prune
from aimagestore._core.record import read

NOW = datetime(2024, 5, 6, tzinfo=UTC)


def reasons(images: list[Image], policy: PrunePolicy) -> dict[str, str]:
    """Return the reason for keeping each image; ``""`` if it is pruned."""
    plan = plan_prune(images, policy, now=NOW, containers={}, instances={})
    assert len(plan.candidates) + len(plan.kept) == len(images)
    return {candidate.image.id: "" for candidate in plan.candidates} | dict(plan.kept)


@pytest.fixture
async def image(store: ImageStore) -> Image:
    """An image without names."""
    return await store.create("one", created=NOW - timedelta(days=2))


def test_an_image_of_unknown_age_is_kept_where_its_age_matters() -> None:
    record = read(b'{"id":"one"}')
    assert record is not None
    undated = record.image
    assert reasons([undated], PrunePolicy()) == {"one": ""}
    for policy in (PrunePolicy(older_than=timedelta()), PrunePolicy(keep_last=1)):
        assert reasons([undated], policy) == {"one": "its creation time is not known"}


async def test_an_image_of_exactly_the_age_is_kept(image: Image) -> None:
    kept = reasons([image], PrunePolicy(older_than=timedelta(days=2)))
    assert kept == {"one": "it is not older than 2 days"}
    assert reasons([image], PrunePolicy(older_than=timedelta(days=2, microseconds=-1))) == {
        "one": ""
    }


async def test_the_later_record_of_images_with_one_time_counts_as_newer(image: Image) -> None:
    images = [
        msgspec.structs.replace(image, id=image_id, names=(f"localhost:5000/app:{image_id}",))
        for image_id in ("three", "two", "one")  # not in the order of the IDs
    ]
    found = reasons(images, PrunePolicy(unnamed=False, keep_last=2))
    newest = "it is one of the newest of localhost:5000/app"
    assert found == {"three": "", "two": newest, "one": newest}


async def test_the_reason_has_the_name_and_the_pattern_that_keep_an_image(image: Image) -> None:
    named = msgspec.structs.replace(image, names=("localhost/A:1", "localhost/b:1"))
    found = reasons([named], PrunePolicy(unnamed=False, keep_names=["localhost/a:*", "*/b:?"]))
    assert found == {"one": "its name localhost/b:1 matches */b:?"}
