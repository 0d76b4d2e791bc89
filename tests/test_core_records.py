"""Tests for records: reading elements, changing fields, and the images that they describe."""

from __future__ import annotations

import copy
import json
import pickle
import pydoc
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from aimagestore import Image
from aimagestore._core.record import (
    MAX_DEPTH,
    Record,
    RecordDraft,
    ids_in,
    read,
    read_images,
    without_names,
)
from aimagestore._format import gojson

from .support.strategies import compact, json_values, records

D1, D2, D3 = (f"sha256:{digit * 64}" for digit in "123")

FULL = compact(
    {
        "id": "one",
        "digest": D1,
        "names": ["b", "a"],
        "names-history": ["c"],
        "layer": "top",
        "mapped-layers": ["mapped"],
        "metadata": "{}",
        "big-data-names": ["manifest", "config"],
        "big-data-sizes": {"config": 2, "manifest": 2**63 - 1},
        "big-data-digests": {"config": D3, "manifest": D2},
        "created": "2024-01-02T03:04:05.123456789Z",
        "flags": {"a": 1, "b": [True, None]},
    }
)
MINIMAL = b'{"id":"one","created":"0001-01-01T00:00:00Z"}'


def deep(levels: int) -> bytes:
    """Return nested arrays."""
    return b"[" * levels + b"]" * levels


DEEP = deep(30_000)


def record_of(raw: bytes) -> Record:
    """Read an element that must not be damaged."""
    record = read(raw, 7)
    assert record is not None
    return record


def element(**fields: Any) -> bytes:
    """Return an element with these fields."""
    return compact({"id": "one"} | {name.replace("_", "-"): fields[name] for name in fields})


def with_metadata(raw: bytes, metadata: str = "new") -> bytes:
    """Return the element with other metadata."""
    draft = RecordDraft(record_of(raw))
    draft.set("metadata", metadata)
    return bytes(draft.finish().raw)


# Reading


def test_every_field_is_read() -> None:
    image = record_of(FULL).image
    assert image.id == "one"
    assert image.digest == D1
    assert image.digests == (D1, D2)
    assert image.names == ("b", "a")
    assert image.names_history == ("c",)
    assert image.top_layer == "top"
    assert image.mapped_top_layers == ("mapped",)
    assert image.metadata == "{}"
    assert image.big_data_names == ("manifest", "config")
    assert image.big_data_sizes == {"config": 2, "manifest": 2**63 - 1}
    assert image.big_data_digests == {"config": D3, "manifest": D2}
    assert image.created == datetime(2024, 1, 2, 3, 4, 5, 123_456, UTC)
    assert image.flags == {"a": 1, "b": [True, None]}


def test_record_has_its_block_names_and_digests() -> None:
    record = record_of(FULL)
    assert (record.block_id, record.id, record.names) == (7, "one", ("b", "a"))
    assert record.digests == (D1, D2)
    assert bytes(record.raw) == FULL


def test_record_is_decoded_once_on_the_first_access() -> None:
    record = record_of(FULL)
    assert record._image is None
    assert record.image is record.image


def test_record_keeps_its_image_when_it_moves_to_another_block() -> None:
    record = record_of(FULL)
    image = record.image
    moved = record.in_block(9)
    assert (moved.block_id, moved.raw, moved.names, moved.digests) == (
        9,
        record.raw,
        record.names,
        record.digests,
    )
    assert moved.image is image


EMPTY_FIELDS: dict[str, Any] = {
    "digest": "",
    "digests": (),
    "names": (),
    "names_history": (),
    "top_layer": "",
    "mapped_top_layers": (),
    "metadata": "",
    "big_data_names": (),
    "big_data_sizes": {},
    "big_data_digests": {},
    "created": None,
    "flags": {},
}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"id":"one"}',
        MINIMAL,
        compact({"id": "one"} | dict.fromkeys([n for n in json.loads(FULL) if n != "id"])),
    ],
)
def test_missing_and_null_fields_are_empty(raw: bytes) -> None:
    image = record_of(raw).image
    assert {name: getattr(image, name) for name in EMPTY_FIELDS} == EMPTY_FIELDS


def test_last_of_repeated_fields_counts_as_in_go() -> None:
    assert record_of(b'{"id":"zero","metadata":"a","id":"one","metadata":"b"}').id == "one"


