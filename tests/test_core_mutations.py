"""Tests for lookups in catalogs, drafts and snapshots, and for mutations."""

from __future__ import annotations

import pydoc
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aimagestore import (
    AmbiguousImageError,
    BigDataUnknownError,
    DuplicateIDError,
    DuplicateNameError,
    ImageUnknownError,
    InvalidDigestError,
    Snapshot,
    StoreCorruptError,
)
from aimagestore._core import mutations
from aimagestore._core.catalog import Catalog
from aimagestore._core.content import InlineContent
from aimagestore._core.draft import Draft, Plan
from aimagestore._core.events import ChangeEvent, changes_between
from aimagestore._core.mutations import Mutation
from aimagestore._core.snapshot import snapshot_of
from aimagestore._core.view import View
from aimagestore._format import block_catalog
from aimagestore._format.block_catalog import EMPTY, BlockCatalog, apply_draft

from .support.indexes import array, catalog_of, element, text_of
from .support.layouts import digest_of
from .support.strategies import digests, ids, json_values, keys, names

D1, D2, D3 = (f"sha256:{digit * 64}" for digit in "123")
CREATED = datetime(2024, 1, 1, tzinfo=UTC)


def catalog_with(*elements: bytes) -> BlockCatalog:
    """Return the catalog of an index with these elements."""
    return catalog_of(array(elements))


def apply(catalog: BlockCatalog, *made: Mutation) -> Draft:
    """Return a draft with mutations applied."""
    draft = Draft(catalog)
    for mutation in made:
        draft.apply(mutation(draft))
    return draft


def after(catalog: BlockCatalog, *made: Mutation) -> BlockCatalog:
    """Return a catalog with mutations applied."""
    return apply_draft(catalog, apply(catalog, *made))


def ids_of(view: View) -> list[str]:
    """Return all IDs, in order."""
    return [image.id for image in view]


BASE = catalog_with(
    element("abc1", names=["one", "first"], digest=D1),
    element("abc2", names=["two"], digest=D2),
    element("b", names=["abc1x", ""], digest=D1),
    element("bc", names=["b2"], metadata="m"),
)


@pytest.fixture(params=["catalog", "draft", "applied", "frozen"])
def view(request: pytest.FixtureRequest) -> View:
    """Return a view of the same images, of each kind."""
    if request.param == "catalog":
        return BASE
    base = catalog_with(element("abc1", metadata="old"), element("deleted"))
    draft = apply(
        base,
        mutations.delete("abc1"),
        mutations.create("abc1", names=["one", "first"], digest=D1, created=CREATED),
        mutations.create("abc2", names=["two"], digest=D2, created=CREATED),
        mutations.create("b", names=["abc1x", ""], digest=D1, created=CREATED),
        mutations.delete("deleted"),
        mutations.create("bc", names=["b2"], metadata="m", created=CREATED),
    )
    if request.param == "applied":
        return apply_draft(base, draft)
    return draft if request.param == "draft" else draft.freeze()


# Lookups


@pytest.mark.parametrize(
    ("ref", "image_id"),
    [
        ("abc1", "abc1"),
        ("one", "abc1"),
        ("first", "abc1"),
        ("two", "abc2"),
        ("abc1x", "b"),
        ("b", "b"),
        ("b2", "bc"),
        ("bc", "bc"),
    ],
)
def test_image_is_found_by_id_and_name(view: View, ref: str, image_id: str) -> None:
    assert view.lookup(ref) == image_id
    assert view.get(ref).id == image_id
    assert ref in view


def test_id_takes_precedence_over_name_and_name_over_prefix() -> None:
    catalog = catalog_with(element("x1"), element("x2", names=["x1", "y"]), element("y9"))
    assert catalog.lookup("x1") == "x1"
    assert catalog.lookup("y") == "x2"
    assert catalog.lookup("y9") == "y9"


def test_unambiguous_prefix_finds_its_image() -> None:
    catalog = catalog_with(element("abc1"), element("abd1"), element("b"))
    assert [catalog.lookup(ref) for ref in ("abc", "abd", "abc1")] == ["abc1", "abd1", "abc1"]


