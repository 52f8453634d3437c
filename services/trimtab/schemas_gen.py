"""Writes `schemas/`: JSON Schema and examples of every event, of the contract, and more.

    python -m trimtab.schemas_gen [--check] [--folder schemas]

`--check` compares and exits with 1 where the files differ from the code. GENERATORS is the list of
what is written; a generator returns file path (below the folder) to text.
"""

import argparse
import base64
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from trimtab.contracts.model import Contract
from trimtab.events.cloudevents import (
    ARROW_CONTENT_TYPE,
    MESSAGE_BYTES_MAX,
    SPEC_VERSION,
    STRUCTURED_CONTENT_TYPE,
    Event,
    encode_binary,
    encode_structured,
    event_key,
    event_type,
)
from trimtab.events.outcomes import Outcome, outcome_event
from trimtab.events.types import (
    ALERT_TYPE,
    BATCH_TYPE,
    INFERENCE_TYPE,
    LABEL_TYPE,
    RESOURCE_TYPE,
    TRAFFIC_TYPE,
    Inference,
    InferenceBatch,
    Label,
    Resource,
    ResourceSample,
    Traffic,
    TrafficArm,
)
from trimtab.windows.ids import BATCH_ROWS_MAX

Files = Mapping[str, str]
_DRAFT = "https://json-schema.org/draft/2020-12/schema"

EVENT_STRUCTS: dict[str, type[Event]] = {
    INFERENCE_TYPE: Inference,
    BATCH_TYPE: InferenceBatch,
    LABEL_TYPE: Label,
    RESOURCE_TYPE: Resource,
    TRAFFIC_TYPE: Traffic,
}


def event_schemas() -> Files:
    """`events/TYPE.json`: the data of each event type."""
    return {
        f"events/{name}.json": _text(_schema(struct, name))
        for name, struct in EVENT_STRUCTS.items()
    } | {"events/outcome.json": _text(_schema(Outcome, "outcome"))}


def envelope_schema() -> Files:
    """`events/structured.json`: a CloudEvent in structured mode around each event type."""
    return {
        "events/structured.json": _text(
            {
                "$schema": _DRAFT,
                "title": "structured",
                "description": "A CloudEvent in structured mode, as in a Kafka message's value.",
                "type": "object",
                "required": ["specversion", "type", "id", "source", "data"],
                "properties": {
                    "specversion": {"const": SPEC_VERSION},
                    "type": {"enum": list(EVENT_STRUCTS)},
                    "id": {"type": "string", "minLength": 1},
                    "source": {"type": "string", "minLength": 1},
                    "datacontenttype": {"const": "application/json"},
                },
                "allOf": [
                    {
                        "if": {"properties": {"type": {"const": name}}},
                        "then": {"properties": {"data": {"$ref": f"{name}.json"}}},
                    }
                    for name in EVENT_STRUCTS
                ],
            }
        )
    }


def contract_schema() -> Files:
    """`contract.json`: the contract's tables and keys, for editors that check TOML by schema."""
    return {"contract.json": _text(_schema(Contract, "contract"))}


def examples() -> Files:
    """`examples/`: each event in each form a producer may send."""
    files = {}
    for name, event in EXAMPLES.items():
        key = event_key(event).decode()
        for form, (value, headers) in (
            ("structured", encode_structured(event, "shop/checkout")),
            ("binary", encode_binary(event, "shop/checkout")),
            ("bare", (msgspec.json.encode(event), [])),
        ):
            files[f"examples/{name}.{form}.json"] = _text(
                {
                    "topic": _TOPICS[event_type(event)],
                    "key": key,
                    "headers": {header: text.decode() for header, text in headers},
                    "value": json.loads(value),
                }
            )
    outcome = outcome_event(
        ALERT_TYPE, "credit-default", "alert:17:opened", {"alert": 17, "state": "open"}, _TIME_MS
    )
    files["examples/alert.structured.json"] = _text(
        {
            "topic": "trimtab.outcomes",
            "key": "credit-default",
            "headers": {"content-type": STRUCTURED_CONTENT_TYPE.decode()},
            "value": json.loads(outcome),
        }
    )
    return files


