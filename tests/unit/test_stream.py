import gzip
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import NotFoundError, TrimtabError
from trimtab.events.cloudevents import Event, decode
from trimtab.events.types import Inference, Label
from trimtab.stream import StreamOptions, count_rows, parse_time_ms, stream_file

CSV = "when,x,kind,p,truth\n0,1.5,3,0.2,no\n10,,4,0.7,yes\n20,2.5,3,0.9,yes\n"


class Future:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def add_callback(self, call: Callable[[Any], None]) -> None:
        if self.error is None:
            call(None)

    def add_errback(self, call: Callable[[BaseException], None]) -> None:
        if self.error is not None:
            call(self.error)


class Client:
    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.events: list[Event] = []
        self.keys: list[bytes] = []
        self.closed = False

    def send(self, topic: str, value: bytes, key: bytes, headers: Any) -> Future:
        event = decode(value, headers, "inference")
        assert topic == ("trimtab.labels" if isinstance(event, Label) else "trimtab.inference")
        self.events.append(event)
        self.keys.append(key)
        return Future(self.error)

    def flush(self, timeout: float) -> None:
        pass

    def close(self, timeout: float) -> None:
        self.closed = True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "loans.csv"
    file.write_text(CSV)
    return file


def sent(options: StreamOptions, **how: Any) -> list[Event]:
    client = Client()
    stream_file(options, producer_factory=lambda: client, **how)
    assert client.closed
    return client.events


def test_columns_become_features_scores_and_labels_in_the_order_of_event_time(path: Path) -> None:
    options = StreamOptions(
        path=path,
        model="loans",
        version="2",
        label_column="truth",
        time_column="when",
        score_column="p",
        score_class="yes",
        categories=frozenset({"kind"}),
        label_delay="15s",
    )
    events = sent(options)
    assert [
        ("label", event.inference_id) if isinstance(event, Label) else ("row", event.id)  # type: ignore[union-attr]
        for event in events
    ] == [
        ("row", "loans-0"),
        ("row", "loans-1"),
        ("label", "loans-0"),
        ("row", "loans-2"),
        ("label", "loans-1"),
        ("label", "loans-2"),
    ]
    second = events[1]
    assert isinstance(second, Inference)
    assert second == Inference(
        id="loans-1",
        model="loans",
        version="2",
        time=10_000,
        features={"x": None, "kind": "4"},
        scores={"yes": 0.7},
    )
    label = events[2]
    assert isinstance(label, Label)
    assert (label.label, label.time, label.source) == ("no", 15_000, "outcome")


def test_the_previous_label_is_a_baseline_predictor(path: Path) -> None:
    options = StreamOptions(
        path=path, model="m", label_column="truth", predict="previous-label", features={"X": "x"}
    )
    rows = [event for event in sent(options) if isinstance(event, Inference)]
    assert [row.prediction for row in rows] == [None, "no", "yes"]
    assert rows[0].features == {"X": 1.5}


def test_a_constant_and_a_column_may_predict(path: Path) -> None:
    constant = StreamOptions(path=path, model="m", predict="constant:7", limit=1)
    column = StreamOptions(path=path, model="m", prediction_column="kind", limit=1)
    (first,), (second,) = sent(constant), sent(column)
    assert isinstance(first, Inference)
    assert isinstance(second, Inference)
    assert (first.prediction, second.prediction) == (7, 3)
    assert "kind" not in second.features


def test_times_are_made_from_a_start_and_an_interval(path: Path) -> None:
    options = StreamOptions(
        path=path, model="m", start=datetime(2026, 1, 1, tzinfo=UTC), interval="30 min"
    )
    client = Client()
    result = stream_file(options, producer_factory=lambda: client)
    assert (result.first_ms, result.last_ms) == (1_767_225_600_000, 1_767_229_200_000)
    assert (result.rows, result.inferences, result.labels) == (3, 3, 0)


