"""What a batch of messages becomes does not depend on who read them, nor on how they were cut."""

from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trimtab.archive.tables import Row, inference_table
from trimtab.arrow import decode_message
from trimtab.contracts.model import Contract, Feature, Prediction, Windows
from trimtab.events.cloudevents import batch_rows, encode_binary, encode_structured
from trimtab.events.types import Inference, InferenceBatch
from trimtab.monitor import decode as decode_module
from trimtab.monitor.columns import Rows, concatenate
from trimtab.monitor.decode import decode_records
from trimtab.monitor.views import ModelView
from trimtab.source import Partition
from trimtab.testing.arrow import arrow_headers, arrow_stream, arrow_table
from trimtab.testing.log import MemoryLog

PLACE = Partition("in", 0)
TASKS = ("binary", "regression")


def contract(task, *, attributions=False):
    return Contract(
        name="m",
        task=task,
        features={
            "x": Feature(kind="number"),
            "c": Feature(kind="category"),
            "y": Feature(kind="number"),
        },
        prediction=Prediction(attributions=attributions),
        windows=Windows(segments=("region",)),
    )


NUMBER = st.one_of(st.none(), st.floats(-10, 10), st.integers(-5, 5))
VALUES = st.one_of(NUMBER, st.sampled_from(["a", "b", "1", True, 1, 1.0, "x" * 300]))
TIMES = st.one_of(
    st.integers(0, 10**6), st.just(datetime(2024, 5, 6, 7, 8, 9, 123_000, tzinfo=UTC))
)


@st.composite
def inferences(draw):
    return Inference(
        id=draw(st.text(min_size=1, max_size=4)),
        model=draw(st.sampled_from(["m", "m", "m", "unknown"])),
        version=draw(st.sampled_from("12")),
        time=draw(TIMES),
        features=draw(
            st.dictionaries(st.sampled_from(["x", "y", "c", "new"]), VALUES, max_size=4)
            | st.fixed_dictionaries(
                {"x": NUMBER, "y": NUMBER, "c": st.sampled_from(["a", "b", "x" * 300])}
            )
        ),
        prediction=draw(VALUES),
        scores=draw(st.none() | st.just({"yes": 0.25})),
        latency_ms=draw(st.none() | st.floats(0, 9)),
        status=draw(st.sampled_from(["ok", "error"])),
        attributes=draw(st.just({}) | st.just({"region": "north"})),
        arm=draw(st.none() | st.just("challenger")),
        traffic_revision=draw(st.none() | st.just(3)),
        attributions=draw(
            st.none()
            | st.dictionaries(
                st.sampled_from(["x", "y", "c", "new", "other"]),
                st.floats(-1, 1) | st.integers(-3, 3),
                max_size=4,
            )
        ),
    )


@st.composite
def batches(draw):
    rows = draw(st.integers(1, 4))

    def column(kind):
        return draw(st.lists(kind, min_size=rows, max_size=rows))

    return InferenceBatch(
        id=draw(st.text(min_size=1, max_size=4)),
        model="m",
        version="1",
        time=draw(TIMES) if draw(st.booleans()) else column(TIMES),
        rows=rows,
        ids=draw(st.none()) if draw(st.booleans()) else column(st.text(min_size=1, max_size=3)),
        features={"x": column(NUMBER)} | ({"c": column(VALUES)} if draw(st.booleans()) else {}),
        prediction=column(VALUES) if draw(st.booleans()) else None,
        scores={"yes": column(st.floats(0, 1))} if draw(st.booleans()) else None,
        status=column(st.sampled_from(["ok", "timeout"])) if draw(st.booleans()) else None,
        attributions=attributions_of(draw, column),
    )


def attributions_of(draw, column):
    if draw(st.booleans()):
        return None
    names = draw(st.lists(st.sampled_from(["x", "c", "new", "other"]), unique=True))
    return {name: column(st.none() | st.floats(-1, 1)) for name in names}


@st.composite
def logs(draw):
    log = MemoryLog()
    for event in draw(st.lists(inferences() | batches(), min_size=1, max_size=12)):
        form = draw(st.sampled_from([encode_structured, encode_binary, None]))
        body, headers = (msgspec.json.encode(event), []) if form is None else form(event, "s")
        log.append(PLACE, body, 5, headers)
    if draw(st.booleans()):
        log.append(PLACE, draw(st.binary(max_size=9)), 5, [])
    return log.records[PLACE]


