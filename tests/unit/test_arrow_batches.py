"""Arrow streams become batches or a reason, whatever the bytes are."""

import sys
from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import ipc

from trimtab.arrow import (
    CELLS_MAX,
    MESSAGES_MAX,
    STREAM_END,
    TEXT_CHARS_MAX,
    arrow_batch,
    decode_message,
    read_arrow,
)
from trimtab.cli_kafka import _inferences
from trimtab.contracts.model import Contract, Feature
from trimtab.events.cloudevents import (
    MESSAGE_BYTES_MAX,
    DecodeError,
    Reason,
    Role,
    batch_rows,
    is_arrow,
)
from trimtab.events.types import InferenceBatch, time_ms
from trimtab.monitor.decode import decode_records
from trimtab.monitor.views import ModelView
from trimtab.schemas_gen import EXAMPLES
from trimtab.source import Partition
from trimtab.testing.arrow import arrow_headers, arrow_stream, arrow_table
from trimtab.testing.log import MemoryLog

LEAST = {"id": "b", "model": "m", "version": "1", "time": "1"}
ARROW = [("content-type", b"application/vnd.apache.arrow.stream")]
EXAMPLE: Any = EXAMPLES["batch"]


def stream(columns: Any, metadata: Any = LEAST, **options: Any) -> bytes:
    table = pa.table(columns).replace_schema_metadata(metadata)
    return arrow_stream(table, **options)


def reason(value: bytes | None, headers: Any = ARROW, role: Role = "inference") -> Reason:
    with pytest.raises(DecodeError) as caught:
        read_arrow(value, headers, role)
    assert len(caught.value.detail) <= 300
    assert caught.value.detail.isprintable()
    return caught.value.reason


def column(name: str, values: Any) -> bytes:
    return stream({name: values})


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("dictionaries", [True, False])
def test_the_example_comes_back_as_it_was(flat: bool, dictionaries: bool) -> None:
    value = arrow_stream(arrow_table(EXAMPLE, flat=flat, dictionaries=dictionaries))
    headers = arrow_headers(EXAMPLE, "shop")
    assert decode_message(value, headers, "labels") == EXAMPLE
    assert decode_message(value, ARROW, "inference") == EXAMPLE
    assert arrow_batch(value) == EXAMPLE


def test_json_messages_are_read_as_before() -> None:
    assert decode_message(msgspec.json.encode(EXAMPLE), [], "inference") == EXAMPLE


def test_the_content_type_may_be_written_in_other_ways() -> None:
    assert is_arrow([("Content-Type", b"Application/vnd.apache.arrow.stream; charset=x")])
    assert not is_arrow([("content-type", None), ("ce_type", ARROW[0][1])])


def test_a_flattened_table_is_the_same_batch() -> None:
    table = arrow_table(EXAMPLE)
    assert arrow_batch(arrow_stream(table.flatten())) == arrow_batch(arrow_stream(table))


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1.5, None, 3.0], pa.float32()),
        pa.array([1.5, float("nan"), 3.0]),
        pa.array([1.5, None, 3.0], pa.float16()),
        pa.array([1.5, None, 3.0]).cast(pa.decimal128(9, 2)),
    ],
)
def test_every_kind_of_real_number_is_read_and_nan_is_missing(values: Any) -> None:
    assert arrow_batch(column("features.x", values)).features == {"x": [1.5, None, 3.0]}


@pytest.mark.filterwarnings("error")
def test_the_largest_floats_are_no_infinities() -> None:
    values = [1.7e308, -1.7e308, None, 5e-324]
    assert arrow_batch(column("features.x", values)).features == {"x": values}


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int32(), pa.uint32(), pa.uint64()])
def test_whole_numbers_stay_whole(kind: Any) -> None:
    batch = arrow_batch(column("prediction", pa.array([1, None, 127], kind)))
    assert batch.prediction == [1, None, 127]
    assert [type(value) for value in batch.prediction or []] == [int, type(None), int]