def test_white_space_in_an_element_is_allowed() -> None:
    assert record_of(b' { "id" : "one" ,\n"names":[ "a" ] } ').names == ("a",)


@pytest.mark.parametrize(
    "raw",
    [
        b"null",
        b"1",
        b'"one"',
        b"[]",
        b'["one"]',
        b"{}",
        b'{"id":null}',
        b'{"id":1}',
        b'{"id":"one"',
        b"",
        DEEP,
    ],
)
def test_element_that_is_not_an_object_with_an_id_is_damaged(raw: bytes) -> None:
    assert read(raw, 0) is None


@pytest.mark.parametrize(
    "image_id", ["", ".", "..", ".hidden", "../x", "a/b", "images.json", "images.lock", "a\0"]
)
def test_element_with_an_id_that_is_a_path_is_damaged(image_id: str) -> None:
    assert read(compact({"id": image_id}), 0) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"digest": 1},
        {"names": "a"},
        {"names": [1]},
        {"names": ["a", None]},
        {"names": {}},
        {"names-history": [[]]},
        {"layer": []},
        {"mapped-layers": "a"},
        {"metadata": {}},
        {"big-data-names": {"manifest": 1}},
        {"big-data-sizes": {"a": "1"}},
        {"big-data-sizes": {"a": 1.5}},
        {"big-data-sizes": {"a": 1.0}},
        {"big-data-sizes": {"a": 2**63}},
        {"big-data-sizes": {"a": -(2**63) - 1}},
        {"big-data-sizes": [1]},
        {"big-data-digests": {"a": 1}},
        {"created": 1},
        {"created": ""},
        {"created": "yesterday"},
        {"created": "10000-01-01T00:00:00Z"},
        {"flags": []},
        {"flags": "a"},
        {"flags": False},
    ],
)
@pytest.mark.parametrize("unknown", [{}, {"x": 1}])
def test_field_of_the_wrong_type_is_damage(fields: dict[str, Any], unknown: dict[str, int]) -> None:
    assert read(compact({"id": "one"} | fields | unknown), 0) is None


@pytest.mark.parametrize("unusual", [b"", b',"unknown":1', b',"unknown":[{}]'])
def test_repeated_field_is_damage_when_either_has_the_wrong_type(unusual: bytes) -> None:
    # Go reports the type of the first, though the second one counts.
    sizes = b'"big-data-digests":{"k":1},"big-data-digests":{"k":"sha256:"}'
    assert read(b'{"id":"x",%b%b}' % (sizes, unusual), 0) is None


@pytest.mark.parametrize(
    "name",
    [
        "ID",
        "Id",
        "Digest",
        "nameS",
        "NAMES-HISTORY",
        "Layer",
        "Mapped-Layers",
        "metaData",
        "Big-Data-Names",
        "BIG-DATA-SIZES",
        "big-data-digestS",
        "Created",
        "FLAGS",
        "name\u017f",
        "names-hi\u017ftory",
        "flag\u017f",
        "big-data-dige\u017fts",
    ],
)
def test_known_field_in_another_case_is_damage(name: str) -> None:
    assert read(compact({"id": "one", name: None}), 0) is None
    assert read(compact({"id": "one", name: None}, ascii_only=True), 0) is None


@pytest.mark.parametrize("name", ["", "ids", "i-d", "names_history", "\u0131d", "\u212a", "K"])
def test_unknown_field_that_go_does_not_match_is_allowed(name: str) -> None:
    assert record_of(compact({"id": "one", name: {"a": [1]}})).id == "one"


@pytest.mark.parametrize("raw", [b'"\xff"', b'{"\xff":1}', b'["a",nul]', b'"\x01"', b'"\\q"'])
@pytest.mark.parametrize("field", ["x", "flags", "metadata"])
def test_value_that_is_not_json_is_damage(raw: bytes, field: str) -> None:
    assert read(b'{"id":"one","%b":%b}' % (field.encode(), raw), 0) is None


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"9" * 400])
def test_flag_that_fits_no_float64_is_damage(number: bytes) -> None:
    assert read(b'{"id":"one","flags":{"f":%b}}' % number, 0) is None


