import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.contracts.model import Contract, Feature
from trimtab.events.cloudevents import (
    STRUCTURED_HEADERS,
    DecodeError,
    Event,
    Reason,
    Role,
    batch_rows,
    decode,
    encode_binary,
    encode_structured,
    event_id,
)
from trimtab.events.typed import typed_inference_decoder
from trimtab.events.types import Inference, InferenceBatch, Label, Resource, time_ms
from trimtab.schemas_gen import EXAMPLES

LEAST = {"id": "a", "model": "m", "version": "1", "time": 1}


def reason(value: bytes | None, headers: Any = (), role: Role = "inference") -> Reason:
    with pytest.raises(DecodeError) as caught:
        decode(value, headers, role)
    assert len(caught.value.detail) <= 300
    assert caught.value.detail.isprintable()
    return caught.value.reason


def with_fields(**fields: Any) -> bytes:
    return msgspec.json.encode(LEAST | fields)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("role", ["inference", "labels"])
def test_structured_and_binary_mode_bring_the_event_back_on_any_topic(
    name: str, role: Role
) -> None:
    event = EXAMPLES[name]
    assert decode(*encode_structured(event, "shop"), role) == event
    assert decode(*encode_binary(event, "shop"), role) == event


def test_a_structured_event_without_header_is_recognised() -> None:
    value, _ = encode_structured(EXAMPLES["inference"], "shop")
    assert decode(value, [], "inference") == EXAMPLES["inference"]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("inference", "inference"),
        ("batch", "inference"),
        ("label", "labels"),
        ("resource", "resources"),
    ],
)
def test_bare_data_takes_its_type_from_the_topic(name: str, role: Role) -> None:
    event = EXAMPLES[name]
    assert decode(msgspec.json.encode(event), [], role) == event
    assert (
        decode(msgspec.json.encode(event), [("content-type", b"application/json")], role) == event
    )


def test_header_names_and_content_types_of_other_producers_are_read() -> None:
    value, _ = encode_structured(EXAMPLES["label"], "shop")
    headers = [("traceparent", b"00-1"), ("Content-Type", b"Application/CloudEvents+JSON")]
    assert decode(value, headers, "inference") == EXAMPLES["label"]


class Untouchable(list[tuple[str, bytes]]):
    """Headers that fail whoever looks at them."""

    def __len__(self) -> int:
        raise AssertionError("the headers were looked at")

    def __iter__(self) -> Any:
        raise AssertionError("the headers were looked at")


def test_of_our_own_events_nobody_reads_the_headers() -> None:
    """Taking them apart costs the fast client as much as half of all its reading."""
    for name in ("inference", "label", "resource"):
        value, _ = encode_structured(EXAMPLES[name], "s")
        assert decode(value, Untouchable(), "labels") == EXAMPLES[name]
    value, _ = encode_structured(EXAMPLES["inference"], "s")
    reader = typed_inference_decoder(CONTRACT)
    assert reader.decode(value, Untouchable()) == reader.decode(value, STRUCTURED_HEADERS)


def test_our_producers_send_one_header() -> None:
    assert encode_structured(EXAMPLES["label"], "shop")[1] == STRUCTURED_HEADERS
    assert len(STRUCTURED_HEADERS) == 1


