"""The page of descriptors: its code runs as it stands, and names what there is."""

import re
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from trimtab.arrow import decode_message
from trimtab.contracts.parse import parse_contract
from trimtab.events.types import Inference
from trimtab.sdk.describe import describe_audio, describe_text
from trimtab.sdk.describe.image import DESCRIPTORS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "descriptors.md").read_text("utf-8")
ADDRESS = "127.0.0.1:9092"


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def inferences(broker: Any, count: int, limit_s: float = 30.0) -> list[Inference]:
    from kafka import KafkaConsumer

    consumer = KafkaConsumer("trimtab.inference", **broker.client, auto_offset_reset="earliest")
    found: list[Any] = []
    deadline_s = time.monotonic() + limit_s
    try:
        while len(found) < count:
            assert time.monotonic() < deadline_s, f"only {len(found)} came in time"
            for records in consumer.poll(timeout_ms=200).values():
                found += [decode_message(r.value, r.headers, "inference") for r in records]
    finally:
        consumer.close()
    return found


@pytest.mark.tensorflow
def test_the_code_of_the_page_runs_and_its_events_arrive(
    embedded_broker: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(PAGE, "python"):
        code = block.replace(f'"{ADDRESS}"', f'"{embedded_broker.bootstrap}", api_version=(2, 1)')
        exec(compile(code, "docs/descriptors.md", "exec"), names)
    events = inferences(embedded_broker, 6)
    by_feature = {name: event for event in events for name in event.features}
    assert set(DESCRIPTORS) <= set(by_feature)
    assert by_feature["text_unknown_share"].features["text_unknown_share"] == 1
    assert by_feature["spectral_centroid_hz"].features["spectral_centroid_hz"] == pytest.approx(
        440, rel=0.01
    )
    assert {f"emb_{k}" for k in range(8)} | {"emb_norm"} <= set(by_feature)
    attributed = [set(event.attributions) for event in events if event.attributions]
    assert sorted(map(sorted, attributed)) == [["age", "income"], ["channel", "income"]]

    printed = capsys.readouterr().out
    contract = parse_contract(f'name = "m"\ntask = "binary"\n[features]\n{printed}', "m.toml")
    assert list(contract.features) == list(DESCRIPTORS)
    assert (contract.features["width"].min, contract.features["width"].max) == (640, 640)
    assert contract.features["brightness"].min is None


def test_the_lines_of_the_page_are_those_of_a_contract() -> None:
    (line,) = blocks(section("In the contract"), "toml")
    (rest,) = blocks(section("Attributions"), "toml")
    features = f'[features]\n{line}\nincome = {{ kind = "number" }}\n'
    contract = parse_contract(f'name = "m"\ntask = "binary"\n{features}{rest}', "m.toml")
    assert contract.attributed == ("income",)
    assert not contract.features["brightness"].input
    assert tomllib.loads(rest)["prediction"] == {"attributions": True}


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("Pictures", DESCRIPTORS),
        ("Sounds", tuple(describe_audio([0.5, -0.5], 8_000))),
        ("Texts", (*describe_text("a"), "unknown_share")),
    ],
)
def test_every_descriptor_is_on_the_page(title: str, names: tuple[str, ...]) -> None:
    mentioned = re.findall(r"`(\w+)`", section(title))
    assert [name for name in names if name not in mentioned] == []
