"""Snapshots, drafts of the next one, and the changes that make it."""

from __future__ import annotations

import hashlib
import io
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
)
from aimagestore._core import changes, draft as draft_module
from aimagestore._core.changes import Mutation
from aimagestore._core.draft import Draft, Edit
from aimagestore._core.index import Text, compose, parse
from aimagestore._core.snapshot import EMPTY, Snapshot, View, build
from aimagestore._core.transaction import InlineContent

from .strategies import compact, digests, ids, json_values, keys, names

D1, D2, D3 = (f"sha256:{digit * 64}" for digit in "123")
CREATED = datetime(2024, 1, 1, tzinfo=UTC)


def element(image_id: str, **fields: Any) -> bytes:
    """An image's element."""
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    return compact({"id": image_id} | named)


def snapshot_of(*elements: bytes) -> Snapshot:
    """An index of these elements."""
    parsed = parse(Text(io.BytesIO(b"[%b]" % b",".join(elements)).readinto, 1000), EMPTY)
    assert parsed is not None
    return build(*parsed)


def text_of(snapshot: Snapshot) -> bytes:
    """What would be written."""
    return b"".join(compose(snapshot))


def apply(snapshot: Snapshot, *made: Mutation) -> Draft:
    """A draft with these changes."""
    draft = Draft(snapshot)
    for change in made:
        draft.apply(change(draft))
    return draft


def after(snapshot: Snapshot, *made: Mutation) -> Snapshot:
    """The snapshot that these changes make."""
    return apply(snapshot, *made).freeze()


def ids_of(view: View) -> list[str]:
    """All IDs, in order."""
    return [image.id for image in view]


BASE = snapshot_of(
    element("abc1", names=["one", "first"], digest=D1),
    element("abc2", names=["two"], digest=D2),
    element("b", names=["abc1x", ""], digest=D1),
    element("bc", names=["b2"], metadata="m"),
)


@pytest.fixture(params=["snapshot", "draft", "frozen"])
def view(request: pytest.FixtureRequest) -> View:
    """The same images, seen from each side."""
    if request.param == "snapshot":
        return BASE
    draft = apply(snapshot_of(element("abc1", metadata="old"), element("gone")))
    for change in (
        changes.delete("abc1"),
        changes.create("abc1", names=["one", "first"], digest=D1, created=CREATED),
        changes.create("abc2", names=["two"], digest=D2, created=CREATED),
        changes.create("b", names=["abc1x", ""], digest=D1, created=CREATED),
        changes.delete("gone"),
        changes.create("bc", names=["b2"], metadata="m", created=CREATED),
    ):
        draft.apply(change(draft))
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


def test_id_goes_before_name_and_name_before_prefix() -> None:
    snapshot = snapshot_of(element("x1"), element("x2", names=["x1", "y"]), element("y9"))
    assert snapshot.lookup("x1") == "x1"
    assert snapshot.lookup("y") == "x2"
    assert snapshot.lookup("y9") == "y9"


def test_unambiguous_prefix_finds_its_image() -> None:
    snapshot = snapshot_of(element("abc1"), element("abd1"), element("b"))
    assert [snapshot.lookup(ref) for ref in ("abc", "abd", "abc1")] == ["abc1", "abd1", "abc1"]


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
    snapshot = snapshot_of(*(element(image_id) for image_id in found))
    assert snapshot.ids_with_prefix("c") == sorted(found)
    assert snapshot.lookup("c") == "c"


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
    assert view.ids_with_prefix("") == []


@pytest.mark.parametrize("ref", [None, 1, b"abc1", ("abc1",)])
def test_what_is_no_text_is_in_no_view(view: View, ref: object) -> None:
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
    snapshot = snapshot_of(element("a", big_data_names=list(items), big_data_digests=items))
    assert [image.id for image in snapshot.by_digest(D2)] == ["a"]
    with pytest.raises(ImageUnknownError):
        snapshot.by_digest(D3)