def arrow_form() -> Files:
    """`arrow/`: metadata and columns of a batch as an Arrow stream; an example in `examples/`."""
    from trimtab.arrow import CELLS_MAX, COLUMNS, METADATA, TEXT_CHARS_MAX
    from trimtab.testing.arrow import arrow_headers, arrow_stream, arrow_table

    batch = EXAMPLES["batch"]
    assert isinstance(batch, InferenceBatch)
    key = {"type": "string", "minLength": 1}
    form = {
        "title": f"{BATCH_TYPE} as an Arrow IPC stream",
        "description": "One stream in a Kafka message's value, ended and not compressed. `metadata` "
        "is the schema's; `columns` of other names are ignored. A group is a struct column, or flat "
        "columns NAME.KEY.",
        "headers": {"content-type": ARROW_CONTENT_TYPE, "ce_type": BATCH_TYPE},
        "metadata": {
            "required": [*METADATA],
            "properties": {name: key | {"maxLength": most} for name, most in METADATA.items()}
            | {
                "time": {
                    "description": "RFC 3339 with an offset, or integer milliseconds since the "
                    "epoch; required without a column `time`."
                },
                "sample_rate": {"description": "Above 0, up to 1 (default)."},
            },
        },
        "columns": {
            name: {"arrow": _ARROW_TYPES[rule.holds], "nullable": rule.null, "group": rule.group}
            | ({"least": rule.chars[0], "most": rule.chars[1]} if rule.chars else {})
            | ({"values": list(rule.values)} if rule.values else {})
            for name, rule in COLUMNS.items()
        },
        "limits": {
            "bytes": MESSAGE_BYTES_MAX,
            "rows": BATCH_ROWS_MAX,
            "values": CELLS_MAX,
            "characters": TEXT_CHARS_MAX,
        },
    }
    example = {
        "topic": _TOPICS[BATCH_TYPE],
        "key": event_key(batch).decode(),
        "headers": {name: text.decode() for name, text in arrow_headers(batch, "shop/checkout")},
        "value_base64": base64.b64encode(arrow_stream(arrow_table(batch))).decode(),
    }
    return {
        f"arrow/{BATCH_TYPE}.json": _text(form),
        "examples/batch.arrow.json": _text(example),
    }


_ARROW_TEXT = ["string", "large_string", "dictionary of them"]
_ARROW_WHOLE = ["int8 to int64", "uint8 to uint64, below 2**63"]
_ARROW_NUMBER = ["float16", "float32", "float64", "decimal", *_ARROW_WHOLE]
_ARROW_TYPES = {
    "text": [*_ARROW_TEXT],
    "number": [*_ARROW_NUMBER],
    "whole": [*_ARROW_WHOLE, "float64 of whole numbers"],
    "time": ["timestamp with time zone", "int64 milliseconds since the epoch"],
    "scalar": [*_ARROW_NUMBER, "bool", *_ARROW_TEXT],
}


def openapi_schema() -> Files:
    """`openapi.json`: the HTTP API."""
    from trimtab.api.openapi import openapi

    return openapi()


GENERATORS: list[Callable[[], Files]] = [
    event_schemas,
    envelope_schema,
    contract_schema,
    examples,
    arrow_form,
    openapi_schema,
]