@pytest.mark.parametrize(
    ("ref", "candidates"),
    [("abc", ("abc1", "abc2")), ("ab", ("abc1", "abc2")), ("a", ("abc1", "abc2"))],
)
def test_ambiguous_prefix_names_its_sorted_candidates(
    view: View, ref: str, candidates: tuple[str, ...]
) -> None:
    with pytest.raises(AmbiguousImageError) as caught:
        view.lookup(ref)
    assert (caught.value.ref, caught.value.candidates) == (ref, candidates)
    assert ref not in view


def test_candidates_are_sorted_across_short_and_long_ids() -> None:
    found = ["c", "cb", "ca1", "caa", "c0"]
    catalog = catalog_with(*(element(image_id) for image_id in found))
    assert catalog.ids_with_prefix("c", 9999) == sorted(found)
    assert catalog.lookup("c") == "c"


@pytest.mark.parametrize("ref", ["", "abc11", "x", "abc1xx", "b2x", "ABC1", "\ud800", "../abc1"])
def test_unknown_ref_is_refused(view: View, ref: str) -> None:
    with pytest.raises(ImageUnknownError) as caught:
        view.get(ref)
    assert caught.value.ref == ref
    assert not isinstance(caught.value, AmbiguousImageError)
    assert ref not in view


def test_empty_ref_does_not_even_match_an_empty_name(view: View) -> None:
    assert view.get("b").names == ("abc1x", "")
    assert "" not in view
    assert view.ids_with_prefix("", 9) == []


@pytest.mark.parametrize("ref", [None, 1, b"abc1", ("abc1",)])
def test_ref_that_is_not_text_is_in_no_view(view: View, ref: object) -> None:
    assert ref not in view


def test_images_are_found_by_digest(view: View) -> None:
    assert sorted(image.id for image in view.by_digest(D1)) == ["abc1", "b"]
    assert [image.id for image in view.by_digest(D2)] == ["abc2"]


def test_unknown_digest_is_refused(view: View) -> None:
    with pytest.raises(ImageUnknownError) as caught:
        view.by_digest(D3)
    assert caught.value.ref == D3


@pytest.mark.parametrize("digest", ["", "abc1", D1.upper(), D1[:-1]])
def test_malformed_digest_is_refused(view: View, digest: str) -> None:
    with pytest.raises(InvalidDigestError):
        view.by_digest(digest)


def test_images_are_found_by_every_manifests_digest() -> None:
    items = {"manifest": D1, "manifest-2": D2, "config": D3}
    catalog = catalog_with(element("a", big_data_names=list(items), big_data_digests=items))
    assert [image.id for image in catalog.by_digest(D2)] == ["a"]
    with pytest.raises(ImageUnknownError):
        catalog.by_digest(D3)


def test_views_iterate_in_the_order_of_the_index(view: View) -> None:
    assert ids_of(view) == ["abc1", "abc2", "b", "bc"]


def test_catalog_has_a_length_and_decodes_its_images_once() -> None:
    assert len(BASE) == 4
    assert catalog_with(element("a"))._images is None
    assert BASE.images is BASE.images


# Refs with digests

LISTED = catalog_with(
    element("a1", names=["quay.io:5000/x/y:1", "n"], digest=D1),
    element("a2", names=["quay.io:5000/x/z:1"], digest=D1),
    element("b1", names=["quay.io:5000/x/y:2"], digest=D2),
    element("c1", names=[f"quay.io/w@{D3}"], digest=D3),
    element("d1", names=["two:1"], digest=D3),
    element("d2", names=["two:2"], digest=D3),
    element("sha256:e", names=["sha256:a1x", "", ":1"], digest=D2),
)


@pytest.fixture(params=["catalog", "draft"])
def listed(request: pytest.FixtureRequest) -> View:
    """Return a view of the images above, of each kind."""
    if request.param == "catalog":
        return LISTED
    draft = Draft(EMPTY)
    for image in LISTED:
        digest = image.digest or None
        made = mutations.create(image.id, names=image.names, digest=digest, created=CREATED)
        draft.apply(made(draft))
    return draft