@pytest.mark.parametrize("number", [b"1e400", b"9" * 400, b"1" * 5000, b"0.10", b"-0"])
def test_number_in_an_unknown_field_may_be_any(number: bytes) -> None:
    raw = b'{"id":"one","created":"0001-01-01T00:00:00Z","x":%b}' % number
    assert with_metadata(raw) == (
        b'{"id":"one","metadata":"new","created":"0001-01-01T00:00:00Z","x":%b}' % number
    )


@pytest.mark.parametrize("raw", [b'{"id":"one","x":%b}', b'{"id":"one","flags":{"f":%b}}'])
def test_element_may_nest_up_to_the_limit_and_not_deeper(raw: bytes) -> None:
    levels = min(MAX_DEPTH, 1000) - raw.count(b"{")
    record = record_of(raw % deep(levels))
    assert record.image.flags.keys() <= {"f"}
    assert with_metadata(raw % deep(levels)).count(b"[") == levels
    # The limit itself counts, not what the decoder can do on this version of Python.
    assert read(raw % deep(MAX_DEPTH - raw.count(b"{") + 1)) is None
    assert gojson.nests_deeper(raw % deep(MAX_DEPTH - raw.count(b"{") + 1), MAX_DEPTH)


@pytest.mark.parametrize("levels", [9_999, 10_000, 30_000, 200_000])
def test_element_that_nests_deeper_than_go_reads_is_damaged(levels: int) -> None:
    assert read(b'{"id":"one","x":%b}' % deep(levels)) is None


def test_flags_that_nest_deeper_than_go_reads_are_damage_when_others_hide_them() -> None:
    raw = b'{"id":"one","flags":{"f":%b},"flags":{}}'
    assert record_of(raw % deep(100)).id == "one"
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)  # so that the decoder itself reads them
    try:
        assert read(raw % deep(9_999)) is None
        assert read_images(b"[%b]" % (raw % deep(9_999))) == []
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_pickled_image_has_no_other_images_record_beside_it(size: int) -> None:
    records = [b'{"id":"%d","metadata":"secret %d"}' % (n, n) for n in range(20)]
    records.append(b'{"id":"long","metadata":"%b"}' % (b"x" * size))
    images = read_images(b"[%b]" % b",".join(records))
    assert images[1].metadata == "secret 1"
    for image in images[:2]:
        text = pickle.dumps(image)
        assert b"secret 2" not in text
        assert pickle.loads(text) == image


def test_images_of_a_long_array_do_not_keep_it() -> None:
    array = b"[%b]" % b",\n ".join(
        b'{"id":"%d","metadata":"%b"}' % (n, b"x" * 9_000) for n in range(99)
    )
    before = sys.getrefcount(array)
    images = read_images(array)
    assert images[0].metadata == "x" * 9_000
    assert len(images) == 99
    assert sys.getrefcount(array) == before


def test_brackets_side_by_side_do_not_make_a_record_deep() -> None:
    raw = b'{"id":"one","x":[%b[]]}' % (b"[]," * 20_000)
    assert record_of(raw).id == "one"


@pytest.mark.parametrize(
    ("raw", "ids"),
    [
        (b'{"id":"one","ID":"two"}', {"one", "two"}),
        (b'{"Id" : "one"}', {"one"}),
        (b'{"\\u0069d":"\\u006fne"}', {"one"}),
        (b'{"id":"one","x":%b}' % DEEP, {"one"}),
        (b'{"x":%b, "id":"one"}' % DEEP, {"one"}),
        (b'{"metadata":"one","names":["two"]}', set()),
        (b'{"id":5,"metadata":"\xff"}', set()),
        (b'{"id":"\xff"}', set()),
        (b"[1]", set()),
    ],
)
def test_ids_in_a_damaged_element_are_found(raw: bytes, ids: set[str]) -> None:
    assert ids_in(raw) == ids


# Digests


