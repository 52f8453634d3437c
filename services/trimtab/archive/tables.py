"""Inferences and labels as Arrow tables: what one Parquet file of the archive holds.

Inference columns: `id`, `version`, `time_ms`, `status`, `arm`, `traffic_revision`, `offset`,
`prediction` and `scores` as JSON text, and one column `f.NAME` per feature: float64 where every
value in the file is a number, else text as `category_key` writes it; a missing value is null. So a
feature may be float64 in one file and text in the next, and a reader takes what its contract says.
Label columns: `inference_id`, `label` as JSON text, `time_ms`, `revision`, `retracted`, `source`,
`received_ms` (Kafka's timestamp), `offset`.
"""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec
import pyarrow as pa

from trimtab.events.types import Inference, Label, Scalar, time_ms
from trimtab.stats.cuts import category_key

FEATURE_PREFIX = "f."
_NUMERIC = (float, int, type(None))
T = TypeVar("T")


class Row(msgspec.Struct, Generic[T], frozen=True):
    """An event and where it stood in its partition."""

    event: T
    offset: int
    record_ms: int


def inference_table(rows: Sequence["Row[Inference]"]) -> pa.Table:
    """An Arrow table of inferences, in the order given."""
    events = [row.event for row in rows]
    names = list(dict.fromkeys(name for event in events for name in event.features))
    columns: dict[str, Any] = {
        "id": pa.array([event.id for event in events], pa.string()),
        "version": pa.array([event.version for event in events], pa.string()),
        "time_ms": pa.array([time_ms(event.time) for event in events], pa.int64()),
        "status": pa.array([event.status for event in events], pa.string()),
        "arm": pa.array([event.arm for event in events], pa.string()),
        "traffic_revision": pa.array([event.traffic_revision for event in events], pa.int64()),
        "offset": pa.array([row.offset for row in rows], pa.int64()),
        "prediction": pa.array([_json(event.prediction) for event in events], pa.string()),
        "scores": pa.array([_json(event.scores) for event in events], pa.string()),
    }
    for name in names:
        columns[FEATURE_PREFIX + name] = feature_column(
            [event.features.get(name) for event in events]
        )
    return pa.table(columns)


def label_table(rows: Sequence["Row[Label]"]) -> pa.Table:
    """An Arrow table of labels, in the order given."""
    events = [row.event for row in rows]
    return pa.table(
        {
            "inference_id": pa.array([event.inference_id for event in events], pa.string()),
            "label": pa.array([_json(event.label) for event in events], pa.string()),
            "time_ms": pa.array([time_ms(event.time) for event in events], pa.int64()),
            "revision": pa.array([event.revision for event in events], pa.int64()),
            "retracted": pa.array([event.retracted for event in events], pa.bool_()),
            "source": pa.array([event.source for event in events], pa.string()),
            "received_ms": pa.array([row.record_ms for row in rows], pa.int64()),
            "offset": pa.array([row.offset for row in rows], pa.int64()),
        }
    )


def feature_column(values: Sequence[Scalar]) -> pa.Array:
    """One feature's column: float64 where every value is a number, else text."""
    if all(type(value) in _NUMERIC for value in values):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([_text(value) for value in values], pa.string())


def _text(value: Scalar) -> str | None:
    if isinstance(value, str):
        return value
    key = category_key(value)
    return key if isinstance(key, str) else None


def _json(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()