@pytest.mark.parametrize(
    ("ref", "image_id"),
    [
        ("sha256:a1", "a1"),
        ("sha256:a2", "a2"),
        # An ID, a name and a prefix come first.
        ("sha256:e", "sha256:e"),
        ("sha256:a1x", "sha256:e"),
        ("sha256:", "sha256:e"),
        (f"quay.io:5000/x/y@{D1}", "a1"),
        (f"quay.io:5000/x/y:1@{D1}", "a1"),
        (f"quay.io:5000/x/y:other@{D1}", "a1"),
        (f"quay.io:5000/x/z@{D1}", "a2"),
        (f"quay.io:5000/x/y@{D2}", "b1"),
        (f"n@{D1}", "a1"),
        (f"quay.io/w@{D3}", "c1"),
        (f"quay.io/w:tag@{D3}", "c1"),
    ],
)
def test_image_is_found_by_id_or_repository_with_digest(
    listed: View, ref: str, image_id: str
) -> None:
    assert listed.lookup(ref) == image_id
    assert ref in listed


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "sha256:a",
        "sha256:x",
        "sha512:a1",
        f"x/y@{D1}",
        f"quay.io@{D1}",
        f"quay.io:5000/x/y@{D3}",
        f"@{D1}",
        f"@{D2}",
        f":1@{D2}",
        f"n@{D1[:-1]}",
        f"quay.io:5000/x/y@{D1.upper()}",
        D1,
    ],
)
def test_ref_with_another_id_repository_or_digest_is_unknown(listed: View, ref: str) -> None:
    with pytest.raises(ImageUnknownError) as caught:
        listed.find(ref)
    assert caught.value.ref == ref
    assert ref not in listed


def test_repository_with_a_digest_of_several_images_is_ambiguous(listed: View) -> None:
    with pytest.raises(AmbiguousImageError, match="2 images") as caught:
        listed.find(f"two@{D3}")
    assert caught.value.candidates == ("d1", "d2")


def test_empty_id_after_sha256_is_unknown() -> None:
    assert "sha256:" not in BASE


# The public snapshot


def test_snapshot_looks_up_what_its_catalog_has() -> None:
    snapshot = snapshot_of(BASE)
    assert snapshot.get("one") == BASE.get("one")
    assert snapshot.lookup("two") == "abc2"
    assert snapshot.by_digest(D1) == BASE.by_digest(D1)
    assert ("one" in snapshot, "x" in snapshot, None in snapshot) == (True, False, False)
    assert (len(snapshot), list(snapshot)) == (4, list(BASE))
    with pytest.raises(ImageUnknownError):
        snapshot.get("x")
    assert repr(snapshot) == "<Snapshot of 4 images>"
    assert repr(snapshot_of(catalog_with(element("a")))) == "<Snapshot of 1 image>"


def test_help_for_snapshots_shows_their_public_names_only() -> None:
    public = {"get", "lookup", "by_digest"}
    assert {name for name in dir(Snapshot) if not name.startswith("_")} == public
    shown = pydoc.plain(pydoc.render_doc(Snapshot))
    methods = set(re.findall(r"^ \|  (\w+)\(", shown, re.MULTILINE))
    assert methods == public | {"__contains__", "__iter__", "__len__", "__repr__"}
    assert "atalog" not in shown


def test_snapshot_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        snapshot_of(BASE).names = ()  # type: ignore[attr-defined]


# Events


def test_events_come_deletions_first_then_in_the_order_of_the_index() -> None:
    made = (
        mutations.set_metadata("bc", "new"),
        mutations.create("new", created=CREATED),
        mutations.delete("abc2"),
        mutations.set_metadata("abc1", "new"),
    )
    later = after(BASE, *made)
    expected = [("deleted", "abc2"), ("changed", "abc1"), ("changed", "bc"), ("created", "new")]
    for before in (BASE, Catalog.of(BASE.records())):
        for now in (later, Catalog.of(later.records())):
            events = changes_between(before, now)
            assert [(event.kind, event.id) for event in events] == expected
    assert events[0] == ChangeEvent("deleted", "abc2")
    assert events[1].image == later.get("abc1")


# Drafts


def test_draft_without_mutations_gives_its_base() -> None:
    assert apply_draft(BASE, Draft(BASE)) is BASE


def test_mutation_that_changes_nothing_gives_the_base() -> None:
    base = after(EMPTY, mutations.create("a", metadata="m", names=["n"], created=CREATED))
    again = (mutations.set_metadata("a", "m"), mutations.clear_flag("n", "f"))
    assert after(base, *again, mutations.remove_names("a", ["x"])).get("a").names == ("n",)
    assert after(base, *again) is base