class GeneralOnly(ModelView):
    """A view whose typed decoder reads nothing."""

    @property
    def decoder(self):
        """The decoder's fields, without its reading."""
        return Deaf(super().decoder)


class Deaf:
    def __init__(self, decoder):
        self.no_attributions = decoder.no_attributions
        self.category_fields = decoder.category_fields

    def decode_all(self, values, headers):
        return [None] * len(values), False


def canonical(rows: Rows):
    """Every row as plain values, NaN as None."""
    numbers = [rows.feature_values()[name] for name in rows.number_names]
    errors = rows.number_errors
    return {
        "record": rows.record.tolist(),
        "offset": rows.offset.tolist(),
        "times": rows.times_ms.tolist(),
        "ids": [rows.id_of(i) for i in range(rows.size)],
        "hashes": rows.hashes.tolist(),
        "version": list(rows.version),
        "arm": list(rows.arm),
        "revision": rows.revision.tolist(),
        "status": list(rows.status),
        "latency": np.nan_to_num(rows.latency_ms, nan=-1).tolist(),
        "score": np.nan_to_num(rows.score, nan=-1).tolist(),
        "answers": rows.prediction_values(),
        "numbers": numbers,
        "errors": None if errors is None else errors.tolist(),
        "c": list(rows.categories["c"]),
        "region": list(rows.attributes["region"]),
    }


def read(records, view):
    decoded = decode_records(records, "inference", "in", {"m": view})
    return (
        {model: canonical(rows) for model, rows in decoded.rows.items()},
        decoded.units,
        decoded.ignored,
        decoded.rejects,
    )


@settings(deadline=None)
@given(logs(), st.sampled_from(TASKS), st.booleans(), st.integers(1, 5))
def test_typed_and_general_reading_and_any_chunks_give_the_same_columns(
    records, task, attributions, chunk
):
    of_model = contract(task, attributions=attributions)
    expected = read(records, GeneralOnly(1, of_model))
    assert read(records, ModelView(1, of_model)) == expected
    whole = decode_module.CHUNK
    try:
        decode_module.CHUNK = chunk
        assert read(records, ModelView(1, of_model)) == expected
    finally:
        decode_module.CHUNK = whole


@settings(deadline=None)
@given(logs(), st.sampled_from(TASKS), st.booleans())
def test_held_rows_survive_their_bytes(records, task, attributions):
    view = ModelView(1, contract(task, attributions=attributions))
    decoded = decode_records(records, "inference", "in", {"m": view})
    for rows in decoded.rows.values():
        back = Rows.from_bytes(rows.to_bytes())
        assert canonical(back) == canonical(rows)


CHANGED = (
    {},
    {"y": Feature(kind="number"), "new": Feature(kind="number")},
    {"x": Feature(kind="category"), "c": Feature(kind="number"), "y": Feature(kind="category")},
)


@settings(deadline=None)
@given(
    logs(),
    st.sampled_from(TASKS),
    st.sampled_from(TASKS),
    st.sampled_from(CHANGED),
    st.sampled_from([(), ("region",), ("zone", "region")]),
)
def test_held_rows_say_what_another_contract_reads_of_them_or_nothing(
    records, task, later_task, features, segments
):
    before = ModelView(1, contract(task))
    later = ModelView(
        2,
        Contract(name="m", task=later_task, features=features, windows=Windows(segments=segments)),
    )
    held = decode_records(records, "inference", "in", {"m": before}).rows
    read_anew = decode_records(records, "inference", "in", {"m": later}).rows
    for model, rows in held.items():
        found = Rows.from_bytes(rows.to_bytes()).under(later)
        expected = read_anew[model]
        columns = [
            (found.prediction_values(), expected.prediction_values()),
            *((list(found.attributes[name]), list(expected.attributes[name])) for name in segments),
        ]
        values, wanted = found.feature_values(), expected.feature_values()
        assert list(values) == list(wanted)
        columns += [(values[name], wanted[name]) for name in values]
        for mine, theirs in columns:
            assert all(a is None or a == b for a, b in zip(mine, theirs, strict=True))
        for name in ("y", "region"):  # what both read alike says the same
            if name in later.numbers:
                assert values[name] == wanted[name]
            if name in later.attributes:
                assert list(found.attributes[name]) == list(expected.attributes[name])
        if task == later_task:
            assert found.prediction_values() == expected.prediction_values()
        assert concatenate([found, expected]).size == 2 * rows.size