def test_a_payload_of_the_first_day_is_still_read() -> None:
    old = (
        b'{"specversion":"1.0","type":"io.trimtab.inference.v1","id":"a","source":"s","time":'
        b'"2026-01-01T00:00:00Z","data":{"id":"a","model":"m","version":"1","time":'
        b'"2026-01-01T01:00:00.5+01:00","features":{"x":1,"y":null,"z":"b","w":true},'
        b'"prediction":"yes","unheard_of":[1,{"a":2}]}}'
    )
    event = decode(old, STRUCTURED_HEADERS, "inference")
    assert isinstance(event, Inference)
    assert time_ms(event.time) == 1_767_225_600_500
    assert event.features == {"x": 1, "y": None, "z": "b", "w": True}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Reason.EMPTY),
        (b"", Reason.EMPTY),
        (b"{", Reason.BAD_JSON),
        (b"[]", Reason.WRONG_TYPE),
        (b"{} {}", Reason.BAD_JSON),
        (b'{"id":"\xff"}', Reason.BAD_UTF8),
        (b'{"id":"\\ud800"}', Reason.BAD_JSON),
        (b'{"a":' + b"[" * 100_000, Reason.TOO_DEEP),
        (b"x" * 1_048_577, Reason.TOO_LARGE),
        (b'{"id":"a"}', Reason.MISSING_FIELD),
        (with_fields(id=5), Reason.WRONG_TYPE),
        (with_fields(id=""), Reason.BAD_VALUE),
        (with_fields(id="x" * 257), Reason.BAD_VALUE),
        (with_fields(status="fine"), Reason.BAD_VALUE),
        (with_fields(sample_rate=0), Reason.BAD_VALUE),
        (with_fields(features={"x": [1]}), Reason.WRONG_TYPE),
        (with_fields(features={"x": "a\0b"}), Reason.NUL_CHARACTER),
        (with_fields(time="2026-01-01T00:00:00"), Reason.NAIVE_TIME),
        (with_fields(time="yesterday"), Reason.BAD_TIME),
        (with_fields(time="0001-01-01T00:00:00Z"), Reason.BAD_TIME),
        (with_fields(time=1_767_225_600_000_000), Reason.BAD_TIME),
        (with_fields(time=1.5), Reason.WRONG_TYPE),
        (with_fields()[:-1] + b',"latency_ms":NaN}', Reason.NOT_FINITE),
        (with_fields()[:-1] + b',"latency_ms":-Infinity}', Reason.NOT_FINITE),
        (with_fields()[:-1] + b',"latency_ms":1e999}', Reason.NOT_FINITE),
        (with_fields()[:-1] + b',"features":{"x":' + b"9" * 5000 + b"}}", Reason.NOT_FINITE),
        (with_fields()[:-1] + b',"features":{"x":99999999999999999999}}', Reason.BAD_VALUE),
        (with_fields(rows=2, prediction=[1]), Reason.UNEQUAL_COLUMNS),
        (with_fields(rows=2, features={"x": [1, 2, 3]}), Reason.UNEQUAL_COLUMNS),
        (with_fields(rows=2, time=[1]), Reason.UNEQUAL_COLUMNS),
    ],
)
def test_a_bad_message_has_a_closed_reason(value: bytes | None, expected: Reason) -> None:
    if expected is Reason.UNEQUAL_COLUMNS:
        assert isinstance(value, bytes)
        assert reason(value, [("ce_type", b"io.trimtab.inference.batch.v1")]) is expected
    else:
        assert reason(value) is expected


def test_unknown_types_and_versions_are_named() -> None:
    value, _ = encode_structured(EXAMPLES["label"], "s")
    assert reason(value.replace(b"label.v1", b"label.v9"), STRUCTURED_HEADERS) is (
        Reason.UNKNOWN_EVENT_TYPE
    )
    assert reason(value.replace(b'"1.0"', b'"0.3"'), STRUCTURED_HEADERS) is (
        Reason.UNSUPPORTED_SPEC_VERSION
    )
    assert reason(b"{}", [("ce_type", b"com.example")]) is Reason.UNKNOWN_EVENT_TYPE
    assert reason(b"{}", [("content-type", b"application/avro")]) is (
        Reason.UNSUPPORTED_CONTENT_TYPE
    )
    assert reason(b"{}", [("ce_specversion", b"0.3")]) is Reason.UNSUPPORTED_SPEC_VERSION


def test_a_harmless_escaped_backslash_is_no_nul() -> None:
    event = decode(with_fields(error="\\u0000"), [], "inference")
    assert isinstance(event, Inference)
    assert event.error == "\\u0000"


header_lists = st.lists(
    st.tuples(
        st.sampled_from(["content-type", "ce_type", "ce_specversion", "other"]),
        st.none()
        | st.binary(max_size=30)
        | st.sampled_from([b"application/cloudevents+json", b"io.trimtab.label.v1", b"1.0"]),
    ),
    max_size=3,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=10,
)
roles = st.sampled_from(["inference", "labels", "resources", "traffic"])


