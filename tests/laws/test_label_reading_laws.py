"""Labels are read the same, whether together by the typed reader or one by one by the general one."""

from datetime import UTC, datetime

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.contracts.model import Contract, Feature, Labels
from trimtab.events.cloudevents import encode_binary, encode_structured
from trimtab.events.types import Label
from trimtab.monitor import decode as decode_module
from trimtab.monitor.decode import decode_records
from trimtab.monitor.views import ModelView
from trimtab.source import Partition
from trimtab.testing.log import MemoryLog

PLACE = Partition("labels", 0)
NOBODY = frozenset((-1,))
"""No offset: what is poison is read by the general reader, and so is all beside it."""


def views(task):
    return {
        name: ModelView(
            1,
            Contract(
                name=name,
                task=task,
                features={"x": Feature(kind="number")},
                labels=Labels(sources=("human", "unknown")),
            ),
        )
        for name in ("m", "n")
    }


VALUES = st.one_of(
    *(
        st.lists(kind, min_size=1, max_size=9)
        for kind in (
            st.sampled_from(["a", "b", "x" * 300, "\0", "ä"]),
            st.booleans(),
            st.integers(-2, 2),
            st.floats(-1, 1),
            st.none(),
            st.sampled_from(["a", 1, True, 1.0, None, "1", 2**62]),
        )
    )
)


@st.composite
def logs(draw):
    log = MemoryLog()
    for number, value in enumerate(draw(VALUES)):
        label = Label(
            inference_id=draw(st.text(min_size=1, max_size=3)),
            model=draw(st.sampled_from(["m", "m", "m", "n", "unknown"])),
            label=value,
            time=draw(st.sampled_from([5, datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)])),
            revision=draw(st.integers(0, 2)),
            retracted=draw(st.booleans()),
            source=draw(st.sampled_from(["unknown", "unknown", "human", "model"])),
        )
        form = draw(st.sampled_from([encode_structured, encode_structured, encode_binary, None]))
        body, headers = (msgspec.json.encode(label), []) if form is None else form(label, "s")
        log.append(
            PLACE, draw(st.sampled_from([body, body, body, b"", body[:-1]])), number, headers
        )
    return log.records[PLACE]


def read(records, task, poison=frozenset()):
    decoded = decode_records(records, "labels", "labels", views(task), poison)
    labels = {
        model: {
            name: None if column is None else column.tolist()
            for name, column in msgspec.structs.asdict(columns).items()
        }
        for model, columns in decoded.labels.items()
    }
    rejects = sorted(decoded.rejects, key=lambda reject: reject.record)
    return labels, decoded.units, decoded.ignored, rejects, decoded.payloads


@settings(deadline=None)
@given(logs(), st.sampled_from(["binary", "regression"]), st.integers(1, 9))
def test_typed_and_general_reading_and_any_chunks_give_the_same_labels(records, task, chunk):
    expected = read(records, task, NOBODY)
    assert read(records, task) == expected
    whole = decode_module.CHUNK
    try:
        decode_module.CHUNK = chunk
        assert read(records, task) == expected
    finally:
        decode_module.CHUNK = whole