def test_nulls_are_missing_wherever_they_stand() -> None:
    inner = pa.array(["web", None])
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0], pa.int8()), inner)
    whole = pa.StructArray.from_arrays(
        [pa.array([1, 2, 3, 4])], ["x"], mask=pa.array([False, True, False, False])
    )
    batch = arrow_batch(
        stream(
            {
                "features": whole,
                "features.channel": texts,
                "error": pa.nulls(4),
                "traffic_revision": pa.array([1.0, None, 3.0, float("nan")]),
                "scores.yes": pa.array([0.5, None, 0.25, float("nan")]),
                "latency_ms": pa.nulls(4),
            }
        )
    )
    assert batch.features == {"x": [1, None, 3, 4], "channel": ["web", None, None, "web"]}
    assert batch.error == batch.latency_ms == [None] * 4
    assert batch.traffic_revision == [1, None, 3, None]
    assert str((batch.scores or {})["yes"]) == "[0.5, nan, 0.25, nan]"


def test_a_dictionary_with_equal_texts_and_unused_ones_is_read() -> None:
    texts = pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 2]), pa.array(["ok", "ok", "error", "unused"])
    )
    assert arrow_batch(column("status", texts)).status == ["ok", "ok", "error"]


def test_dictionaries_may_change_between_record_batches() -> None:
    kind = pa.schema([pa.field("features.c", pa.dictionary(pa.int8(), pa.string()))], LEAST)
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, kind) as writer:
        for texts in (["a", "b"], [], ["c", None]):
            array = pa.array(texts, pa.string()).dictionary_encode().cast(kind.field(0).type)
            writer.write_batch(pa.record_batch([array], schema=kind))
    assert arrow_batch(sink.getvalue().to_pybytes()).features == {"c": ["a", "b", "c", None]}


def test_columns_of_other_names_are_ignored() -> None:
    lists = pa.array([[1], [2]])
    value = stream({"embedding": lists, "time.zone": ["a", "b"], "latency_ms": [1.0, 2.0]})
    assert arrow_batch(value) == InferenceBatch(
        id="b", model="m", version="1", time=1, rows=2, latency_ms=[1.0, 2.0]
    )


# --- times ----------------------------------------------------------------------------------------

MOMENTS = [
    datetime(1900, 1, 1, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999_500, UTC),
    datetime(1970, 1, 1, 0, 0, 0, 500, UTC),
    datetime(1970, 1, 1, 0, 0, 0, 1_500, UTC),
    datetime(2024, 5, 6, 7, 8, 9, 123_500, UTC),
    datetime(2199, 12, 31, 23, 59, 59, 999_000, UTC),
]


def test_parts_of_a_millisecond_are_cut_as_in_json() -> None:
    value = column("time", pa.array(MOMENTS, pa.timestamp("us", "Europe/Berlin")))
    assert arrow_batch(value).time == [time_ms(moment) for moment in MOMENTS]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_of_every_unit_are_read(unit: str) -> None:
    moment = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    value = column("time", pa.array([moment], pa.timestamp(unit, "UTC")))
    assert arrow_batch(value).time == [time_ms(moment)]


@pytest.mark.parametrize("text", ["1715000000000", "2024-05-06T12:53:20Z"])
def test_one_time_for_all_rows_is_milliseconds_or_rfc_3339(text: str) -> None:
    assert arrow_batch(stream({"latency_ms": [1.0]}, LEAST | {"time": text})).time == 1715000000000


def test_a_time_column_goes_before_the_metadata() -> None:
    assert arrow_batch(column("time", [5, 6])).time == [5, 6]


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (pa.array([0], pa.timestamp("ms")), Reason.NAIVE_TIME),
        (pa.array([-(2**63)], pa.timestamp("s", "UTC")), Reason.BAD_TIME),
        (pa.array([7_258_118_400], pa.timestamp("s", "UTC")), Reason.BAD_TIME),
        (pa.array([2**62]), Reason.BAD_TIME),
        (pa.array([0, None]), Reason.WRONG_TYPE),
        (pa.array([0.0]), Reason.WRONG_TYPE),
        (pa.array(["2024-05-06T12:53:20Z"]), Reason.WRONG_TYPE),
        (pa.array([0]).cast(pa.date64()), Reason.WRONG_TYPE),
    ],
)
def test_a_bad_time_column_has_a_reason(time: Any, expected: Reason) -> None:
    assert reason(column("time", time)) == expected


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2024-05-06T12:53:20", Reason.NAIVE_TIME),
        ("2200-01-01T00:00:00Z", Reason.BAD_TIME),
        ("9" * 18, Reason.BAD_TIME),
        ("9" * 5_000, Reason.BAD_TIME),
        ("noon", Reason.BAD_TIME),
        ("", Reason.BAD_TIME),
    ],
)
def test_a_bad_time_for_all_rows_has_a_reason(time: str, expected: Reason) -> None:
    assert reason(stream({"latency_ms": [1.0]}, LEAST | {"time": time})) == expected