def test_views_are_iterated_in_the_order_of_the_index(view: View) -> None:
    assert ids_of(view) == ["abc1", "abc2", "b", "bc"]


def test_snapshot_has_a_length_and_keeps_its_images() -> None:
    assert len(BASE) == 4
    assert not snapshot_of(element("a")).are_images_decoded
    assert BASE.images is BASE.images
    assert BASE.are_images_decoded


# Drafts


def test_draft_without_changes_freezes_to_its_base() -> None:
    assert Draft(BASE).freeze() is BASE


def test_change_that_changes_nothing_freezes_to_the_base() -> None:
    base = after(EMPTY, changes.create("a", metadata="m", names=["n"], created=CREATED))
    again = (changes.set_metadata("a", "m"), changes.clear_flag("n", "f"))
    assert after(base, *again, changes.remove_names("a", ["x"])).get("a").names == ("n",)
    assert after(base, *again) is base


def test_draft_leaves_its_base_as_it_was() -> None:
    before = text_of(BASE)
    after(BASE, changes.wipe(), changes.create("new", created=CREATED))
    assert text_of(BASE) == before
    assert ids_of(BASE) == ["abc1", "abc2", "b", "bc"]
    assert BASE.lookup("one") == "abc1"
    assert len(BASE.by_digest(D1)) == 2


def test_change_leaves_the_text_of_other_records_and_the_order() -> None:
    snapshot = snapshot_of(b'{ "id":"a" }', element("b"), b'{"x":1e30,"id":"c"}')
    changed = after(snapshot, changes.set_metadata("b", "new"))
    middle = b'{"id":"b","metadata":"new","created":"0001-01-01T00:00:00Z"}'
    assert text_of(changed) == b'[{ "id":"a" },%b,{"x":1e30,"id":"c"}]' % middle


def test_new_images_come_last() -> None:
    assert ids_of(after(BASE, changes.create("0", created=CREATED))) == [*ids_of(BASE), "0"]


def test_image_made_anew_comes_last_without_what_it_had() -> None:
    draft = apply(BASE, changes.delete("abc1"), changes.create("abc1", created=CREATED))
    assert list(draft.deleted) == ["abc1"]
    assert list(draft.created) == []
    for view in (draft, draft.freeze()):
        assert ids_of(view) == ["abc2", "b", "bc", "abc1"]
        assert view.get("abc1").names == ()
        assert "one" not in view


def test_image_created_and_deleted_leaves_nothing() -> None:
    draft = apply(BASE, changes.create("new", names=["n"], created=CREATED), changes.delete("n"))
    assert "new" not in draft
    assert list(draft.created) == []
    assert draft.freeze() is BASE


def test_draft_tells_which_images_are_new_and_gone() -> None:
    draft = apply(BASE, changes.delete("b"), changes.create("new", created=CREATED))
    assert (list(draft.created), list(draft.deleted)) == (["new"], ["b"])


def test_deleted_image_takes_its_waiting_files_along() -> None:
    content = InlineContent.of(b"data")
    draft = apply(BASE, changes.set_big_data("b", "k", content))
    assert draft.files == {("b", "k"): content}
    draft.apply(changes.delete("b")(draft))
    assert draft.files == {}


def test_edit_gives_the_image_that_it_returns() -> None:
    draft = Draft(BASE)
    edit = changes.set_metadata("one", "new")(draft)
    assert edit.image is not None
    assert (edit.image.id, edit.image.metadata) == ("abc1", "new")
    assert changes.delete("one")(draft).image is None
    assert draft.get("abc1").metadata == ""


def test_large_index_grows_by_blocks() -> None:
    with patch.object(draft_module, "BLOCK_BYTES", 300):
        snapshot = EMPTY
        for number in range(20):
            made = [changes.create(f"{number}-{i}", created=CREATED) for i in range(3)]
            snapshot = after(snapshot, *made)
    assert len(snapshot.blocks) > 5
    assert max(len(block.text) for block in snapshot.blocks.values()) < 600
    assert len(snapshot) == 60


