"""`python -m trimtab.cli_docs [--check]`: writes docs/cli.md from the commands themselves."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from trimtab.cli import app

TARGET = Path("docs/cli.md")
_HEAD = """# Commands

Generated from the commands (`python -m trimtab.cli_docs`); a test compares. `trimtab COMMAND --help`
says the same in the terminal. `--json` prints JSON to standard output: records in
the API's shapes where it has them, else an object or list of the command's own.

`--config FILE` and `--set KEY=VALUE` stand before the command: `trimtab --set api.port=8601 api`.
Precedence: flag, then `TRIMTAB_*` variable (nested by `__`, such as `TRIMTAB_STORE__URL`), then
`trimtab.toml`, then default. `trimtab config show` tells each value and where it came from.

## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | an error; one line on standard error says what happened and what to do |
| 2 | wrong usage |
| 3 | the command worked, and what it looked at needs somebody: `status` while an alert is open or a model is in alarm, `doctor` when a check failed, `ledger show` when it does not balance, `verify` unless the verdict is confirmed |
| 130 | interrupted |

"""


def text() -> str:
    """The whole page."""
    parts = [_HEAD]
    root: Any = typer.main.get_command(app)
    context = root.make_context("trimtab", [], resilient_parsing=True)
    for path, command in _commands(root, context, ("trimtab",)):
        parts.append(f"## `{' '.join(path)}`\n\n{_first(command.help)}\n\n")
        rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            parts.append("| argument or option | what |\n|---|---|\n" + "".join(rows) + "\n")
    return "".join(parts).rstrip() + "\n"


def _commands(
    group: Any, context: Any, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            yield from _commands(command, context, (*path, name))
        else:
            yield (*path, name), command


def _first(help_text: str | None) -> str:
    return " ".join((help_text or "").split())


def _row(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    if parameter.param_type_name == "argument":
        names = f"`{(parameter.metavar or parameter.name).upper().strip('[]')}`"
    said = _first(getattr(parameter, "help", None))
    default = parameter.default
    shown = default not in (None, False, "", ()) and not callable(default)
    return f"| {names} | {said}{f' Default: {default}.' if shown else ''} |\n"


def main(arguments: list[str]) -> int:
    """Write the page, or compare it."""
    if "--check" in arguments:
        return int(TARGET.read_text(encoding="utf-8") != text())
    TARGET.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
