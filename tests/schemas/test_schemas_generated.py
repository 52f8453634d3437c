import base64
import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from referencing import Registry, Resource

from trimtab.arrow import COLUMNS, decode_message
from trimtab.contracts.model import Contract
from trimtab.events.cloudevents import Role, decode
from trimtab.events.outcomes import read_outcome
from trimtab.events.types import InferenceBatch
from trimtab.schemas_gen import EVENT_STRUCTS, EXAMPLES, differences, generate, main

FOLDER = Path(__file__).resolve().parents[2] / "schemas"
EXAMPLE_FILES = sorted((FOLDER / "examples").glob("*.json"))
ROLES: dict[str, Role] = {
    "trimtab.inference": "inference",
    "trimtab.labels": "labels",
    "trimtab.resources": "resources",
    "trimtab.traffic": "traffic",
}


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def validator(name: str) -> jsonschema.Draft202012Validator:
    registry: Registry[Any] = Registry().with_resources(
        (path.name, Resource.from_contents(read(path)))
        for path in (FOLDER / "events").glob("*.json")
    )
    schema = read(FOLDER / "events" / f"{name}.json")
    return jsonschema.Draft202012Validator(schema, registry=registry)


def test_the_folder_holds_what_the_code_says() -> None:
    assert differences(FOLDER) == []
    assert main(["--check", "--folder", str(FOLDER)]) == 0


def test_a_difference_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--folder", str(tmp_path)]) == 0
    (tmp_path / "contract.json").write_text("{}")
    (tmp_path / "old.json").write_text("{}")
    (tmp_path / "events" / "outcome.json").unlink()
    assert main(["--check", "--folder", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    for line in (
        "contract.json differs",
        "old.json is no longer generated",
        "outcome.json is missing",
    ):
        assert line in said


@pytest.mark.parametrize("path", [name for name in generate() if not name.startswith("examples/")])
def test_every_schema_is_a_valid_schema(path: str) -> None:
    schema = read(FOLDER / path)
    if path != "openapi.json":
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", EXAMPLE_FILES, ids=lambda path: path.stem)
def test_every_example_is_valid_and_is_read(path: Path) -> None:
    name, form = path.stem.rsplit(".", 1)
    example = read(path)
    headers = [(header, text.encode()) for header, text in example["headers"].items()]
    if form == "arrow":
        stream = base64.b64decode(example["value_base64"])
        assert decode_message(stream, headers, ROLES[example["topic"]]) == EXAMPLES[name]
        return
    value = msgspec.json.encode(example["value"])
    if example["topic"] == "trimtab.outcomes":
        validator("outcome").validate(example["value"])
        assert read_outcome(value).subject == example["key"]
        return
    event = EXAMPLES[name]
    event_type = next(kind for kind, struct in EVENT_STRUCTS.items() if type(event) is struct)
    validator("structured" if form == "structured" else event_type).validate(example["value"])
    assert decode(value, headers, ROLES[example["topic"]]) == event


def test_the_schemas_refuse_what_the_reader_refuses() -> None:
    schema = validator("io.trimtab.inference.v1")
    least = {"id": "a", "model": "m", "version": "1", "time": 1}
    assert schema.is_valid(least)
    for wrong in ({"id": ""}, {"status": "fine"}, {"features": {"x": [1]}}, {"time": 10**15}):
        assert not schema.is_valid(least | wrong)


def test_every_column_of_a_json_batch_may_be_an_arrow_column() -> None:
    shared = {"id", "model", "version", "rows", "sample_rate"}
    fields = InferenceBatch.__struct_fields__
    assert sorted(COLUMNS) == sorted(set(fields) - shared)
    form = read(FOLDER / "arrow" / "io.trimtab.inference.batch.v1.json")
    assert list(form["columns"]) == list(COLUMNS)


def test_the_contracts_schema_takes_a_contract() -> None:
    schema = jsonschema.Draft202012Validator(read(FOLDER / "contract.json"))
    contract = Contract(name="a", task="binary")
    assert schema.is_valid(msgspec.to_builtins(contract))
    assert not schema.is_valid(msgspec.to_builtins(contract) | {"taem": "risk"})