def test_empty_block_is_left_out() -> None:
    emptied = after(BASE, changes.wipe())
    assert (len(emptied), emptied.blocks, text_of(emptied)) == (0, {}, b"[]")
    assert emptied.ids_with_prefix("a") == []


def test_damage_stays_through_changes_and_wipe() -> None:
    snapshot = snapshot_of(b'{"id":5}', element("a"), b"null")
    changed = after(snapshot, changes.set_metadata("a", "x"))
    assert text_of(changed).endswith(b'},{"id":5},null]')
    assert text_of(after(changed, changes.wipe())) == b'[{"id":5},null]'


# What changes refuse


@pytest.mark.parametrize(
    "change",
    [
        changes.set_names("x", ["a"]),
        changes.add_names("x", ["a"]),
        changes.remove_names("x", ["a"]),
        changes.set_metadata("x", "m"),
        changes.set_flag("x", "f", 1),
        changes.clear_flag("x", "f"),
        changes.set_big_data("x", "k", InlineContent.of(b"")),
        changes.delete("x"),
    ],
)
def test_change_of_an_unknown_image_is_refused(change: Mutation) -> None:
    with pytest.raises(ImageUnknownError) as caught:
        change(Draft(BASE))
    assert caught.value.ref == "x"


def test_change_of_an_ambiguous_image_is_refused() -> None:
    with pytest.raises(AmbiguousImageError):
        changes.delete("abc")(Draft(BASE))


def test_creating_an_id_that_is_there_is_refused() -> None:
    with pytest.raises(DuplicateIDError) as caught:
        changes.create("b")(Draft(BASE))
    assert caught.value.id == "b"


def test_creating_with_a_name_that_is_there_is_refused() -> None:
    with pytest.raises(DuplicateNameError) as caught:
        changes.create("new", names=["free", "two"])(Draft(BASE))
    assert (caught.value.name, caught.value.id) == ("two", "abc2")


def test_name_may_be_another_images_id() -> None:
    snapshot = after(BASE, changes.create("new", names=["bc"], created=CREATED))
    assert snapshot.lookup("bc") == "bc"
    assert after(snapshot, changes.delete("bc")).lookup("bc") == "new"


def test_noting_an_item_that_is_not_listed_is_refused() -> None:
    with pytest.raises(BigDataUnknownError) as caught:
        changes.note_big_data("b", "k", InlineContent.of(b""))(Draft(BASE))
    assert (caught.value.id, caught.value.key) == ("b", "k")


def test_id_and_time_are_given_where_none_are() -> None:
    made = changes.create()(Draft(EMPTY)).image
    assert made is not None
    assert re.fullmatch("[0-9a-f]{64}", made.id)
    assert made.created is not None
    assert abs((made.created - datetime.now(UTC)).total_seconds()) < 60


# Names


def test_name_moves_from_the_image_that_had_it() -> None:
    snapshot = after(BASE, changes.add_names("bc", ["one", "two", "new"]))
    assert snapshot.get("bc").names == ("one", "two", "new", "b2")
    assert snapshot.get("abc1").names == ("first",)
    assert snapshot.get("abc2").names == ()
    assert snapshot.lookup("one") == "bc"


def test_set_names_replaces_and_moves() -> None:
    snapshot = after(BASE, changes.set_names("abc1", ["two", "one", "two"]))
    assert snapshot.get("abc1").names == ("two", "one")
    assert snapshot.get("abc2").names == ()
    assert "first" not in snapshot


def test_remove_names_takes_only_names_that_the_image_has() -> None:
    snapshot = after(BASE, changes.remove_names("abc1", ["first", "two", "nobody's"]))
    assert snapshot.get("abc1").names == ("one",)
    assert snapshot.get("abc2").names == ("two",)


