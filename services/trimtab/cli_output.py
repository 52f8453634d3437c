"""How commands talk: Rich tables for people, `--json` for programs, errors in one clear line."""

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

console = Console()
errors = Console(stderr=True)

OK = 0
FAILED = 1
USAGE = 2
ATTENTION = 3
"""The command worked; what it looked at needs somebody."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most this many.")]

_COLOURS = {
    "ok": "green",
    "warning": "yellow",
    "alarm": "bold red",
    "cannot_tell": "magenta",
    "open": "bold red",
    "acknowledged": "yellow",
    "resolved": "green",
    "done": "green",
    "blessed": "green",
    "rolled_back": "red",
    "failed": "red",
    "escalated": "bold red",
    "held": "yellow",
}


def now_ms() -> int:
    """Milliseconds since the epoch: the edge where commands read the clock."""
    return int(datetime.now(UTC).timestamp() * 1000)


def when(ms: int | None) -> str:
    """A time for people, UTC."""
    if ms is None:
        return ""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def word(state: object) -> str:
    """A state in its colour."""
    text = "" if state is None else str(state)
    colour = _COLOURS.get(text)
    return f"[{colour}]{text}[/]" if colour else escape(text)


def figure(value: float | None, digits: int = 4) -> str:
    """A number for people."""
    return "" if value is None else f"{value:.{digits}g}"


def print_json(value: Any) -> None:
    """Print any record as JSON, indented, to standard output."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(text.decode() + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """Print rows (Rich markup) under columns; `empty` is said when there is no row.

    In a terminal lines break between words only, so that an id can be copied; a table that is still
    too wide is wrapped by the terminal. Elsewhere, one line per row.
    """
    listed = list(rows)
    if not listed:
        console.print(empty)
        return
    table = Table(box=None, header_style="dim", pad_edge=False)
    for index, column in enumerate(columns):
        cells = [Text(column), *(Text.from_markup(row[index]) for row in listed)]
        width = _longest_word if console.is_terminal else _longest_line
        table.add_column(column, min_width=max(map(width, cells)))
    for row in listed:
        table.add_row(*row)
    console.print(table, crop=False)


def _longest_line(cell: Text) -> int:
    return max((cell_len(line) for line in cell.plain.splitlines()), default=0)


def _longest_word(cell: Text) -> int:
    return max((cell_len(word) for word in cell.plain.split()), default=0)


def fail(message: str, code: int = FAILED) -> typer.Exit:
    """Print an error to standard error; returns what to raise."""
    errors.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)
    return typer.Exit(code)