def test_draft_does_not_change_its_base() -> None:
    before = text_of(BASE)
    after(BASE, mutations.wipe(), mutations.create("new", created=CREATED))
    assert text_of(BASE) == before
    assert ids_of(BASE) == ["abc1", "abc2", "b", "bc"]
    assert BASE.lookup("one") == "abc1"
    assert len(BASE.by_digest(D1)) == 2


def test_mutation_keeps_the_text_of_other_records_and_the_order() -> None:
    catalog = catalog_with(b'{ "id":"a" }', element("b"), b'{"x":1e30,"id":"c"}')
    changed = after(catalog, mutations.set_metadata("b", "new"))
    middle = b'{"id":"b","metadata":"new","created":"0001-01-01T00:00:00Z"}'
    assert text_of(changed) == b'[{ "id":"a" },%b,{"x":1e30,"id":"c"}]' % middle


def test_new_images_come_last() -> None:
    assert ids_of(after(BASE, mutations.create("0", created=CREATED))) == [*ids_of(BASE), "0"]


def test_recreated_image_comes_last_and_keeps_nothing() -> None:
    draft = apply(BASE, mutations.delete("abc1"), mutations.create("abc1", created=CREATED))
    assert list(draft.deleted) == ["abc1"]
    assert list(draft.created) == []
    for view in (draft, draft.freeze(), apply_draft(BASE, draft)):
        assert ids_of(view) == ["abc2", "b", "bc", "abc1"]
        assert view.get("abc1").names == ()
        assert "one" not in view


def test_image_created_and_deleted_leaves_nothing() -> None:
    draft = apply(
        BASE, mutations.create("new", names=["n"], created=CREATED), mutations.delete("n")
    )
    assert "new" not in draft
    assert list(draft.created) == []
    assert apply_draft(BASE, draft) is BASE


def test_draft_lists_created_and_deleted_images() -> None:
    draft = apply(BASE, mutations.delete("b"), mutations.create("new", created=CREATED))
    assert (list(draft.created), list(draft.deleted)) == (["new"], ["b"])


def test_deleting_an_image_drops_its_pending_files() -> None:
    content = InlineContent.of(b"data")
    draft = apply(BASE, mutations.set_big_data("b", "k", content))
    assert draft.files == {("b", "k"): content}
    draft.apply(mutations.delete("b")(draft))
    assert draft.files == {}


def test_plan_has_the_image_that_it_returns() -> None:
    draft = Draft(BASE)
    plan = mutations.set_metadata("one", "new")(draft)
    assert plan.image is not None
    assert (plan.image.id, plan.image.metadata) == ("abc1", "new")
    assert mutations.delete("one")(draft).image is None
    assert draft.get("abc1").metadata == ""


def test_large_index_grows_by_blocks() -> None:
    with patch.object(block_catalog, "BLOCK_BYTES", 300):
        catalog = EMPTY
        for number in range(20):
            made = [mutations.create(f"{number}-{i}", created=CREATED) for i in range(3)]
            catalog = after(catalog, *made)
    assert len(catalog.blocks) > 5
    assert max(len(block.text) for block in catalog.blocks.values()) < 600
    assert len(catalog) == 60


def test_empty_block_is_left_out() -> None:
    emptied = after(BASE, mutations.wipe())
    assert (len(emptied), emptied.blocks, text_of(emptied)) == (0, {}, b"[]")
    assert emptied.ids_with_prefix("a", 9) == []


def test_damaged_elements_stay_through_mutations_and_wipe() -> None:
    catalog = catalog_with(b'{"id":5}', element("a"), b"null")
    changed = after(catalog, mutations.set_metadata("a", "x"))
    assert text_of(changed).endswith(b'},{"id":5},null]')
    assert text_of(after(changed, mutations.wipe())) == b'[{"id":5},null]'


# Refused mutations


@pytest.mark.parametrize(
    "change",
    [
        mutations.set_names("x", ["a"]),
        mutations.add_names("x", ["a"]),
        mutations.remove_names("x", ["a"]),
        mutations.set_metadata("x", "m"),
        mutations.set_flag("x", "f", 1),
        mutations.clear_flag("x", "f"),
        mutations.set_big_data("x", "k", InlineContent.of(b"")),
        mutations.delete("x"),
    ],
)
def test_mutation_of_an_unknown_image_is_refused(change: Mutation) -> None:
    with pytest.raises(ImageUnknownError) as caught:
        change(Draft(BASE))
    assert caught.value.ref == "x"