def test_added_names_stand_before_those_there_without_repeats() -> None:
    snapshot = after(BASE, changes.add_names("abc1", ["x", "first"]))
    assert snapshot.get("abc1").names == ("x", "first", "one")


def test_create_leaves_no_history() -> None:
    snapshot = after(EMPTY, changes.create("a", names=["b", "c"], created=CREATED))
    assert snapshot.get("a").names_history == ()


@pytest.mark.parametrize(
    ("history", "change", "expected"),
    [
        ([], changes.set_names("a", ["b", "c"]), ("c", "b")),
        ([], changes.add_names("a", ["x", "y"]), ("n", "y", "x")),
        (["old", "n"], changes.set_names("a", ["b", "n"]), ("n", "b", "old")),
        (["old", "n"], changes.remove_names("a", ["n"]), ("old", "n")),
        (["old"], changes.remove_names("a", ["x"]), ("n", "old")),
    ],
)
def test_names_move_to_the_front_of_the_history_in_turn(
    history: list[str], change: Mutation, expected: tuple[str, ...]
) -> None:
    snapshot = after(snapshot_of(element("a", names=["n"], names_history=history)), change)
    assert snapshot.get("a").names_history == expected


def test_image_that_loses_a_name_keeps_its_history() -> None:
    snapshot = snapshot_of(element("a", names=["n"], names_history=["n", "o"]), element("b"))
    assert after(snapshot, changes.set_names("b", ["n"])).get("a").names_history == ("n", "o")


# Two records with one ID or name

TWINS = (
    element("a", metadata="early", names=["lost"], digest=D1),
    element("b", metadata="other"),
    element("a", metadata="late", names=["n"], digest=D2),
    element("c"),
)


def test_later_of_two_records_with_one_id_counts() -> None:
    snapshot = snapshot_of(*TWINS)
    assert snapshot.get("a").metadata == "late"
    assert ids_of(snapshot) == ["b", "a", "c"]
    assert len(snapshot) == 3
    assert "lost" not in snapshot
    with pytest.raises(ImageUnknownError):
        snapshot.by_digest(D1)
    assert [image.id for image in snapshot.by_digest(D2)] == ["a"]
    assert snapshot.ids_with_prefix("a") == ["a"]
    assert not snapshot.needs_save


def test_shadowed_record_stays_in_place_byte_for_byte() -> None:
    snapshot = snapshot_of(*TWINS)
    assert text_of(snapshot) == b"[%b]" % b",".join(TWINS)
    changed = after(snapshot, changes.set_metadata("a", "latest"))
    assert text_of(changed).startswith(b"[%b,%b," % TWINS[:2])
    assert [bytes(record.raw) for record in changed.shadowed["a"]] == [TWINS[0]]
    assert changed.get("a").metadata == "latest"


@pytest.mark.parametrize("change", [changes.delete("a"), changes.delete("n")])
def test_shadowed_record_is_deleted_with_the_one_that_counts(change: Mutation) -> None:
    snapshot = after(snapshot_of(*TWINS), change)
    assert text_of(snapshot) == b"[%b,%b]" % (TWINS[1], TWINS[3])
    assert snapshot.shadowed == {}
    assert "a" not in snapshot


def test_shadowed_records_are_wiped() -> None:
    assert text_of(after(snapshot_of(TWINS[0], *TWINS), changes.wipe())) == b"[]"


def test_shadowed_record_goes_when_its_image_is_made_anew() -> None:
    made = (changes.delete("a"), changes.create("a", metadata="new", created=CREATED))
    snapshot = after(snapshot_of(*TWINS), *made)
    assert ids_of(snapshot) == ["b", "c", "a"]
    assert snapshot.shadowed == {}
    assert text_of(snapshot).count(b'"id":"a"') == 1


