"""TOML to Contract: every problem at once, each with its file, line, key and what was expected.

Three passes: TOML itself; each key against the Contract structs; then what only the whole can
tell (a pane divides its window, a rule's feature exists, …). Keys that are wrong in the second pass
are left out of the third, so that one mistake is reported once.
"""

import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args, get_origin

import msgspec
from msgspec import Struct

from trimtab.contracts.check import Known, check
from trimtab.contracts.lines import Path, key_lines
from trimtab.contracts.model import Contract, Feature
from trimtab.contracts.rules import did_you_mean
from trimtab.errors import ContractError

FILE_BYTES_MAX = 1_000_000
DEFAULTS_FILE = "defaults.toml"
"""In a folder of contracts: its `[defaults]` table lies under every contract."""


class Problem(Struct, frozen=True, order=True):
    """One thing wrong with a contract's text."""

    file: str
    line: int
    """From 1."""
    key: str
    """Dotted, such as `features.income.min`; empty for a whole file."""
    message: str

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{self.file}:{self.line}: {key}{self.message}"


class ContractProblemsError(ContractError):
    """The text is no contract. `problems` has every reason, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def parse_contract(text: str, file_name: str) -> Contract:
    """Return the contract that the TOML text holds; `file_name` is for messages.

    Raises ContractProblemsError, a ContractError, with all problems.
    """
    reader = _Reader()
    contract = reader.contract({file_name: text}, file_name)
    if reader.problems or contract is None:
        raise ContractProblemsError(reader.problems)
    return contract


def parse_contracts(files: Mapping[str, str]) -> list[Contract]:
    """Return the contracts of a folder: file name to text, by file name.

    A file named `defaults.toml` gives values under all others, in its table `[defaults]`.
    Raises ContractProblemsError with the problems of all files.
    """
    reader = _Reader()
    defaults = next((name for name in files if _base_name(name) == DEFAULTS_FILE), None)
    names: dict[str, str] = {}
    contracts = []
    for file_name in sorted(files):
        if file_name == defaults:
            continue
        layers = {file_name: files[file_name]}
        if defaults is not None:
            layers[defaults] = files[defaults]
        contract = reader.contract(layers, file_name)
        if contract is None:
            continue
        if contract.name in names:
            reader.problem(
                ("name",), f"{names[contract.name]} names the same model. Give each its own name."
            )
        names[contract.name] = file_name
        contracts.append(contract)
    if reader.problems:
        raise ContractProblemsError(reader.problems)
    return contracts


def _base_name(file_name: str) -> str:
    return file_name.replace("\\", "/").rpartition("/")[2]


class _Reader:
    """Collects problems while it reads; `problem` knows the line of a key."""

    def __init__(self) -> None:
        self.problems: set[Problem] = set()
        self._places: dict[Path, tuple[str, int]] = {}
        self._file = ""

    def problem(self, path: Path, message: str) -> None:
        place = (self._file, 1)
        for end in range(len(path), 0, -1):  # a missing key is reported at its table
            if path[:end] in self._places:
                place = self._places[path[:end]]
                break
        self.problems.add(Problem(*place, _dotted(path), message))

    def _bad(self, table: str) -> bool:
        """Whether the file that is being read has a problem in this table."""
        return any(
            problem.file == self._file and problem.key.startswith(table)
            for problem in self.problems
        )

    def contract(self, layers: Mapping[str, str], file_name: str) -> Contract | None:
        """Read the first layer over the others; None when problems forbid a contract."""
        count = len(self.problems)
        self._places = {}
        self._file = file_name
        table: dict[str, Any] = {}
        for layer, text in layers.items():
            read = self._toml(layer, text, defaults=layer != file_name)
            if read is None:
                return None
            table = _under(table, read)
        table = self._struct(table, Contract, ())
        # Stand-ins for what is missing or wrong, so that the rest is checked in the same go.
        known = Known(task="task" in table, features=not self._bad("features"))
        stand_in = {"name": "unnamed", "task": "multiclass"}
        contract = msgspec.convert(stand_in | table, Contract)
        for path, message in check(contract, known):
            self.problem(path, message)
        return contract if len(self.problems) == count else None

    def _toml(self, file_name: str, text: str, *, defaults: bool) -> dict[str, Any] | None:
        if len(text) > FILE_BYTES_MAX:
            self.problems.add(
                Problem(file_name, 1, "", f"is longer than {FILE_BYTES_MAX} characters.")
            )
            return None
        try:
            table = tomllib.loads(text)
            lines = key_lines(text)
        except tomllib.TOMLDecodeError as error:
            message, line = _toml_error(str(error), text)
            self.problems.add(Problem(file_name, line, "", message))
            return None
        except RecursionError:
            self.problems.add(Problem(file_name, 1, "", "nests too deep."))
            return None
        if defaults:
            for key in table.keys() - {"defaults"}:
                self.problems.add(
                    Problem(file_name, lines[(key,)], key, "expected only the table [defaults].")
                )
            table = table.get("defaults", {})
            if not isinstance(table, dict):
                self.problems.add(
                    Problem(file_name, lines[("defaults",)], "defaults", "expected a table.")
                )
                return {}
            if "name" in table:
                self.problems.add(
                    Problem(
                        file_name,
                        lines[("defaults", "name")],
                        "defaults.name",
                        "each contract has its own name. Remove it here.",
                    )
                )
            lines = {path[1:]: line for path, line in lines.items() if path[0] == "defaults"}
        for path, line in lines.items():
            self._places.setdefault(path, (file_name, line))
        return table

    def _struct(self, table: dict[str, Any], struct: type[Struct], path: Path) -> dict[str, Any]:
        """Return the keys of the table that fit the struct; the others become problems."""
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        good = {}
        for key, value in table.items():
            field = fields.get(key)
            if field is None:
                self.problem(
                    (*path, key),
                    f"is no key here.{did_you_mean(key, fields)} "
                    f"Expected one of: {', '.join(fields)}.",
                )
                continue
            read = self._value(value, field.type, (*path, key))
            if read is not msgspec.UNSET:
                good[key] = read
        for name, field in fields.items():
            if field.required and name not in table:
                self.problem((*path, name), f"is missing. Expected {_expected(field.type)}.")
        return good

    def _value(self, value: Any, type_: Any, path: Path) -> Any:
        """Return the value as it goes on to msgspec, or UNSET when it was a problem."""
        if isinstance(type_, type) and issubclass(type_, Struct):
            if not isinstance(value, dict):
                self.problem(path, f"expected a table, got {_got(value)}.")
                return msgspec.UNSET
            return self._struct(value, type_, path)
        if get_origin(type_) is dict and get_args(type_)[1] is Feature:
            if not isinstance(value, dict):
                self.problem(path, f"expected a table, got {_got(value)}.")
                return msgspec.UNSET
            good = {}
            for name, feature in value.items():
                count = len(self.problems)
                read = self._value(feature, Feature, (*path, name))
                if len(self.problems) == count:
                    good[name] = read
            return good
        if any(not math.isfinite(number) for number in _numbers(value)):
            self.problem(path, "expected a finite number.")
            return msgspec.UNSET
        try:
            msgspec.convert(value, type_)
        except msgspec.ValidationError:
            self.problem(path, f"expected {_expected(type_)}, got {_got(value)}.")
            return msgspec.UNSET
        return value


# --- words for messages ---------------------------------------------------------------------------


def _toml_error(text: str, source: str) -> tuple[str, int]:
    """Return the message and line of what tomllib said."""
    message, _, place = text.partition(" (at ")
    words = place.removesuffix(")").replace(",", " ").split()
    if len(words) > 1 and words[0] == "line" and words[1].isdigit():
        return f"is not TOML: {message}.", int(words[1])
    return f"is not TOML: {text}.", source.count("\n") + 1


def _under(table: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the table with the defaults where it has no value of its own."""
    merged = dict(defaults)
    for key, value in table.items():
        base = merged.get(key)
        # Features are a set a model owns: its order is the model's, defaults go to the end.
        both = isinstance(value, dict) and isinstance(base, dict)
        merged[key] = _under(value, base) if both and isinstance(base, dict) else value
    return {key: merged[key] for key in (*table, *(key for key in merged if key not in table))}


def _dotted(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item)


_TYPE_WORDS: dict[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "",
    dict: "a table",
}


def _expected(type_: Any) -> str:
    arguments = get_args(type_)
    origin = get_origin(type_)
    if type_ in _TYPE_WORDS:
        return _TYPE_WORDS[type_]
    if origin is dict:
        return "a table"
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list, each {_expected(arguments[0])}"
        return f"a list of {len(arguments)}, each {_expected(arguments[0])}"
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return "one of " + ", ".join(f'"{argument}"' for argument in arguments)
    return " or ".join(word for word in (_expected(argument) for argument in arguments) if word)


def _got(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return repr(value if len(value) <= 60 else value[:57] + "…")
        case int() | float():
            return str(value)[:60]
        case list():
            return f"a list of {len(value)}"
        case dict():
            return "a table"
        case _:
            return "a date or time"
