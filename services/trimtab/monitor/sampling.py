"""The row sample of one partition in memory: per model and hour the rows of lowest id hash.

Samples are for people's reports and for how columns go together, apart from the counts, so they are written
every few seconds, not at every flush; a crash may cost the sample (never the counts) of that long. An hour that
has just passed is written with the flush that brought the next one: a window that it closes finds its sample.
"""

from __future__ import annotations

import numpy as np
from sqlalchemy import Connection

from trimtab.monitor.columns import Rows, number_list
from trimtab.monitor.views import ModelView
from trimtab.store.samples import (
    HOUR_MS,
    SAMPLE_ROWS,
    SampleRow,
    bottom,
    partition_samples,
    write_samples,
)
from trimtab.windows.panes import pane_starts, split_by

WRITE_EVERY_MS = 10_000
HOURS_OPEN = 4
TEXT_CHARS_MAX = 200


class Sampler:
    """Keeps and writes the samples of a partition."""

    def __init__(self, partition_id: int) -> None:
        self.partition_id = partition_id
        self._samples: dict[tuple[str, int], list[SampleRow]] = {}
        self._unread: set[tuple[str, int]] = set()
        self._changed: set[tuple[str, int]] = set()
        self._written_ms = 0
        self._newest: dict[str, int] = {}
        """The newest hour with rows, by model."""
        self._passed: dict[str, int] = {}
        """Hours before this one were written once they had passed, by model."""

    def offer(self, view: ModelView, rows: Rows) -> None:
        """Let rows into the sample of their hour where their hash is among the lowest."""
        hours = pane_starts(rows.times_ms, HOUR_MS)
        for hour, rows_of_hour in split_by(hours):
            key = (view.model, hour)
            self._newest[view.model] = max(hour, self._newest.get(view.model, hour))
            if key not in self._samples:
                self._samples[key] = []
                self._unread.add(key)
            sample = self._samples[key]
            index, hashes = rows_of_hour, rows.hashes[rows_of_hour]
            if len(sample) >= SAMPLE_ROWS:
                index = index[hashes < np.uint64(sample[-1].hash)]
            elif index.size > SAMPLE_ROWS:
                index = index[np.argpartition(hashes, SAMPLE_ROWS)[:SAMPLE_ROWS]]
            if index.size:
                self._samples[key] = bottom(sample + _sample_rows(view, rows.take(index)))
                self._changed.add(key)

    def write(self, connection: Connection, now_ms: int, *, at_once: bool = False) -> None:
        """Store what has changed, if it is time; inside the flush."""
        is_time = at_once or now_ms - self._written_ms >= WRITE_EVERY_MS
        due = {key for key in self._changed if is_time or self._has_just_passed(*key)}
        if not due:
            return
        for model in sorted({model for model, _ in due}):
            changed = {hour for name, hour in due if name == model}
            unread = {hour for hour in changed if (model, hour) in self._unread}
            # An earlier owner may have stored a sample of the same hour.
            stored = partition_samples(connection, self.partition_id, model, unread)
            for hour, rows in stored.items():
                self._samples[model, hour] = bottom(self._samples[model, hour] + rows)
            self._unread -= {(model, hour) for hour in unread}
            samples = {hour: self._samples[model, hour] for hour in changed}
            write_samples(connection, self.partition_id, model, samples)
            self._passed[model] = self._newest[model]
        self._changed -= due
        if is_time:
            self._written_ms = now_ms
        for model in {model for model, _ in self._samples}:
            hours = sorted(hour for name, hour in self._samples if name == model)
            for hour in hours[:-HOURS_OPEN]:
                if (model, hour) not in self._changed:
                    del self._samples[model, hour]

    def _has_just_passed(self, model: str, hour: int) -> bool:
        return self._passed.get(model, hour) <= hour < self._newest[model]


def _sample_rows(view: ModelView, rows: Rows) -> list[SampleRow]:
    features = view.watched
    columns = {
        name: values
        for name, values in rows.feature_values().items()
        if not features[name].personal
    }
    versions, predictions = list(rows.version), rows.prediction_values()
    scores, latencies = number_list(rows.score), number_list(rows.latency_ms)
    return [
        SampleRow(
            hash=int(rows.hashes[i]),
            id=rows.id_of(i),
            time_ms=int(rows.times_ms[i]),
            version=versions[i],  # type: ignore[arg-type]
            prediction=_short(predictions[i]),
            score=scores[i],  # type: ignore[arg-type]
            latency_ms=latencies[i],  # type: ignore[arg-type]
            features={name: _short(values[i]) for name, values in columns.items()},
        )
        for i in range(rows.size)
    ]


def _short(value: object) -> object:
    return value[:TEXT_CHARS_MAX] if isinstance(value, str) else value