def test_last_of_three_records_with_one_id_counts() -> None:
    snapshot = snapshot_of(*(element("a", metadata=f"{n}") for n in range(3)))
    assert snapshot.get("a").metadata == "2"
    assert len(snapshot.shadowed["a"]) == 2
    assert text_of(after(snapshot, changes.delete("a"))) == b"[]"


def test_later_of_two_records_keeps_the_name() -> None:
    snapshot = snapshot_of(
        element("a", names=["n", "mine"]), element("b", names=["n"]), element("c", names=["n"])
    )
    assert snapshot.lookup("n") == "c"
    assert [image.names for image in snapshot] == [("mine",), (), ("n",)]
    assert snapshot.needs_save


def test_cure_is_saved_with_the_next_commit_and_not_needed_again() -> None:
    snapshot = snapshot_of(element("a", names=["n"]), element("b", names=["n"]))
    saved = Draft(snapshot).freeze()
    assert saved is not snapshot
    assert not saved.needs_save
    again = parse(Text(io.BytesIO(text_of(saved)).readinto, 1000), EMPTY)
    assert again is not None
    assert not build(*again).needs_save
    assert build(*again).lookup("n") == "b"


def test_name_that_one_record_lists_twice_needs_no_cure() -> None:
    snapshot = snapshot_of(element("a", names=["n", "n"]))
    assert not snapshot.needs_save
    assert snapshot.lookup("n") == "a"


def test_later_record_of_the_same_image_keeps_its_names() -> None:
    snapshot = snapshot_of(element("a", names=["n"]), element("b"), element("a", names=["n"]))
    assert snapshot.get("n").id == "a"
    assert not snapshot.needs_save


def test_image_keeps_the_name_that_only_a_shadowed_record_claims() -> None:
    snapshot = snapshot_of(element("b", names=["n"]), element("a", names=["n"]), element("a"))
    assert snapshot.lookup("n") == "b"


# The same changes made to a draft and to dictionaries


@dataclass
class Model:
    """What an image should be."""

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

    def settle(self) -> None:
        """The first manifest's digest becomes the image's."""
        self.digest = self.digest or next(iter(self.digests), "")


