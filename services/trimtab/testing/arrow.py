"""Inference batches as Kafka messages in Arrow form, for tests, examples and benchmarks."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from trimtab.arrow import COLUMNS, Rule
from trimtab.events.cloudevents import ARROW_CONTENT_TYPE, encode_binary
from trimtab.events.types import InferenceBatch, time_ms


def arrow_table(batch: InferenceBatch, *, flat: bool = False, dictionaries: bool = False) -> Any:
    """Return the batch as a pyarrow table with its metadata.

    `flat` has columns `features.income` instead of structs; `dictionaries` codes the texts.
    """
    import pyarrow as pa

    def column(rule: Rule, values: Sequence[Any]) -> Any:
        array = pa.array(values, pa.string() if rule.holds == "text" else None)
        return (
            array.dictionary_encode() if dictionaries and pa.types.is_string(array.type) else array
        )

    metadata = {"id": batch.id, "model": batch.model, "version": batch.version}
    if batch.sample_rate != 1.0:
        metadata["sample_rate"] = str(batch.sample_rate)
    columns: dict[str, Any] = {}
    if not isinstance(batch.time, list):
        metadata["time"] = str(time_ms(batch.time))
    elif all(isinstance(time, datetime) for time in batch.time):
        columns["time"] = pa.array(batch.time, pa.timestamp("us", "UTC"))
    else:
        columns["time"] = pa.array([time_ms(time) for time in batch.time], pa.int64())
    for name, rule in COLUMNS.items():
        values = getattr(batch, name)
        if name == "time" or not values:
            continue
        if not rule.group:
            columns[name] = column(rule, values)
            continue
        group = {key: column(rule, each) for key, each in values.items()}
        if flat:
            columns |= {f"{name}.{key}": array for key, array in group.items()}
        else:
            columns[name] = pa.StructArray.from_arrays(list(group.values()), list(group))
    return pa.table(columns).replace_schema_metadata(metadata)


def arrow_stream(table: Any, *, batch_rows: int | None = None, **options: Any) -> bytes:
    """Return a table as one Arrow IPC stream, in record batches of at most `batch_rows`.

    `options` go to pyarrow's IpcWriteOptions.
    """
    from pyarrow import BufferOutputStream, ipc

    sink = BufferOutputStream()
    with ipc.new_stream(sink, table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, batch_rows)
    return cast("bytes", sink.getvalue().to_pybytes())


def arrow_headers(batch: InferenceBatch, source: str) -> list[tuple[str, bytes]]:
    """Return the headers of the batch's message: binary mode, with Arrow's content type."""
    headers = dict(encode_binary(batch, source)[1])
    return list((headers | {"content-type": ARROW_CONTENT_TYPE.encode()}).items())