def test_mutation_of_an_ambiguous_image_is_refused() -> None:
    with pytest.raises(AmbiguousImageError):
        mutations.delete("abc")(Draft(BASE))


def test_creating_a_present_id_is_refused() -> None:
    with pytest.raises(DuplicateIDError) as caught:
        mutations.create("b")(Draft(BASE))
    assert caught.value.id == "b"


def test_creating_with_a_name_of_another_image_is_refused() -> None:
    with pytest.raises(DuplicateNameError) as caught:
        mutations.create("new", names=["free", "two"])(Draft(BASE))
    assert (caught.value.name, caught.value.id) == ("two", "abc2")


DAMAGED = catalog_with(b'{"id":"x","Names":["n"]}', b'{"metadata":"y","id":5}', element("a"))


def creations(image_id: str) -> list[Mutation]:
    """Return all mutations that create an image."""
    record = catalog_with(element(image_id)).find(image_id)
    return [
        mutations.create(image_id),
        mutations.adopt(image_id, {}, (), CREATED),
        mutations.replace(record, {}),
    ]


def test_creating_the_id_of_a_damaged_record_is_refused() -> None:
    assert DAMAGED.is_damaged("x")
    for creation in creations("x"):
        with pytest.raises(StoreCorruptError, match=r"damaged record.*check.*repair") as caught:
            creation(Draft(DAMAGED))
        assert caught.value.id == "x"


def test_other_ids_may_be_created_beside_damaged_records() -> None:
    for image_id in ("n", "y", "xx", "id"):
        for creation in creations(image_id):
            assert image_id in after(DAMAGED, creation)


def test_id_of_a_damaged_record_may_be_created_once_that_is_dropped() -> None:
    catalog = after(DAMAGED, mutations.drop_damaged(), mutations.create("x"))
    assert (ids_of(catalog), catalog.damaged) == (["a", "x"], ())


def test_views_without_damaged_records_have_none() -> None:
    assert not Catalog.of(BASE.records()).is_damaged("x")


def test_name_may_be_another_images_id() -> None:
    catalog = after(BASE, mutations.create("new", names=["bc"], created=CREATED))
    assert catalog.lookup("bc") == "bc"
    assert after(catalog, mutations.delete("bc")).lookup("bc") == "new"


def test_recording_an_unlisted_item_is_refused() -> None:
    with pytest.raises(BigDataUnknownError) as caught:
        mutations.note_big_data("b", "k", InlineContent.of(b""))(Draft(BASE))
    assert (caught.value.id, caught.value.key) == ("b", "k")


def test_id_and_creation_time_have_defaults() -> None:
    made = mutations.create()(Draft(EMPTY)).image
    assert made is not None
    assert re.fullmatch("[0-9a-f]{64}", made.id)
    assert made.created is not None
    assert abs((made.created - datetime.now(UTC)).total_seconds()) < 60


# Names


def test_name_moves_from_the_image_that_had_it() -> None:
    catalog = after(BASE, mutations.add_names("bc", ["one", "two", "new"]))
    assert catalog.get("bc").names == ("one", "two", "new", "b2")
    assert catalog.get("abc1").names == ("first",)
    assert catalog.get("abc2").names == ()
    assert catalog.lookup("one") == "bc"


def test_set_names_replaces_and_moves() -> None:
    catalog = after(BASE, mutations.set_names("abc1", ["two", "one", "two"]))
    assert catalog.get("abc1").names == ("two", "one")
    assert catalog.get("abc2").names == ()
    assert "first" not in catalog


def test_remove_names_removes_only_names_of_the_image() -> None:
    catalog = after(BASE, mutations.remove_names("abc1", ["first", "two", "nobody's"]))
    assert catalog.get("abc1").names == ("one",)
    assert catalog.get("abc2").names == ("two",)


def test_added_names_come_first_without_repeats() -> None:
    catalog = after(BASE, mutations.add_names("abc1", ["x", "first"]))
    assert catalog.get("abc1").names == ("x", "first", "one")


def test_create_records_no_names_history() -> None:
    catalog = after(EMPTY, mutations.create("a", names=["b", "c"], created=CREATED))
    assert catalog.get("a").names_history == ()