# --- reasons --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", LEAST)
def test_metadata_that_lacks_a_key_is_a_missing_field(key: str) -> None:
    rest = {name: text for name, text in LEAST.items() if name != key}
    assert reason(stream({"latency_ms": [1.0]}, rest)) == Reason.MISSING_FIELD
    assert reason(stream({"latency_ms": [1.0]}, None)) == Reason.MISSING_FIELD


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"id": ""}, Reason.BAD_VALUE),
        ({"id": "i" * 257}, Reason.BAD_VALUE),
        ({"model": "m" * 201}, Reason.BAD_VALUE),
        ({"version": "a\0b"}, Reason.NUL_CHARACTER),
        ({"model": b"\xff"}, Reason.BAD_UTF8),
        ({"sample_rate": "0"}, Reason.BAD_VALUE),
        ({"sample_rate": "nan"}, Reason.BAD_VALUE),
        ({"sample_rate": "half"}, Reason.WRONG_TYPE),
    ],
)
def test_bad_metadata_has_a_reason(metadata: Any, expected: Reason) -> None:
    assert reason(stream({"latency_ms": [1.0]}, LEAST | metadata)) == expected


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("ids", ["a", ""], Reason.BAD_VALUE),
        ("ids", ["a", "i" * 257], Reason.BAD_VALUE),
        ("ids", ["a", None], Reason.WRONG_TYPE),
        ("ids", [1, 2], Reason.WRONG_TYPE),
        ("status", ["ok", "fine"], Reason.BAD_VALUE),
        ("status", pa.nulls(1), Reason.WRONG_TYPE),
        ("arm", ["a" * 41], Reason.BAD_VALUE),
        ("attributes.region", ["north", None], Reason.WRONG_TYPE),
        ("traffic_revision", [0.5], Reason.WRONG_TYPE),
        ("traffic_revision", [True], Reason.WRONG_TYPE),
        ("traffic_revision", pa.array([2**63], pa.uint64()), Reason.BAD_VALUE),
        ("latency_ms", ["1"], Reason.WRONG_TYPE),
        ("scores.yes", [True], Reason.WRONG_TYPE),
        ("features.x", [1.0, float("inf")], Reason.NOT_FINITE),
        ("features.x", pa.array([2**63], pa.uint64()), Reason.BAD_VALUE),
        ("features.x", ["a\0b"], Reason.NUL_CHARACTER),
        ("features.a\0b", [1.0], Reason.NUL_CHARACTER),
        ("error", ["a\0b"], Reason.NUL_CHARACTER),
        ("features.x", [[1.0]], Reason.WRONG_TYPE),
        ("features.x", [{"a": 1.0}], Reason.WRONG_TYPE),
        ("features", [1.0], Reason.WRONG_TYPE),
        ("features", [{"x": {"a": 1.0}}], Reason.WRONG_TYPE),
        ("features.x", pa.array([b"a"]), Reason.WRONG_TYPE),
        ("features.x", pa.array(["a"], pa.string_view()), Reason.WRONG_TYPE),
        ("features.x", pa.array([1, 1]).dictionary_encode(), Reason.WRONG_TYPE),
        ("features.x", pa.RunEndEncodedArray.from_arrays([9], [1.0]), Reason.WRONG_TYPE),
    ],
)
def test_a_bad_column_has_a_reason(name: str, values: Any, expected: Reason) -> None:
    assert reason(column(name, values)) == expected


def test_two_columns_of_one_name_are_refused() -> None:
    both = {"features": pa.array([{"x": 1.0}]), "features.x": [1.0]}
    assert reason(stream(both)) == Reason.BAD_VALUE


def test_text_that_is_no_utf8_is_refused() -> None:
    binary = column("features.x", pa.array(["£" * 50]))
    assert reason(binary.replace("£".encode(), b"\xff\xff")) == Reason.BAD_UTF8


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Reason.EMPTY),
        (b"", Reason.EMPTY),
        (b"\xff" * (MESSAGE_BYTES_MAX + 1), Reason.TOO_LARGE),
        (b'{"id": "a"}', Reason.BAD_ARROW),
        (STREAM_END, Reason.BAD_ARROW),
    ],
)
def test_what_is_no_arrow_stream_has_a_reason(value: bytes | None, expected: Reason) -> None:
    assert reason(value) == expected