_TIME_MS = 1_767_225_600_000
_TOPICS = {
    INFERENCE_TYPE: "trimtab.inference",
    BATCH_TYPE: "trimtab.inference",
    LABEL_TYPE: "trimtab.labels",
    RESOURCE_TYPE: "trimtab.resources",
    TRAFFIC_TYPE: "trimtab.traffic",
}
_SAMPLE = ResourceSample(
    cpu_percent=41.5, memory_bytes=734_003_200, disk_percent=63.0, queue_depth=2
)
EXAMPLES: dict[str, Event] = {
    "inference-least": Inference(
        id="order-4711", model="credit-default", version="7", time=_TIME_MS
    ),
    "inference": Inference(
        id="order-4711",
        model="credit-default",
        version="7",
        time=_TIME_MS,
        features={"income": 41_000, "channel": "web", "age": None},
        prediction="repaid",
        scores={"default": 0.08, "repaid": 0.92},
        latency_ms=12.4,
        attributes={"region": "north"},
        arm="champion",
        traffic_revision=3,
        resources=_SAMPLE,
    ),
    "inference-error": Inference(
        id="order-4712",
        model="credit-default",
        version="7",
        time=_TIME_MS,
        features={"income": 38_500, "channel": "app"},
        latency_ms=2_000.0,
        status="timeout",
        error="no answer within 2 s",
    ),
    "batch": InferenceBatch(
        id="night-2026-01-01-0001",
        model="credit-default",
        version="7",
        time=[_TIME_MS, _TIME_MS + 1_000],
        rows=2,
        features={"income": [41_000, 52_000], "channel": ["web", None]},
        prediction=["repaid", "default"],
        scores={"default": [0.08, 0.71]},
    ),
    "label": Label(
        inference_id="order-4711",
        model="credit-default",
        label="repaid",
        time=_TIME_MS + 86_400_000,
        source="outcome",
    ),
    "label-retracted": Label(
        inference_id="order-4711",
        model="credit-default",
        label=None,
        time=_TIME_MS + 172_800_000,
        revision=1,
        retracted=True,
        source="human",
    ),
    "resource": Resource(
        instance="checkout-1",
        model="credit-default",
        version="7",
        time=_TIME_MS,
        sample=_SAMPLE,
        sent_events=120_034,
        dropped_events=12,
        dropped_by_reason={"queue_full": 12},
    ),
    "traffic": Traffic(
        model="credit-default",
        revision=3,
        salt="b1f0",
        arms=[
            TrafficArm("champion", "7", 0.95, "models/7", "0" * 64),
            TrafficArm("challenger", "8", 0.05, "models/8", "1" * 64),
        ],
        valid_until_ms=_TIME_MS + 300_000,
        rollout_id="rollout-12",
    ),
}


def _schema(struct: type[Any], title: str) -> dict[str, Any]:
    """JSON Schema of a struct, with the references it needs inside."""
    _, components = msgspec.json.schema_components(
        [struct],
        ref_template="#/$defs/{name}",
        schema_hook=lambda _: {"description": "any value"},  # `object`: a recipe's options
    )
    own: dict[str, Any] = components.pop(struct.__name__)
    return (
        {"$schema": _DRAFT} | own | {"title": title} | ({"$defs": components} if components else {})
    )


def _text(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def generate() -> dict[str, str]:
    """Return every file of the folder, path to text."""
    files: dict[str, str] = {}
    for generator in GENERATORS:
        files.update(generator())
    return files


def differences(folder: Path) -> list[str]:
    """Return what differs between the folder and the code, one line per file."""
    files = generate()
    found = {
        str(path.relative_to(folder)).replace("\\", "/")
        for path in folder.rglob("*.json")
        if path.is_file()
    }
    lines = [f"{name} is missing" for name in sorted(files.keys() - found)]
    lines += [f"{name} is no longer generated" for name in sorted(found - files.keys())]
    lines += [
        f"{name} differs"
        for name in sorted(files.keys() & found)
        if (folder / name).read_text("utf-8") != files[name]
    ]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Write or check the folder; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trimtab.schemas_gen", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--folder", type=Path, default=Path("schemas"))
    options = parser.parse_args(arguments)
    if options.check:
        lines = differences(options.folder)
        for line in lines:
            sys.stderr.write(f"{options.folder}/{line}\n")
        if lines:
            sys.stderr.write("Run `python -m trimtab.schemas_gen` and commit the result.\n")
        return 1 if lines else 0
    for name, text in generate().items():
        path = options.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    for line in differences(options.folder):  # what no generator writes any more
        sys.stderr.write(f"{options.folder}/{line}: remove it\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