@pytest.mark.parametrize(
    ("fields", "digest", "digests"),
    [
        ({"digest": D1}, D1, (D1,)),
        ({"big_data_names": ["config"], "big_data_digests": {"config": D1}}, "", ()),
        ({"big_data_names": ["manifest"], "big_data_digests": {"manifest": D1}}, D1, (D1,)),
        (
            {
                "big_data_names": ["manifest-b", "config", "manifest-a"],
                "big_data_digests": {"manifest-a": D1, "manifest-b": D2, "config": D3},
            },
            D2,
            (D2, D1),
        ),
        (
            {
                "digest": D3,
                "big_data_names": ["manifest-b", "manifest-a", "manifest"],
                "big_data_digests": {"manifest-a": D1, "manifest-b": D2, "manifest": D3},
            },
            D3,
            (D3, D2, D1),
        ),
        ({"big_data_digests": {"manifest": D1}}, "", ()),
        ({"big_data_names": ["manifest"]}, "", ()),
    ],
)
def test_digests_are_the_images_own_then_its_manifests_in_order(
    fields: dict[str, Any], digest: str, digests: tuple[str, ...]
) -> None:
    image = record_of(element(**fields)).image
    assert (image.digest, image.digests) == (digest, digests)


@pytest.mark.parametrize("malformed", ["", "x", "sha256:" + "A" * 64, "md5:" + "a" * 32])
def test_malformed_digest_is_not_indexed(malformed: str) -> None:
    raw = element(
        digest=malformed,
        big_data_names=["manifest", "manifest-2"],
        big_data_digests={"manifest": malformed, "manifest-2": D1},
    )
    assert record_of(raw).digests == (D1,)


@pytest.mark.parametrize("recorded", [{}, {"digest": ""}, {"digest": None}])
def test_digest_of_the_first_manifest_stays_when_the_manifest_changes(
    recorded: dict[str, Any],
) -> None:
    raw = element(**recorded, big_data_names=["manifest"], big_data_digests={"manifest": D1})
    draft = RecordDraft(record_of(raw))
    draft.set_entry("big-data-digests", "manifest", b'"%b"' % D2.encode())
    image = draft.finish().image
    assert (image.digest, image.digests) == (D1, (D1, D2))


def test_digest_of_a_new_records_first_manifest_is_written() -> None:
    draft = RecordDraft()
    draft.set("id", "one")
    draft.set("big-data-names", ("manifest",))
    draft.set_entry("big-data-digests", "manifest", b'"%b"' % D1.encode())
    assert json.loads(bytes(draft.finish().raw))["digest"] == D1


def test_digest_of_a_manifest_added_later_is_written() -> None:
    draft = RecordDraft(record_of(element(metadata="m")))
    draft.set("big-data-names", ("manifest",))
    draft.set_entry("big-data-digests", "manifest", b'"%b"' % D1.encode())
    assert json.loads(bytes(draft.finish().raw))["digest"] == D1


# Writing


def test_fields_are_written_in_gos_order() -> None:
    draft = RecordDraft()
    for field in reversed(list(json.loads(FULL))):
        value = json.loads(FULL)[field]
        if isinstance(value, dict):
            for key, item in reversed(value.items()):
                draft.set_entry(field, key, compact(item))
        else:
            draft.set(field, tuple(value) if isinstance(value, list) else value)
    assert bytes(draft.finish().raw) == FULL


def test_id_and_created_are_always_written() -> None:
    draft = RecordDraft()
    draft.set("id", "one")
    assert bytes(draft.finish().raw) == MINIMAL


@pytest.mark.parametrize("field", ["digest", "layer", "metadata"])
def test_empty_text_is_left_out(field: str) -> None:
    draft = RecordDraft(record_of(element(**{field: D1}, created="0001-01-01T00:00:00Z")))
    draft.set(field, "")
    assert bytes(draft.finish().raw) == MINIMAL


def test_empty_list_is_left_out() -> None:
    draft = RecordDraft(record_of(element(names=["a"], created="0001-01-01T00:00:00Z")))
    draft.set("names", ())
    assert bytes(draft.finish().raw) == MINIMAL


def test_map_is_left_out_with_its_last_entry() -> None:
    draft = RecordDraft(record_of(element(flags={"f": 1}, created="0001-01-01T00:00:00Z")))
    draft.set_entry("flags", "g", None)
    draft.set_entry("flags", "f", None)
    assert bytes(draft.finish().raw) == MINIMAL


def test_null_map_takes_entries() -> None:
    draft = RecordDraft(record_of(b'{"id":"one","created":"0001-01-01T00:00:00Z","flags":null}'))
    draft.set_entry("flags", "f", b"1")
    assert bytes(draft.finish().raw).endswith(b'"flags":{"f":1}}')