@pytest.mark.parametrize(
    ("history", "change", "expected"),
    [
        ([], mutations.set_names("a", ["b", "c"]), ("c", "b")),
        ([], mutations.add_names("a", ["x", "y"]), ("n", "y", "x")),
        (["old", "n"], mutations.set_names("a", ["b", "n"]), ("n", "b", "old")),
        (["old", "n"], mutations.remove_names("a", ["n"]), ("old", "n")),
        (["old"], mutations.remove_names("a", ["x"]), ("n", "old")),
    ],
)
def test_names_move_to_the_front_of_the_history_in_turn(
    history: list[str], change: Mutation, expected: tuple[str, ...]
) -> None:
    catalog = after(catalog_with(element("a", names=["n"], names_history=history)), change)
    assert catalog.get("a").names_history == expected


def test_image_that_loses_a_name_keeps_its_history() -> None:
    catalog = catalog_with(element("a", names=["n"], names_history=["n", "o"]), element("b"))
    assert after(catalog, mutations.set_names("b", ["n"])).get("a").names_history == ("n", "o")


# Two records with one ID or name

TWINS = (
    element("a", metadata="early", names=["lost"], digest=D1),
    element("b", metadata="other"),
    element("a", metadata="late", names=["n"], digest=D2),
    element("c"),
)


def test_later_of_two_records_with_one_id_counts() -> None:
    catalog = catalog_with(*TWINS)
    assert catalog.get("a").metadata == "late"
    assert ids_of(catalog) == ["b", "a", "c"]
    assert len(catalog) == 3
    assert "lost" not in catalog
    with pytest.raises(ImageUnknownError):
        catalog.by_digest(D1)
    assert [image.id for image in catalog.by_digest(D2)] == ["a"]
    assert catalog.ids_with_prefix("a", 9) == ["a"]
    assert not catalog.needs_save


def test_shadowed_record_stays_in_place_byte_for_byte() -> None:
    catalog = catalog_with(*TWINS)
    assert text_of(catalog) == b"[%b]" % b",".join(TWINS)
    changed = after(catalog, mutations.set_metadata("a", "latest"))
    assert text_of(changed).startswith(b"[%b,%b," % TWINS[:2])
    assert [bytes(record.raw) for record in changed.shadowed["a"]] == [TWINS[0]]
    assert changed.get("a").metadata == "latest"


@pytest.mark.parametrize("change", [mutations.delete("a"), mutations.delete("n")])
def test_shadowed_record_is_deleted_with_the_one_that_counts(change: Mutation) -> None:
    catalog = after(catalog_with(*TWINS), change)
    assert text_of(catalog) == b"[%b,%b]" % (TWINS[1], TWINS[3])
    assert catalog.shadowed == {}
    assert "a" not in catalog


def test_shadowed_records_are_wiped() -> None:
    assert text_of(after(catalog_with(TWINS[0], *TWINS), mutations.wipe())) == b"[]"


def test_shadowed_record_is_removed_when_its_image_is_recreated() -> None:
    made = (mutations.delete("a"), mutations.create("a", metadata="new", created=CREATED))
    catalog = after(catalog_with(*TWINS), *made)
    assert ids_of(catalog) == ["b", "c", "a"]
    assert catalog.shadowed == {}
    assert text_of(catalog).count(b'"id":"a"') == 1


def test_last_of_three_records_with_one_id_counts() -> None:
    catalog = catalog_with(*(element("a", metadata=f"{n}") for n in range(3)))
    assert catalog.get("a").metadata == "2"
    assert len(catalog.shadowed["a"]) == 2
    assert text_of(after(catalog, mutations.delete("a"))) == b"[]"


def test_later_of_two_records_keeps_the_name() -> None:
    catalog = catalog_with(
        element("a", names=["n", "mine"]), element("b", names=["n"]), element("c", names=["n"])
    )
    assert catalog.lookup("n") == "c"
    assert [image.names for image in catalog] == [("mine",), (), ("n",)]
    assert catalog.needs_save


def test_resolved_name_conflict_is_saved_with_the_next_commit() -> None:
    catalog = catalog_with(element("a", names=["n"]), element("b", names=["n"]))
    saved = apply_draft(catalog, Draft(catalog))
    assert saved is not catalog
    assert not saved.needs_save
    again = catalog_of(text_of(saved))
    assert not again.needs_save
    assert again.lookup("n") == "b"


