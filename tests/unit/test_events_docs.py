import re
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trimtab.arrow import CELLS_MAX, COLUMNS, MESSAGES_MAX, TEXT_CHARS_MAX, decode_message
from trimtab.events.cloudevents import Event, Reason
from trimtab.events.types import Inference, InferenceBatch, Label
from trimtab.schemas_gen import EVENT_STRUCTS

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "events.md").read_text("utf-8")
ADDRESS = "127.0.0.1:9092"


def section(title: str) -> str:
    return DOCS.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", section(title), re.DOTALL)


def table(title: str) -> dict[str, str]:
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", section(title), re.MULTILINE)
    return {name: mark.strip() for name, mark in rows}


@pytest.mark.parametrize("event_type", EVENT_STRUCTS)
def test_every_field_is_documented_in_order(event_type: str) -> None:
    fields = msgspec.structs.fields(EVENT_STRUCTS[event_type])
    assert table(f"`{event_type}`") == {
        field.encode_name: "required" if field.required else "optional" for field in fields
    }


def test_every_reason_is_documented() -> None:
    assert list(table("Messages that are rejected")) == [str(reason) for reason in Reason]


def read(broker: Any, count: int, limit_s: float = 30.0) -> list[Event]:
    """The first `count` inferences and labels on the broker."""
    from kafka import KafkaConsumer

    topics = {"trimtab.inference": "inference", "trimtab.labels": "labels"}
    consumer = KafkaConsumer(*topics, **broker.client, auto_offset_reset="earliest")
    events: list[Event] = []
    deadline_s = time.monotonic() + limit_s
    try:
        while len(events) < count:
            assert time.monotonic() < deadline_s, f"only {events} came in time"
            for partition, records in consumer.poll(timeout_ms=200).items():
                role = "labels" if partition.topic == "trimtab.labels" else "inference"
                events += [decode_message(record.value, record.headers, role) for record in records]  # type: ignore[arg-type]
    finally:
        consumer.close()
    return events


def run_python(title: str, broker: Any) -> None:
    """Run the section's Python as it stands, on the embedded broker."""
    for block in blocks(title, "python"):
        assert ADDRESS in block
        code = block.replace(f'"{ADDRESS}"', f'"{broker.bootstrap}", api_version=(2, 1)')
        exec(compile(code, "docs/events.md", "exec"), {})


def test_the_sdk_example_works(embedded_broker: Any) -> None:
    run_python("With the SDK", embedded_broker)
    events = read(embedded_broker, 3)
    (label,) = (event for event in events if isinstance(event, Label))
    assert label.inference_id in {event.id for event in events if isinstance(event, Inference)}


def test_the_kafka_python_examples_work(embedded_broker: Any) -> None:
    run_python("With plain kafka-python", embedded_broker)
    events = read(embedded_broker, 3)
    ids = sorted(event.id for event in events if isinstance(event, Inference))
    assert ids == ["order-4711", "order-4712"]


def test_the_arrow_example_works(embedded_broker: Any) -> None:
    run_python("As Arrow", embedded_broker)
    (batch,) = read(embedded_broker, 1)
    assert isinstance(batch, InferenceBatch)
    assert batch.ids == ["order-4714", "order-4715"]
    assert batch.features == {"income": [41_000.0, None], "channel": ["web", "app"]}


def test_every_arrow_column_and_limit_is_documented() -> None:
    rows = re.findall(r"^\| ([a-z_, ]+) \| ", section("As Arrow"), re.MULTILINE)
    named = [name for row in rows if row != "column" for name in row.split(", ")]
    assert sorted(named) == sorted(COLUMNS)
    for limit in (CELLS_MAX, TEXT_CHARS_MAX, MESSAGES_MAX):
        assert f"{limit:,}" in section("As Arrow")


@pytest.mark.usefixtures("kcat")
def test_the_kcat_example_works(embedded_broker: Any) -> None:
    (command,) = blocks("With kcat", "sh")
    subprocess.run(
        ["sh", "-ec", command.replace(ADDRESS, embedded_broker.bootstrap)], check=True, timeout=60
    )
    (event,) = read(embedded_broker, 1)
    assert isinstance(event, Inference)
    assert event.id == "order-4713"