# --- Arrow ----------------------------------------------------------------------------------------

TEXT = st.text(max_size=4) | st.just("long" * 70)
OF_ONE_KIND = st.sampled_from(
    [st.floats(-10, 10), st.integers(-5, 5), st.booleans(), TEXT, st.sampled_from("ab")]
)


@st.composite
def uniform_batches(draw):
    """Batches whose columns hold one kind each, as Arrow's do."""
    rows = draw(st.integers(1, 6))

    def column(kind, *, null=True):
        kind = st.none() | kind if null and draw(st.booleans()) else kind
        return draw(st.lists(kind, min_size=rows, max_size=rows))

    def maybe(kind, *, null=True):
        return column(kind, null=null) if draw(st.booleans()) else None

    names = draw(st.lists(st.sampled_from(["x", "y", "c", "new", "a.b"]), unique=True))
    # 500 µs are a tie between two milliseconds.
    moments = st.integers(-(10**6), 10**6).map(
        lambda halves: datetime(2024, 1, 1, tzinfo=UTC) + halves * timedelta(microseconds=500)
    )
    time = st.integers(0, 10**6) if draw(st.booleans()) else moments
    return InferenceBatch(
        id=draw(st.text(min_size=1, max_size=4)),
        model=draw(st.sampled_from(["m", "m", "unknown"])),
        version="1",
        time=draw(st.integers(0, 10**6)) if draw(st.booleans()) else column(time, null=False),
        rows=rows,
        ids=maybe(st.text(min_size=1, max_size=3), null=False),
        features={name: column(draw(OF_ONE_KIND)) for name in names},
        prediction=maybe(draw(OF_ONE_KIND)),
        scores=None if draw(st.booleans()) else {"yes": column(st.floats(0, 1), null=False)},
        latency_ms=maybe(st.floats(0, 9)),
        status=maybe(st.sampled_from(["ok", "timeout"]), null=False),
        error=maybe(TEXT),
        attributes={"region": column(TEXT, null=False)} if draw(st.booleans()) else {},
        arm=maybe(st.sampled_from(["champion", "challenger"])),
        served_by=maybe(st.just("champion")),
        traffic_revision=maybe(st.integers(0, 9)),
        sample_rate=draw(st.sampled_from([1.0, 0.1])),
        attributions=attributions_of(draw, column),
    )


def one_record(body, headers):
    log = MemoryLog()
    log.append(PLACE, body, 5, headers)
    return log.records[PLACE]


@settings(deadline=None)
@given(
    uniform_batches(),
    st.sampled_from(TASKS),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(1, 4),
)
def test_arrow_and_json_give_the_same_columns_and_the_same_archive(
    batch, task, attributions, flat, dictionaries, most_rows
):
    body, headers = encode_binary(batch, "s")
    table = arrow_table(batch, flat=flat, dictionaries=dictionaries)
    assume(table.num_columns)  # without a column, Arrow has no place for the number of rows
    stream, arrow = arrow_stream(table, batch_rows=most_rows), arrow_headers(batch, "s")

    view = ModelView(1, contract(task, attributions=attributions))
    *expected, rejected = read(one_record(body, headers), view)
    *found, refused = read(one_record(stream, arrow), view)
    assert found == expected
    assert [(r.reason, r.rows) for r in refused] == [(r.reason, r.rows) for r in rejected]

    if not rejected:
        archived = [
            inference_table([Row(event, 0, 5) for event in rows_of(message, kind)])
            for message, kind in ((body, headers), (stream, arrow))
        ]
        assert archived[0].to_pylist() == archived[1].to_pylist()


def rows_of(body, headers):
    return batch_rows(decode_message(body, headers, "inference"))
