import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trimtab.contracts.model import Contract, Feature
from trimtab.contracts.parse import parse_contract
from trimtab.contracts.rules import FIGURES

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "contract.md").read_text("utf-8")
TABLES: dict[str, type[msgspec.Struct]] = {"Top level": Contract, "`[features]`": Feature} | {
    f"`[{field.encode_name}]`": field.type
    for field in msgspec.structs.fields(Contract)
    if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
}


def documented(title: str) -> dict[str, tuple[str, ...]]:
    """First column of the section's table to the other columns."""
    section = DOCS.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    return {row[0].strip("| `"): tuple(row[1:]) for row in rows}


@pytest.mark.parametrize("title", TABLES)
def test_every_key_is_documented_in_order_with_its_default(title: str) -> None:
    rows = documented(title)
    fields = msgspec.structs.fields(TABLES[title])
    assert list(rows) == [field.encode_name for field in fields]
    for field in fields:
        written = rows[field.encode_name][0]
        default: Any = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        if field.required:
            assert written == "required"
        elif default is None:
            assert written == "–"
        elif not isinstance(default, msgspec.Struct) and field.encode_name != "features":
            shown = tomllib.loads(f"x = {written.strip('`')}")["x"]
            assert shown == msgspec.json.decode(msgspec.json.encode(default))


def test_every_figure_is_documented_with_its_kind() -> None:
    rows = documented("Rules")
    assert list(rows) == list(FIGURES)
    assert {name: row[1] for name, row in rows.items()} == {
        name: str(spec.kind) for name, spec in FIGURES.items()
    }


def test_the_example_is_a_contract() -> None:
    found = re.search(r"```toml\n(.*?)```", DOCS, re.DOTALL)
    assert found
    assert parse_contract(found[1], "example.toml").task == "binary"