def test_name_listed_twice_in_one_record_is_no_conflict() -> None:
    catalog = catalog_with(element("a", names=["n", "n"]))
    assert not catalog.needs_save
    assert catalog.lookup("n") == "a"


def test_later_record_of_the_same_image_keeps_its_names() -> None:
    catalog = catalog_with(element("a", names=["n"]), element("b"), element("a", names=["n"]))
    assert catalog.get("n").id == "a"
    assert not catalog.needs_save


def test_shadowed_record_takes_no_names() -> None:
    catalog = catalog_with(element("b", names=["n"]), element("a", names=["n"]), element("a"))
    assert catalog.lookup("n") == "b"


# The same mutations applied to a draft and to a model


@dataclass
class Model:
    """The model of an image."""

    names: list[str] = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    metadata: str = ""
    digest: str = ""
    flags: dict[str, Any] = field(default_factory=dict)
    items: dict[str, str] = field(default_factory=dict)

    @property
    def digests(self) -> list[str]:
        manifests = [d for key, d in self.items.items() if key.startswith("manifest")]
        return list(dict.fromkeys([self.digest, *manifests] if self.digest else manifests))

    def fix_digest(self) -> None:
        """Make the first manifest's digest the image's own."""
        self.digest = self.digest or next(iter(self.digests), "")