def decodes(value: bytes, headers: Any, role: Role) -> Event | Reason:
    try:
        return decode(value, headers, role)
    except DecodeError as error:
        return error.reason


@given(st.binary(max_size=300), header_lists, roles)
def test_any_bytes_are_an_event_or_a_reason(value: bytes, headers: Any, role: Role) -> None:
    assert decodes(value, headers, role)


@given(
    st.sampled_from(sorted(EXAMPLES)), st.sampled_from(["data", ""]), st.data(), json_values, roles
)
def test_any_field_may_hold_anything(
    name: str, where: str, data: Any, junk: Any, role: Role
) -> None:
    envelope = msgspec.json.decode(encode_structured(EXAMPLES[name], "s")[0])
    target = envelope["data"] if where else envelope
    target[data.draw(st.sampled_from(sorted(target)))] = junk
    found = decodes(msgspec.json.encode(envelope), STRUCTURED_HEADERS, role)
    if not isinstance(found, Reason):
        assert decode(*encode_structured(found, "s"), role) == found


@given(st.sampled_from(sorted(EXAMPLES)), st.integers(0, 2000), st.binary(min_size=1, max_size=3))
def test_a_message_damaged_on_its_way_is_an_event_or_a_reason(
    name: str, at: int, junk: bytes
) -> None:
    value, headers = encode_structured(EXAMPLES[name], "s")
    at %= len(value)
    assert decodes(value[:at] + junk + value[at + len(junk) :], headers, "inference")


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        finite | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.none(),
        max_size=5,
    ),
    st.datetimes(datetime(1900, 1, 2), datetime(2199, 12, 30)),  # noqa: DTZ001 - made aware below
    st.integers(-14 * 60, 14 * 60),
)
def test_every_good_event_comes_back_as_it_was(
    features: dict[str, Any], moment: datetime, offset_min: int
) -> None:
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=offset_min)))
    event = Inference(id="a", model="m", version="1", time=aware, features=features)
    assert decode(*encode_structured(event, "s"), "inference") == event


def test_ids_of_events_are_deterministic_and_tell_revisions_apart() -> None:
    label = EXAMPLES["label"]
    assert isinstance(label, Label)
    ids = {
        event_id(label),
        event_id(msgspec.structs.replace(label, revision=1)),
        event_id(msgspec.structs.replace(label, revision=1, retracted=True)),
    }
    assert len(ids) == 3
    assert event_id(Resource(instance="i", model="m", version="1", time=datetime(1970, 1, 1, tzinfo=UTC))) == "i:0"  # fmt: skip


def test_a_batch_is_the_same_as_its_rows() -> None:
    batch = EXAMPLES["batch"]
    assert isinstance(batch, InferenceBatch)
    assert [row.id for row in batch_rows(batch)] == [f"{batch.id}#0", f"{batch.id}#1"]
    assert [row.features for row in batch_rows(batch)] == [
        {"income": 41_000, "channel": "web"},
        {"income": 52_000, "channel": None},
    ]
    assert [row.scores for row in batch_rows(batch)] == [{"default": 0.08}, {"default": 0.71}]
    assert [row.time for row in batch_rows(batch)] == batch.time
    named = msgspec.structs.replace(batch, ids=["a", "b"])
    assert [row.id for row in batch_rows(named)] == ["a", "b"]


# --- typed decoding ---

CONTRACT = Contract(
    name="m",
    task="binary",
    features={"x 1": Feature(kind="number"), "c": Feature(kind="category")},
)


def typed(features: dict[str, Any], also: tuple[str, ...] = (), model: str = "m") -> Any:
    event = Inference(id="a", model=model, version="1", time=1, features=features)
    return typed_inference_decoder(CONTRACT, also).decode(*encode_structured(event, "s"))


def test_typed_features_are_numbers_and_then_categories() -> None:
    event = typed({"c": "web", "x 1": 3})
    assert msgspec.structs.astuple(event.features) == (3.0, "web")
    assert (event.id, event.model, event.time) == ("a", "m", 1)
    absent, category = msgspec.structs.astuple(typed({}).features)
    assert math.isnan(absent)
    assert category is None
    assert typed({"x 1": None}).features.n0 is None