def test_map_entries_are_sorted_by_the_bytes_of_their_keys() -> None:
    draft = RecordDraft(record_of(element(flags={"b": 1})))
    for key in ["\U0001f600", "\uffff", "a", "B", "<"]:
        draft.set_entry("flags", key, b"0")
    flags = json.loads(bytes(draft.finish().raw))["flags"]
    assert list(flags) == ["<", "B", "a", "b", "\uffff", "\U0001f600"]


def test_text_is_escaped_as_go_escapes() -> None:
    assert b'"metadata":"\\u003c\\u0026\\u2028\\u003e"' in with_metadata(MINIMAL, "<&\u2028>")


UNTOUCHED = (
    b'{"x-first": {"b" : 1e30, "a":0.10,"n":12345678901234567890123},"id":"one",'
    b'"names":["\\u0061","\\/" ],"digest":null,"created":"2024-01-02T03:04:05.123456789+01:00",'
    b'"flags":{ "z":1.0,"a":100000000000000000001,"e":1E5,"s":"<\\u003C>" },"":[ ],'
    b'"big-data-sizes":{"k":-0},"layer":""}'
)


def test_unchanged_fields_keep_their_bytes() -> None:
    assert with_metadata(UNTOUCHED) == (
        b'{"id":"one","digest":null,"names":["\\u0061","\\/" ],"layer":"","metadata":"new",'
        b'"big-data-sizes":{"k":-0},"created":"2024-01-02T03:04:05.123456789+01:00",'
        b'"flags":{ "z":1.0,"a":100000000000000000001,"e":1E5,"s":"<\\u003C>" },'
        b'"x-first":{"b" : 1e30, "a":0.10,"n":12345678901234567890123},"":[ ]}'
    )


def test_unchanged_entries_keep_their_bytes() -> None:
    draft = RecordDraft(record_of(b'{"id":"one","flags":{"z":1.0,"n":9007199254740993,"o":{ }}}'))
    draft.set_entry("flags", "new", b"true")
    assert b'"flags":{"n":9007199254740993,"new":true,"o":{ },"z":1.0}' in bytes(draft.finish().raw)


def test_draft_without_changes_keeps_a_usual_record_byte_for_byte() -> None:
    assert bytes(RecordDraft(record_of(FULL)).finish().raw) == FULL


def test_draft_stays_in_its_records_block() -> None:
    assert RecordDraft(record_of(FULL)).finish().block_id == 7


@given(records(st.just("one")), st.dictionaries(st.sampled_from(["x", "", "Y"]), json_values))
def test_change_of_one_field_leaves_the_values_of_all_others(
    raw: bytes, unknown: dict[str, Any]
) -> None:
    before = json.loads(raw) | unknown
    after = json.loads(with_metadata(compact(before)))
    assert after.pop("metadata") == "new"
    before.pop("metadata", None)
    digests = [after.pop("digest", None), before.pop("digest", None)]
    assert digests[1] in {None, digests[0]}
    assert after.pop("created") == before.pop("created", "0001-01-01T00:00:00Z")
    assert {name: after.get(name) for name in before} == before
    assert after.keys() == before.keys()


@given(records())
def test_image_agrees_with_the_elements_json(raw: bytes) -> None:
    fields = json.loads(raw)
    image = record_of(raw).image
    assert image.id == fields["id"]
    assert list(image.names) == fields.get("names", [])
    assert image.metadata == fields.get("metadata", "")
    assert list(image.big_data_names) == fields["big-data-names"]
    assert image.big_data_digests == fields["big-data-digests"]
    assert image.flags == fields.get("flags", {})


# Images


@pytest.fixture(params=["alone", "listed"])
def image(request: pytest.FixtureRequest) -> Image:
    """Return an image with a value in every field."""
    if request.param == "alone":
        return record_of(FULL).image
    # Its text is a part of a larger one.
    record = read(msgspec.json.decode(b"[%b]" % FULL, type=list[msgspec.Raw])[0])
    assert record is not None
    return record.listed_image()


def test_images_with_equal_fields_are_equal(image: Image) -> None:
    again = record_of(FULL).image
    assert again == image
    assert (again != image) is False
    assert hash(again) == hash(image)
    assert {again} == {image}