class Mutations(RuleBasedStateMachine):
    """Random mutations: drafts, catalogs and the text read back must agree with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, Model] = {}
        self.base = EMPTY
        self.draft = Draft(EMPTY)
        self.blocks = patch.object(block_catalog, "BLOCK_BYTES", 200)
        self.blocks.start()

    def teardown(self) -> None:
        self.blocks.stop()

    def find(self, ref: str) -> str | None:
        """Return the ID of the image that the ref stands for."""
        if ref in self.model:
            return ref
        owners = [i for i, image in self.model.items() if ref in image.names]
        found = owners or [i for i in self.model if ref and i.startswith(ref)]
        return found[0] if len(found) == 1 else None

    def change(self, ref: str, change: Mutation) -> Model | None:
        """Apply a mutation, which must fail if the model has no such image."""
        image_id = self.find(ref)
        if image_id is None:
            with pytest.raises(ImageUnknownError):
                change(self.draft)
            return None
        self.apply(change)
        return self.model[image_id]

    def apply(self, mutation: Mutation) -> Plan:
        plan = mutation(self.draft)
        self.draft.apply(plan)
        return plan

    @rule(
        image_id=ids,
        given=st.lists(names, max_size=2, unique=True),
        digest=st.none() | digests,
        items=st.lists(keys, max_size=2, unique=True),
    )
    def create(self, image_id: str, given: list[str], digest: str | None, items: list[str]) -> None:
        contents = {key: InlineContent.of(key.encode()) for key in items}
        created = mutations.create(image_id, names=given, digest=digest, created=CREATED)
        change = created.with_items(contents)
        taken = {name for image in self.model.values() for name in image.names}
        if image_id in self.model:
            with pytest.raises(DuplicateIDError):
                change(self.draft)
        elif taken.intersection(given):
            with pytest.raises(DuplicateNameError):
                change(self.draft)
        else:
            self.apply(change)
            found = {key: content.digest for key, content in contents.items()}
            self.model[image_id] = Model(given.copy(), digest=digest or "", items=found)
            self.model[image_id].fix_digest()

    @rule(ref=ids | names)
    def delete(self, ref: str) -> None:
        image_id = self.find(ref)
        if self.change(ref, mutations.delete(ref)) and image_id:
            del self.model[image_id]

    @precondition(lambda self: len(self.model) > 5)
    @rule()
    def wipe(self) -> None:
        self.apply(mutations.wipe())
        self.model.clear()

    @rule(ref=ids | names, given=st.lists(names, max_size=3))
    def set_names(self, ref: str, given: list[str]) -> None:
        self.rename(self.change(ref, mutations.set_names(ref, given)), given)

    @rule(ref=ids | names, given=st.lists(names, max_size=2))
    def add_names(self, ref: str, given: list[str]) -> None:
        found = self.find(ref)
        present = self.model[found].names if found else []
        self.rename(self.change(ref, mutations.add_names(ref, given)), [*given, *present])

    @rule(ref=ids | names, given=st.lists(names, max_size=2))
    def remove_names(self, ref: str, given: list[str]) -> None:
        found = self.find(ref)
        left = [n for n in self.model[found].names if n not in given] if found else []
        self.rename(self.change(ref, mutations.remove_names(ref, given)), left)

    def rename(self, image: Model | None, given: Sequence[str]) -> None:
        """Give an image of the model these names, and take them from the others."""
        if image is None:
            return
        for other in self.model.values():
            other.names = [name for name in other.names if name not in given]
        image.names = list(dict.fromkeys(given))
        for name in image.names:
            image.history = [name, *(old for old in image.history if old != name)]

    @rule(ref=ids | names, metadata=st.sampled_from(["", "m", "<&>", "x" * 100]))
    def set_metadata(self, ref: str, metadata: str) -> None:
        if image := self.change(ref, mutations.set_metadata(ref, metadata)):
            image.metadata = metadata

    @rule(ref=ids | names, flag=st.sampled_from(["f", "g"]), value=json_values)
    def set_flag(self, ref: str, flag: str, value: Any) -> None:
        if image := self.change(ref, mutations.set_flag(ref, flag, value)):
            image.flags[flag] = value

    @rule(ref=ids | names, flag=st.sampled_from(["f", "g"]))
    def clear_flag(self, ref: str, flag: str) -> None:
        if image := self.change(ref, mutations.clear_flag(ref, flag)):
            image.flags.pop(flag, None)

    @rule(ref=ids | names, key=keys, data=st.sampled_from([b"", b"one", b"two"]))
    def set_big_data(self, ref: str, key: str, data: bytes) -> None:
        if image := self.change(ref, mutations.set_big_data(ref, key, InlineContent.of(data))):
            image.items[key] = digest_of(data)
            image.fix_digest()

    @rule()
    def commit(self) -> None:
        before, self.base = self.base, apply_draft(self.base, self.draft)
        self.draft = Draft(self.base)
        events = changes_between(before, self.base)
        assert events == changes_between(Catalog.of(before.records()), self.base)
        assert {e.id for e in events if e.kind != "deleted"} <= self.model.keys()

    @rule()
    def reload(self) -> None:
        catalog = apply_draft(self.base, self.draft)
        self.base = catalog_of(text_of(catalog), catalog)
        self.draft = Draft(self.base)

    def views(self) -> Iterator[View]:
        """Return the draft, catalogs of it, and the catalog of its text read back."""
        frozen = self.draft.freeze()
        applied = apply_draft(self.base, self.draft)
        again = catalog_of(text_of(applied))
        assert not again.needs_save
        assert len(frozen) == len(applied) == len(again) == len(self.model)
        yield from (self.draft, frozen, applied, again)

    @invariant()
    def agrees(self) -> None:
        images = {i: (m.names, m.history, m.metadata) for i, m in self.model.items()}
        described = {i: (m.digest, m.digests, m.items, m.flags) for i, m in self.model.items()}
        found = {d: {i for i, m in self.model.items() if d in m.digests} for d in self.digests()}
        for view in self.views():
            now = list(view)
            assert [image.id for image in now] == list(self.model)
            assert images == {i.id: (list(i.names), list(i.names_history), i.metadata) for i in now}
            assert described == {
                i.id: (i.digest, list(i.digests), dict(i.big_data_digests), dict(i.flags))
                for i in now
            }
            assert {d: set(view.ids_with_digest(d)) for d in found} == found
            self.finds_the_same(view)

    def digests(self) -> set[str]:
        """Return digests that images have or may have had."""
        known = {f"sha256:{digit * 64}" for digit in "abc"}
        return known.union(*(image.digests for image in self.model.values()))

    def finds_the_same(self, view: View) -> None:
        for ref in ("", "a", "b", "c", "ab", "ca", "abc", "red", "green", "blue", *self.model):
            expected = self.find(ref)
            assert (ref in view) == (expected is not None)
            if expected is not None:
                assert view.lookup(ref) == expected
            prefixed = sorted(i for i in self.model if ref and i.startswith(ref))
            for limit in (1, 2, len(prefixed) + 1):
                assert list(view.ids_with_prefix(ref, limit)) == prefixed[:limit]


TestMutations = Mutations.TestCase
TestMutations.settings = settings(max_examples=60, stateful_step_count=30)