def test_only_one_whole_stream_is_read() -> None:
    good = column("latency_ms", [1.0])
    assert reason(good.removesuffix(STREAM_END)) == Reason.BAD_ARROW
    assert reason(good + good) == Reason.BAD_ARROW
    assert reason(good.removesuffix(STREAM_END) + good) == Reason.BAD_ARROW
    assert reason(good + bytes(8)) == Reason.BAD_ARROW


def test_only_inference_batches_come_as_arrow() -> None:
    good = column("latency_ms", [1.0])
    assert reason(good, ARROW, "labels") == Reason.UNSUPPORTED_CONTENT_TYPE
    other = [*ARROW, ("ce_type", b"io.trimtab.inference.v1")]
    assert reason(good, other) == Reason.UNSUPPORTED_CONTENT_TYPE
    newer = [*ARROW, ("ce_specversion", b"2.0")]
    assert reason(good, newer) == Reason.UNSUPPORTED_SPEC_VERSION


def test_without_pyarrow_the_detail_says_what_to_install(monkeypatch: Any) -> None:
    good = column("latency_ms", [1.0])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DecodeError, match=r"Install trimtab\[monitor\]") as caught:
        read_arrow(good, ARROW, "inference")
    assert caught.value.reason == Reason.UNSUPPORTED_CONTENT_TYPE


# --- hostile --------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_bodies_are_refused_unread(codec: str) -> None:
    columns = {"features.x": pa.array([0.0] * 10_000)}
    value = stream(columns, compression=codec)
    assert len(value) < 2_000
    assert reason(value) == Reason.BAD_ARROW


def test_compressed_dictionaries_are_refused_unread() -> None:
    texts = pa.array(["a" * 100_000]).dictionary_encode()
    assert reason(stream({"features.x": texts}, compression="zstd")) == Reason.BAD_ARROW


def test_extension_types_are_refused_unread() -> None:
    kind = pa.schema(
        [pa.field("features.x", pa.string(), metadata={"ARROW:extension:name": "arrow.json"})],
        LEAST,
    )
    assert reason(arrow_stream(pa.table([["{}"]], schema=kind))) == Reason.BAD_ARROW


def test_rows_are_counted_over_all_record_batches() -> None:
    columns = {"features.x": pa.array([1.0] * 10_001)}
    assert reason(stream(columns, batch_rows=600)) == Reason.BAD_VALUE
    assert reason(stream({"features.x": pa.nulls(0)})) == Reason.BAD_VALUE
    most = {"features.x": pa.array([1.0] * 10_000)}
    assert arrow_batch(stream(most, batch_rows=600)).rows == 10_000


@pytest.mark.parametrize("rows", [-(2**62), -1, 10_001, 2**40, 2**62])
@pytest.mark.parametrize("values", [pa.nulls(1_003), pa.array(["a"] * 1_003).dictionary_encode()])
def test_a_claim_of_more_rows_than_there_are_costs_nothing(values: Any, rows: int) -> None:
    honest = column("features.x", values)
    claimed = honest.replace((1_003).to_bytes(8, "little"), rows.to_bytes(8, "little", signed=True))
    assert claimed != honest
    assert reason(claimed) in (Reason.BAD_VALUE, Reason.BAD_ARROW)