@pytest.mark.parametrize("features", [{"x 1": "3"}, {"x 1": True}, {"c": 3}, {"new": 1}])
def test_what_does_not_fit_is_left_to_the_generic_reader(features: dict[str, Any]) -> None:
    assert typed(features) is None
    assert typed({}, model="other") is None


def test_an_undeclared_feature_may_be_tolerated() -> None:
    event = typed({"x 1": 1.0, "new": 1}, also=("new",))
    assert msgspec.structs.astuple(event.features)[:2] == (1.0, None)


@pytest.mark.parametrize("features", [{"x 1": 2**70}, {"x 1": -(2**70)}, {"x 1": 1, "new": [1]}])
def test_the_typed_reader_takes_no_row_that_the_generic_one_refuses(
    features: dict[str, Any],
) -> None:
    value = with_fields(features={}).replace(
        b'"features":{}', b'"features":' + json.dumps(features).encode()
    )
    for also in ((), ("new",)):
        assert typed_inference_decoder(CONTRACT, also).decode(value, []) is None
    with pytest.raises(DecodeError):
        decode(value, [], "inference")


def test_a_batch_is_read_as_typed_columns() -> None:
    batch = InferenceBatch(
        id="b", model="m", version="1", time=1, rows=2, features={"x 1": [1, None]}
    )
    decoder = typed_inference_decoder(CONTRACT)
    event = decoder.decode(*encode_structured(batch, "s"))
    assert msgspec.structs.astuple(event.features) == ([1.0, None], msgspec.UNSET)
    wrong = msgspec.structs.replace(batch, rows=3)
    assert decoder.decode(*encode_structured(wrong, "s")) is None
    with pytest.raises(DecodeError) as caught:
        decode(*encode_structured(wrong, "s"), "inference")
    assert caught.value.reason is Reason.UNEQUAL_COLUMNS


def test_bare_and_binary_messages_are_read_typed() -> None:
    event = Inference(id="a", model="m", version="1", time=1, features={"x 1": 1})
    batch = InferenceBatch(id="b", model="m", version="1", time=1, rows=1, features={"x 1": [1]})
    decoder = typed_inference_decoder(CONTRACT)
    assert decoder.decode(*encode_binary(event, "s")).features.n0 == 1.0
    assert decoder.decode(*encode_binary(batch, "s")).features.n0 == [1.0]
    assert decoder.decode(msgspec.json.encode(event), []).features.n0 == 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ce_type", b"io.trimtab.label.v1"),
        ("ce_specversion", b"0.3"),
        ("content-type", b"text/plain"),
        ("CE_TYPE", b"io.trimtab.label.v1"),
        ("anything", b"else"),
    ],
)
def test_headers_that_are_not_plainly_ours_are_left_to_the_generic_reader(
    name: str, value: bytes
) -> None:
    event = Inference(id="a", model="m", version="1", time=1)
    body, headers = encode_binary(event, "s")
    changed = [header for header in headers if header[0] != name] + [(name, value)]
    assert typed_inference_decoder(CONTRACT).decode(body, changed) is None


@pytest.mark.parametrize("gone", ["id", "source", "specversion"])
def test_an_envelope_without_a_required_attribute_is_read_by_no_reader(gone: str) -> None:
    body, headers = encode_structured(Inference(id="a", model="m", version="1", time=1), "s")
    envelope = msgspec.json.decode(body)
    del envelope[gone]
    body = msgspec.json.encode(envelope)
    assert typed_inference_decoder(CONTRACT).decode(body, headers) is None
    with pytest.raises(DecodeError) as caught:
        decode(body, headers, "inference")
    assert caught.value.reason is Reason.MISSING_FIELD


@given(st.binary(max_size=200))
def test_the_typed_reader_takes_any_bytes(value: bytes) -> None:
    decoder = typed_inference_decoder(CONTRACT)
    assert decoder.decode(value, []) is None
    assert decoder.decode(value, STRUCTURED_HEADERS) is None