class Changes(RuleBasedStateMachine):
    """Random changes; drafts, snapshots and what is read back must all say the same."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, Model] = {}
        self.draft = Draft(EMPTY)
        self.blocks = patch.object(draft_module, "BLOCK_BYTES", 200)
        self.blocks.start()

    def teardown(self) -> None:
        self.blocks.stop()

    def find(self, ref: str) -> str | None:
        """Which image the ref stands for."""
        if ref in self.model:
            return ref
        owners = [i for i, image in self.model.items() if ref in image.names]
        found = owners or [i for i in self.model if ref and i.startswith(ref)]
        return found[0] if len(found) == 1 else None

    def change(self, ref: str, change: Mutation) -> Model | None:
        """Make a change; it must fail where the model knows no such image."""
        image_id = self.find(ref)
        if image_id is None:
            with pytest.raises(ImageUnknownError):
                change(self.draft)
            return None
        self.apply(change)
        return self.model[image_id]

    def apply(self, change: Mutation) -> Edit:
        edit = change(self.draft)
        self.draft.apply(edit)
        return edit

    @rule(
        image_id=ids,
        given=st.lists(names, max_size=2, unique=True),
        digest=st.none() | digests,
        items=st.lists(keys, max_size=2, unique=True),
    )
    def create(self, image_id: str, given: list[str], digest: str | None, items: list[str]) -> None:
        contents = {key: InlineContent.of(key.encode()) for key in items}
        change = changes.create(
            image_id, names=given, digest=digest, big_data=contents, created=CREATED
        )
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
            self.model[image_id].settle()

    @rule(ref=ids | names)
    def delete(self, ref: str) -> None:
        image_id = self.find(ref)
        if self.change(ref, changes.delete(ref)) and image_id:
            del self.model[image_id]

    @precondition(lambda self: len(self.model) > 5)
    @rule()
    def wipe(self) -> None:
        self.apply(changes.wipe())
        self.model.clear()

    @rule(ref=ids | names, given=st.lists(names, max_size=3))
    def set_names(self, ref: str, given: list[str]) -> None:
        self.rename(self.change(ref, changes.set_names(ref, given)), given)

    @rule(ref=ids | names, given=st.lists(names, max_size=2))
    def add_names(self, ref: str, given: list[str]) -> None:
        found = self.find(ref)
        present = self.model[found].names if found else []
        self.rename(self.change(ref, changes.add_names(ref, given)), [*given, *present])

    @rule(ref=ids | names, given=st.lists(names, max_size=2))
    def remove_names(self, ref: str, given: list[str]) -> None:
        found = self.find(ref)
        left = [n for n in self.model[found].names if n not in given] if found else []
        self.rename(self.change(ref, changes.remove_names(ref, given)), left)

    def rename(self, image: Model | None, given: Sequence[str]) -> None:
        """Give the model's image these names, and take them from the others."""
        if image is None:
            return
        for other in self.model.values():
            other.names = [name for name in other.names if name not in given]
        image.names = list(dict.fromkeys(given))
        for name in image.names:
            image.history = [name, *(old for old in image.history if old != name)]

    @rule(ref=ids | names, metadata=st.sampled_from(["", "m", "<&>", "x" * 100]))
    def set_metadata(self, ref: str, metadata: str) -> None:
        if image := self.change(ref, changes.set_metadata(ref, metadata)):
            image.metadata = metadata

    @rule(ref=ids | names, flag=st.sampled_from(["f", "g"]), value=json_values)
    def set_flag(self, ref: str, flag: str, value: Any) -> None:
        if image := self.change(ref, changes.set_flag(ref, flag, value)):
            image.flags[flag] = value

    @rule(ref=ids | names, flag=st.sampled_from(["f", "g"]))
    def clear_flag(self, ref: str, flag: str) -> None:
        if image := self.change(ref, changes.clear_flag(ref, flag)):
            image.flags.pop(flag, None)

    @rule(ref=ids | names, key=keys, data=st.sampled_from([b"", b"one", b"two"]))
    def set_big_data(self, ref: str, key: str, data: bytes) -> None:
        if image := self.change(ref, changes.set_big_data(ref, key, InlineContent.of(data))):
            image.items[key] = f"sha256:{hashlib.sha256(data).hexdigest()}"
            image.settle()

    @rule()
    def freeze(self) -> None:
        self.draft = Draft(self.draft.freeze())

    @rule()
    def reload(self) -> None:
        snapshot = self.draft.freeze()
        parsed = parse(Text(io.BytesIO(text_of(snapshot)).readinto, 1000), snapshot)
        assert parsed is not None
        self.draft = Draft(snapshot.with_blocks(*parsed))

    def views(self) -> Iterator[View]:
        """The draft, what it will become, and what is read when that was written."""
        frozen = self.draft.freeze()
        parsed = parse(Text(io.BytesIO(text_of(frozen)).readinto, 1000), EMPTY)
        assert parsed is not None
        built = build(*parsed)
        assert not built.needs_save
        assert len(frozen) == len(built) == len(self.model)
        yield from (self.draft, frozen, built)

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
        """Some that images have, and those that they may have had."""
        known = {f"sha256:{digit * 64}" for digit in "abc"}
        return known.union(*(image.digests for image in self.model.values()))

    def finds_the_same(self, view: View) -> None:
        for ref in ("", "a", "b", "c", "ab", "ca", "abc", "red", "green", "blue", *self.model):
            expected = self.find(ref)
            assert (ref in view) == (expected is not None)
            if expected is not None:
                assert view.lookup(ref) == expected
            prefixed = sorted(i for i in self.model if ref and i.startswith(ref))
            assert list(view.ids_with_prefix(ref)) == prefixed


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=60, stateful_step_count=30)