def test_columns_that_cost_the_sender_nothing_are_bounded() -> None:
    rows = 10_000
    columns = {f"features.x{k}": pa.nulls(rows) for k in range(CELLS_MAX // rows + 1)}
    assert reason(stream(columns)) == Reason.BAD_VALUE
    columns.popitem()
    assert arrow_batch(stream(columns)).rows == rows


def test_text_of_a_dictionary_is_bounded_as_if_each_row_had_its_own() -> None:
    def repeated(chars: int) -> bytes:
        texts = pa.DictionaryArray.from_arrays(
            pa.array([0] * 10_000, pa.int16()), pa.array(["a" * chars, "b" * 1_000])
        )
        return column("features.x", texts)

    most = TEXT_CHARS_MAX // 10_000
    assert arrow_batch(repeated(most)).rows == 10_000
    assert reason(repeated(most + 1)) == Reason.BAD_VALUE


def test_arrow_messages_are_bounded() -> None:
    value = stream({"latency_ms": [1.0] * MESSAGES_MAX}, batch_rows=1)
    assert reason(value) == Reason.BAD_ARROW


def damaged_seeds() -> list[bytes]:
    rows = InferenceBatch(
        id="b",
        model="m",
        version="1",
        time=[1, 2, 3],
        rows=3,
        ids=["a", "b", "c"],
        features={"x": [1.5, None, 2.0], "c": ["a", None, "a"], "k": [True, None, False]},
        prediction=[1, 2, None],
        status=["ok", "ok", "error"],
        traffic_revision=[1, 1, 1],
    )
    return [
        arrow_stream(arrow_table(rows, flat=flat, dictionaries=coded), batch_rows=2)
        for flat in (True, False)
        for coded in (True, False)
    ]


SEEDS = damaged_seeds()


def rows_or_reason(value: bytes) -> int | Reason:
    try:
        return arrow_batch(value).rows
    except DecodeError as error:
        return error.reason


@given(st.data())
def test_a_damaged_stream_is_a_batch_or_a_reason(data: Any) -> None:
    value = bytearray(data.draw(st.sampled_from(SEEDS)))
    if data.draw(st.booleans()):
        del value[data.draw(st.integers(0, len(value) - 1)) :]
    places = st.lists(st.integers(0, max(len(value) - 1, 0)), max_size=5)
    for place in data.draw(places) if value else ():
        value[place] = data.draw(st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))
    assert rows_or_reason(bytes(value)) in (1, 2, 3, *Reason)


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_that_is_cut_is_refused(seed: int) -> None:
    for end in range(1, len(SEEDS[seed])):
        with pytest.raises(DecodeError):
            arrow_batch(SEEDS[seed][:end])


# --- in the monitor -------------------------------------------------------------------------------


def decoded(columns: Any, *, metadata: Any = LEAST, topics: tuple[str, ...] = ()) -> Any:
    log = MemoryLog()
    log.append(Partition("in", 0), stream(columns, metadata), 5, ARROW)
    contract = Contract(
        name="m",
        task="regression",
        features={"x": Feature(kind="number"), "y": Feature(kind="number")},
    )
    if topics:
        source = msgspec.structs.replace(contract.source, topics=topics)
        contract = msgspec.structs.replace(contract, source=source)
    views = {"m": ModelView(1, contract)}
    return decode_records(log.records[Partition("in", 0)], "inference", "in", views)


def test_text_and_booleans_in_a_number_feature_are_type_errors_of_their_rows() -> None:
    got = decoded(
        {"features.x": ["1", None], "features.y": [None, True], "prediction": ["1.5", None]}
    ).rows["m"]
    assert got.number_errors.tolist() == [[True, False], [False, True]]
    assert got.answers.errors.tolist() == [True, False]
    assert got.feature_values() == {"x": [None, None], "y": [None, None]}


def test_rows_of_an_unknown_model_and_of_another_topic_are_counted() -> None:
    unknown = decoded({"latency_ms": [1.0, 2.0]}, metadata=LEAST | {"model": "other"})
    assert list(unknown.ignored.values()) == [2]
    elsewhere = decoded({"latency_ms": [1.0, 2.0]}, topics=("other",))
    (reject,) = elsewhere.rejects
    assert (reject.reason, reject.rows) == ("wrong_topic", 2)
    assert unknown.units == elsewhere.units == {"row": 2}


def test_a_bad_stream_is_one_rejected_row() -> None:
    out = decoded({"latency_ms": ["slow"]})
    (reject,) = out.rejects
    assert (reject.unit, reject.reason, reject.rows) == ("row", "wrong_type", 1)
    assert out.units == {"row": 1}


def test_a_first_contract_may_be_drafted_from_arrow_batches() -> None:
    log = MemoryLog()
    value = arrow_stream(arrow_table(EXAMPLE))
    for body in (value, value[:-1]):
        log.append(Partition("in", 0), body, 5, ARROW)
    good, bad = log.records[Partition("in", 0)]
    assert _inferences(good) == batch_rows(EXAMPLE)
    assert _inferences(bad) == []
