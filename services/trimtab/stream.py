"""The engine of `trimtab stream`: a CSV or Parquet file as inference events and labels.

Rows are sent in file order. A label is sent as soon as an inference at or after the label's time
is due (label delay is in event time), so both arrive as they would have. Unlike the SDK this waits:
Kafka's acknowledgements bound what is under way, and a lost event is an error.

Ids are deterministic (`PREFIX-ROW`, or a column), so streaming the same file with the same times
again brings duplicates, which the monitor counts as such.
"""

import csv
import gzip
import heapq
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from trimtab.contracts.model import duration_ms
from trimtab.errors import NotFoundError, TrimtabError
from trimtab.events.cloudevents import encode_structured, event_key
from trimtab.events.types import Inference, Label, LabelSource, Scalar
from trimtab.events.types import time_ms as event_time_ms
from trimtab.sdk.plain import scalar
from trimtab.sdk.producer import close_producer, make_producer

UNDER_WAY_MAX = 5_000
"""Events sent and not yet acknowledged."""
ACKNOWLEDGE_LIMIT_S = 60.0
PACE_EVERY_EVENTS = 100
PREVIOUS_LABEL = "previous-label"
_SECONDS_MAX = 100_000_000_000
"""A numeric time below this (the year 5138) is in seconds, from it on in milliseconds."""
_MISSING = {"", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?"}

Progress = Callable[[int, int | None], None]
"""Called with (rows done, rows in all if known)."""
Pace = Callable[[int], None]
"""Called with the number of events sent; may wait."""


class StreamOptions(Struct, frozen=True, kw_only=True):
    """What to stream, and how."""

    path: Path
    """A .csv, .csv.gz or .parquet file."""
    model: str
    version: str = "1"
    bootstrap_servers: str = "127.0.0.1:9092"
    api_version: str | tuple[int, ...] | None = None
    client: dict[str, Any] = field(default_factory=dict)
    topic_prefix: str = "trimtab"
    features: dict[str, str] = field(default_factory=dict)
    """Feature name to column; empty: every column that has no other use, under its own name."""
    categories: frozenset[str] = frozenset()
    """Features sent as text even where the file holds numbers."""
    prediction_column: str | None = None
    score_column: str | None = None
    score_class: str = "positive"
    """The class whose score `score_column` holds."""
    label_column: str | None = None
    time_column: str | None = None
    """ISO 8601 (UTC where it has no offset), or seconds or milliseconds since the epoch."""
    id_column: str | None = None
    id_prefix: str | None = None
    """Default: the file's name up to the first dot."""
    version_column: str | None = None
    latency_column: str | None = None
    predict: str | None = None
    """Without a prediction column: "previous-label", the baseline that answers with the label of the
    row before (it needs no model and shows what autocorrelated labels alone give), or
    "constant:VALUE"."""
    rate: float | None = None
    """Inferences per second; None: as fast as Kafka takes them."""
    start: datetime | int | None = None
    """Event time of the first row where no column gives times. Default: such that the last label
    falls about now; with `rate`, now."""
    interval: str | None = None
    """Event time between rows where no column gives times. Default: 1 s; with `rate`, its inverse."""
    label_delay: str = "0s"
    """Event time from an inference to its label."""
    label_source: LabelSource = "outcome"
    limit: int | None = None
    """At most so many rows."""


class StreamResult(Struct, frozen=True):
    """What was sent, all of it acknowledged."""

    rows: int
    inferences: int
    labels: int
    first_ms: int | None
    last_ms: int | None
    """Event times of the first and last inference."""
    seconds: float


def stream_file(
    options: StreamOptions,
    progress: Progress | None = None,
    pace: Pace | None = None,
    *,
    producer_factory: Callable[[], Any] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> StreamResult:
    """Stream the file to Kafka; return when every event is acknowledged.

    `pace` is called every 100 events and may wait, so that a slow reader is not overrun.
    Raises NotFoundError for a missing file, TrimtabError for a wrong column, value or time, or when
    Kafka does not take an event.
    """
    begin_s = time.monotonic()
    total = _checked(options)
    factory = producer_factory or (
        lambda: make_producer(
            options.bootstrap_servers,
            client_id="trimtab-stream",
            version=options.api_version,
            options=options.client,
        )
    )
    sender = _BlockingSender(factory, options, pace)
    inferences = labels = 0
    first_ms = last_ms = None
    try:
        for inference, due in _events(options, total):
            for label in due:
                sender.send("labels", label)
                labels += 1
            if inference is None:
                continue
            if options.rate:
                behind_s = begin_s + inferences / options.rate - time.monotonic()
                if behind_s > 0:
                    sleep(behind_s)
            sender.send("inference", inference)
            inferences += 1
            last_ms = event_time_ms(inference.time)
            first_ms = last_ms if first_ms is None else first_ms
            if progress is not None and inferences % PACE_EVERY_EVENTS == 0:
                progress(inferences, total)
        sender.finish()
    finally:
        sender.close()
    if progress is not None:
        progress(inferences, total)
    return StreamResult(
        inferences, inferences, labels, first_ms, last_ms, time.monotonic() - begin_s
    )


class _BlockingSender:
    """Sends events and waits when too many are under way."""

    def __init__(
        self, factory: Callable[[], Any], options: StreamOptions, pace: Pace | None
    ) -> None:
        try:
            self._producer = factory()
        except Exception as error:
            raise TrimtabError(
                f"Kafka at {options.bootstrap_servers} cannot be reached ({error}). "
                "Check the address, and api_version for the embedded broker."
            ) from error
        self._prefix = options.topic_prefix
        self._source = f"trimtab/stream/{options.model}"
        self._pace = pace
        self._free = threading.Semaphore(UNDER_WAY_MAX)
        self._fault: BaseException | None = None
        self._sent = 0

    def send(self, topic: str, event: Inference | Label) -> None:
        value, headers = encode_structured(event, self._source)
        if not self._free.acquire(timeout=ACKNOWLEDGE_LIMIT_S):
            raise TrimtabError(
                f"Kafka acknowledged nothing for {ACKNOWLEDGE_LIMIT_S:g} s. Check the broker."
            )
        self._check()
        future = self._producer.send(
            f"{self._prefix}.{topic}", value=value, key=event_key(event), headers=headers
        )
        future.add_callback(self._acknowledged)
        future.add_errback(self._failed)
        self._sent += 1
        if self._pace is not None and self._sent % PACE_EVERY_EVENTS == 0:
            self._pace(self._sent)

    def finish(self) -> None:
        self._producer.flush(timeout=ACKNOWLEDGE_LIMIT_S)
        self._check()
        for _ in range(UNDER_WAY_MAX):  # every permit back means every event acknowledged
            if not self._free.acquire(timeout=ACKNOWLEDGE_LIMIT_S):
                raise TrimtabError("Kafka did not acknowledge the last events. Check the broker.")
        self._check()

    def close(self) -> None:
        close_producer(self._producer, 5)

    def _acknowledged(self, _: object) -> None:
        self._free.release()

    def _failed(self, error: BaseException) -> None:
        self._fault = self._fault or error
        self._free.release()

    def _check(self) -> None:
        if self._fault is not None:
            raise TrimtabError(f"Kafka did not take an event ({self._fault}). Check the broker.")


# --- rows to events, without Kafka ----------------------------------------------------------------


def _events(
    options: StreamOptions, total: int | None
) -> Iterator[tuple[Inference | None, list[Label]]]:
    """Yield (inference, labels due before it) in order; at the end (None, the remaining labels)."""
    delay_ms = duration_ms(options.label_delay)
    prefix = options.id_prefix or options.path.name.partition(".")[0]
    clock = _Clock(options, total, delay_ms)
    waiting: list[tuple[int, int, Label]] = []
    previous: Scalar = None
    for index, row in enumerate(read_rows(options.path)):
        if options.limit is not None and index >= options.limit:
            break
        moment_ms = clock.time_ms(index, row)
        inference_id = (
            f"{prefix}-{index}" if options.id_column is None else str(row[options.id_column])
        )
        label = None if options.label_column is None else _value(row[options.label_column])
        due = []
        while waiting and waiting[0][0] <= moment_ms:
            due.append(heapq.heappop(waiting)[2])
        yield _inference(options, row, index, inference_id, moment_ms, previous), due
        previous = label
        if label is not None:
            at_ms = moment_ms + delay_ms
            event = Label(
                inference_id=inference_id,
                model=options.model,
                label=label,
                time=at_ms,
                source=options.label_source,
            )
            heapq.heappush(waiting, (at_ms, index, event))
    yield None, [heapq.heappop(waiting)[2] for _ in range(len(waiting))]


def _inference(
    options: StreamOptions,
    row: dict[str, Any],
    index: int,
    inference_id: str,
    moment_ms: int,
    previous: Scalar,
) -> Inference:
    if options.prediction_column is not None:
        prediction = _value(row[options.prediction_column])
    elif options.predict == PREVIOUS_LABEL:
        prediction = previous
    elif options.predict is not None:
        prediction = _value(options.predict.partition(":")[2])
    else:
        prediction = None
    score = _number(row, options.score_column, index)
    latency_ms = _number(row, options.latency_column, index)
    features = {}
    for name, column in _feature_columns(options, row).items():
        value = _value(row[column])
        text = name in options.categories and value is not None
        features[name] = _category(row[column]) if text else value
    return Inference(
        id=inference_id,
        model=options.model,
        version=options.version
        if options.version_column is None
        else str(row[options.version_column]),
        time=moment_ms,
        features=features,
        prediction=prediction,
        scores={options.score_class: score} if score is not None else None,
        latency_ms=latency_ms,
    )


def _feature_columns(options: StreamOptions, row: dict[str, Any]) -> dict[str, str]:
    if options.features:
        return options.features
    used = set(_named_columns(options))
    return {name: name for name in row if name not in used}


def _named_columns(options: StreamOptions) -> list[str]:
    names = (
        options.prediction_column,
        options.score_column,
        options.label_column,
        options.time_column,
        options.id_column,
        options.version_column,
        options.latency_column,
    )
    return [name for name in names if name is not None]


class _Clock:
    """Event times: from a column, or a start and an interval."""

    def __init__(self, options: StreamOptions, total: int | None, delay_ms: int) -> None:
        self._column = options.time_column
        if options.interval is not None:
            self._interval_ms = float(duration_ms(options.interval))
        else:
            self._interval_ms = 1000.0 / options.rate if options.rate else 1000.0
        now_ms = time.time_ns() // 1_000_000
        if options.start is not None:
            self._start_ms = event_time_ms(options.start)
        elif options.rate:
            self._start_ms = now_ms
        else:
            self._start_ms = now_ms - delay_ms - round((total or 0) * self._interval_ms)

    def time_ms(self, index: int, row: dict[str, Any]) -> int:
        if self._column is None:
            return self._start_ms + round(index * self._interval_ms)
        try:
            return parse_time_ms(row[self._column])
        except ValueError as error:
            raise TrimtabError(
                f"Row {index + 1} has no usable time in column {self._column!r} ({error}). "
                "Expected ISO 8601, or seconds or milliseconds since the epoch."
            ) from error


def parse_time_ms(value: object) -> int:
    """Return milliseconds of an ISO 8601 text, a datetime, a date, or a number (see `time_column`).

    Raises ValueError.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = datetime.fromisoformat(str(value).strip())
    if isinstance(value, datetime):
        return event_time_ms(value if value.tzinfo is not None else value.replace(tzinfo=UTC))
    if isinstance(value, date):
        return event_time_ms(datetime(value.year, value.month, value.day, tzinfo=UTC))
    if isinstance(value, int | float) and math.isfinite(value):
        return round(value * 1000) if abs(value) < _SECONDS_MAX else round(value)
    raise ValueError(f"{value!r} is no time")


def _checked(options: StreamOptions) -> int | None:
    """Check the options against the file; return its number of rows, at most `limit`."""
    if options.rate is not None and options.rate <= 0:
        raise TrimtabError("The rate must be positive. Leave it out to go as fast as possible.")
    if options.predict is not None:
        if options.prediction_column is not None:
            raise TrimtabError("Give either a prediction column or a predictor, not both.")
        if options.predict != PREVIOUS_LABEL and not options.predict.startswith("constant:"):
            raise TrimtabError(
                f"{options.predict!r} is no predictor. Use previous-label or constant:VALUE."
            )
        if options.predict == PREVIOUS_LABEL and options.label_column is None:
            raise TrimtabError("previous-label needs a label column.")
    first = next(read_rows(options.path), None)
    if first is None:
        raise TrimtabError(f"{options.path} has no rows.")
    for column in (*_named_columns(options), *options.features.values()):
        if column not in first:
            raise TrimtabError(
                f"{options.path.name} has no column {column!r}. Columns: {', '.join(first)}."
            )
    rows = count_rows(options.path)
    return rows if options.limit is None else min(rows, options.limit)


def count_rows(path: Path) -> int:
    """Return the number of data rows of the file."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.ParquetFile(path).metadata.num_rows)
    return sum(1 for _ in read_rows(path))


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .csv, .csv.gz or .parquet file, each by column name, in file order.

    Raises NotFoundError, or TrimtabError for a file of another kind or a ragged row.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist. Name a .csv, .csv.gz or .parquet file.")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet
        except ImportError as missing:
            raise TrimtabError(
                "Parquet needs pyarrow. Install trimtab[archive], or give a CSV file."
            ) from missing
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=4096):
            yield from batch.to_pylist()
    elif path.name.endswith((".csv", ".csv.gz")):
        yield from _csv_rows(path)
    else:
        raise TrimtabError(f"{path.name} is of no known kind. Name it .csv, .csv.gz or .parquet.")


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        unpacked = stack.enter_context(gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw
        file = stack.enter_context(TextIOWrapper(unpacked, encoding="utf-8-sig", newline=""))
        reader = csv.reader(file)
        header = next(reader, None)
        if header is None:
            return
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise TrimtabError(
                    f"{path.name}, line {reader.line_num}: {len(row)} values under "
                    f"{len(header)} columns. Repair the line."
                )
            yield dict(zip(header, row, strict=True))


def _value(cell: object) -> Scalar:
    """A cell as an event's scalar: numbers from text, None for what stands for missing."""
    if not isinstance(cell, str):
        return scalar(cell.isoformat() if isinstance(cell, date) else cell)
    text = cell.strip()
    if text in _MISSING:
        return None
    try:
        return scalar(int(text))
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else None


def _number(row: dict[str, Any], column: str | None, index: int) -> float | None:
    if column is None:
        return None
    value = _value(row[column])
    if isinstance(value, str):
        raise TrimtabError(
            f"Row {index + 1}, column {column!r}: {value!r} is no number. Repair the file."
        )
    return None if value is None else float(value)


def _category(cell: object) -> str:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return str(cell).strip()