def test_the_same_file_gives_the_same_events(path: Path) -> None:
    options = StreamOptions(path=path, model="m", time_column="when", label_column="truth")
    assert sent(options) == sent(options)


def test_progress_and_pace_are_called(tmp_path: Path) -> None:
    file = tmp_path / "long.csv"
    file.write_text("x\n" + "1\n" * 250)
    done: list[tuple[int, int | None]] = []
    paced: list[int] = []
    options = StreamOptions(path=file, model="m", limit=240)
    sent(options, progress=lambda rows, total: done.append((rows, total)), pace=paced.append)
    assert done == [(100, 240), (200, 240), (240, 240)]
    assert paced == [100, 200]


def test_a_rate_makes_it_wait_between_rows(path: Path) -> None:
    waits: list[float] = []
    sent(StreamOptions(path=path, model="m", rate=0.01), sleep=waits.append)
    assert len(waits) == 2
    assert 90 < waits[0] < 100 < waits[1] < 200


def test_packed_csv_and_parquet_hold_the_same(path: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    packed = tmp_path / "loans.csv.gz"
    packed.write_bytes(gzip.compress(CSV.encode()))
    parquet = tmp_path / "loans.parquet"
    pq.write_table(
        pa.table(
            {
                "when": [0, 10, 20],
                "x": [1.5, None, 2.5],
                "kind": [3, 4, 3],
                "p": [0.2, 0.7, 0.9],
                "truth": ["no", "yes", "yes"],
            }
        ),
        parquet,
    )
    plain, *others = (
        sent(StreamOptions(path=file, model="m", time_column="when", label_column="truth"))
        for file in (path, packed, parquet)
    )
    assert others == [plain, plain]
    assert [count_rows(file) for file in (path, packed, parquet)] == [3, 3, 3]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"label_column": "turth"}, "no column 'turth'. Columns: when, x"),
        ({"features": {"a": "b"}}, "no column 'b'"),
        ({"predict": "oracle"}, "no predictor"),
        ({"predict": "previous-label"}, "needs a label column"),
        ({"predict": "constant:1", "prediction_column": "p"}, "not both"),
        ({"rate": 0.0}, "must be positive"),
        ({"time_column": "truth"}, "Row 1 has no usable time"),
        ({"score_column": "truth"}, "Row 1, column 'truth': 'no' is no number"),
    ],
)
def test_wrong_options_say_what_is_wrong(
    path: Path, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(TrimtabError, match=expected):
        sent(StreamOptions(path=path, model="m", **options))


def test_wrong_files_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        sent(StreamOptions(path=tmp_path / "none.csv", model="m"))
    ragged, other = tmp_path / "ragged.csv", tmp_path / "data.json"
    ragged.write_text("a,b\n1,2\n3\n")
    other.write_text("{}")
    with pytest.raises(TrimtabError, match="line 3: 1 values under 2 columns"):
        sent(StreamOptions(path=ragged, model="m"))
    with pytest.raises(TrimtabError, match="no known kind"):
        sent(StreamOptions(path=other, model="m"))


def test_an_event_that_kafka_does_not_take_is_an_error(path: Path) -> None:
    client = Client(ConnectionError("gone"))
    with pytest.raises(TrimtabError, match="did not take an event"):
        stream_file(StreamOptions(path=path, model="m"), producer_factory=lambda: client)
    assert client.closed


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1970-01-01T00:00:01Z", 1_000),
        ("1970-01-01 01:00:01+01:00", 1_000),
        ("1970-01-01 00:00:01", 1_000),
        ("1.5", 1_500),
        (1_767_225_600, 1_767_225_600_000),
        (1_767_225_600_000, 1_767_225_600_000),
        (datetime(1970, 1, 1, 0, 0, 1), 1_000),  # noqa: DTZ001 - taken as UTC, as documented
    ],
)
def test_times_are_read_in_their_usual_forms(value: Any, expected: int) -> None:
    assert parse_time_ms(value) == expected