@pytest.mark.parametrize("field", [name for name in json.loads(FULL) if name != "digest"])
def test_images_differ_in_every_field(image: Image, field: str) -> None:
    fields = json.loads(FULL)
    fields[field] = "2024-01-01T00:00:00Z" if field == "created" else type(fields[field])()
    fields["id"] = fields["id"] or "two"
    assert record_of(compact(fields)).image != image
    assert (record_of(compact(fields)).image == image) is False


def test_image_is_not_equal_to_other_types(image: Image) -> None:
    assert image != "one"
    assert image != ()


def test_image_is_pickled_and_copied(image: Image) -> None:
    assert pickle.loads(pickle.dumps(image)) == image
    assert copy.deepcopy(image) == image
    assert copy.copy(image) == image


def test_pickled_image_has_its_flags_and_is_immutable(image: Image) -> None:
    again = pickle.loads(pickle.dumps(image))
    assert again.flags == image.flags
    with pytest.raises(TypeError):
        again.big_data_sizes["config"] = 1


@pytest.mark.parametrize("field", ["id", "names", "metadata", "flags", "new"])
def test_image_attributes_cannot_be_assigned(image: Image, field: str) -> None:
    with pytest.raises(AttributeError):
        setattr(image, field, "other")


@pytest.mark.parametrize("field", ["big_data_sizes", "big_data_digests", "flags"])
def test_mappings_of_an_image_are_read_only(image: Image, field: str) -> None:
    with pytest.raises(TypeError):
        getattr(image, field)["new"] = 1


def test_changing_a_flag_value_does_not_change_the_image(image: Image) -> None:
    image.flags["b"].append("more")
    assert image.flags["b"] == [True, None]


@pytest.mark.parametrize("field", ["digests", "names", "mapped_top_layers", "big_data_names"])
def test_sequences_of_an_image_are_tuples(image: Image, field: str) -> None:
    assert isinstance(getattr(image, field), tuple)


def test_image_size_is_the_sum_of_its_recorded_sizes(image: Image) -> None:
    assert image.size == 2 + 2**63 - 1
    assert record_of(MINIMAL).image.size == 0
    assert record_of(FULL).size == image.size


def test_image_is_converted_to_a_dict_for_json(image: Image) -> None:
    made = image.to_dict()
    assert json.loads(json.dumps(made)) == made
    assert made == {
        "id": "one",
        "names": ["b", "a"],
        "names_history": ["c"],
        "digest": D1,
        "digests": [D1, D2],
        "created": "2024-01-02T03:04:05.123456Z",
        "size": image.size,
        "top_layer": "top",
        "mapped_top_layers": ["mapped"],
        "metadata": "{}",
        "flags": {"a": 1, "b": [True, None]},
        "big_data_names": ["manifest", "config"],
        "big_data_sizes": {"config": 2, "manifest": 2**63 - 1},
        "big_data_digests": {"config": D3, "manifest": D2},
        "read_only": False,
    }
    assert record_of(MINIMAL).image.to_dict()["created"] is None
    made["names"].append("c")
    assert image.names == ("b", "a")


def test_repr_shows_attributes_as_plain_values(image: Image) -> None:
    shown = repr(image)
    assert shown.startswith("Image(id='one', digest='sha256:1")
    assert "flags={'a': 1, 'b': [True, None]}, read_only=False)" in shown
    assert "big_data_sizes={'config': 2, " in shown
    assert "mappingproxy" not in shown
    assert "_flags" not in shown


def test_image_of_an_additional_store_differs_from_one_of_the_store(image: Image) -> None:
    other = msgspec.structs.replace(image, read_only=True)
    assert other != image
    assert (other.read_only, image.read_only) == (True, False)
    assert "read_only=True" in repr(other)
    assert pickle.loads(pickle.dumps(other)) == other


def test_help_shows_nothing_of_the_base_class() -> None:
    shown = pydoc.plain(pydoc.render_doc(Image))
    for name in ("__struct_fields__", "__rich_repr__", "__copy__", "_flags\n", "inherited from"):
        assert name not in shown
    for name in (*EMPTY_FIELDS, "id", "size", "to_dict", "read_only"):
        assert name in shown


def test_record_without_names_keeps_its_history() -> None:
    record = without_names(record_of(FULL), {"b", "x"})
    assert (record.names, record.image.names_history) == (("a",), ("c",))
