"""The demo's status board: one screen of plain facts, redrawn while the loop runs."""

import time
from collections.abc import Sequence

from msgspec import Struct
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from trimtab_agent.demo.script import Phase, Seen, Window
from trimtab_agent.demo.watch import Ledger, Moment

_COLOURS = {"ok": "green", "warning": "yellow", "alarm": "red", "cannot_tell": "blue"}
_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 40
_MOMENTS = 9
_FEW_ROWS = 60  # a window with fewer labels says little yet


class Board(Struct, frozen=True, kw_only=True):
    """Everything one drawing shows."""

    phase: Phase | None
    phase_s: float
    elapsed_s: float
    seen: Seen | None
    ledger: Ledger | None
    moments: Sequence[Moment]
    note: str
    addresses: Sequence[tuple[str, str]]


def draw(board: Board) -> RenderableType:
    """The board as something Rich can show."""
    head = Table.grid(padding=(0, 2))
    title = board.phase.title if board.phase else board.note
    head.add_row(f"[bold]{title}[/]", f"[dim]{board.elapsed_s:.0f} s[/]")
    parts: list[RenderableType] = [head]
    if board.seen is not None:
        parts += [_windows(board.seen.windows), _records(board.seen, board.ledger)]
    if board.moments:
        parts.append(_log(board.moments))
    parts.append(_addresses(board.addresses))
    return Panel(Group(*parts), title="trimtab demo", border_style="dim")


def _windows(windows: Sequence[Window]) -> RenderableType:
    newest_last = list(reversed(windows[:_WIDTH]))
    accuracy, outcome = Text(), Text()
    for window in newest_last:
        level = 0 if window.accuracy is None else 1 + int(window.accuracy * (len(_BARS) - 2))
        colour = _COLOURS.get(window.outcome, "white")
        accuracy.append(_BARS[level], style="cyan")
        outcome.append("█", style=colour)
    labelled = (w.accuracy for w in windows if w.accuracy is not None and w.rows >= _FEW_ROWS)
    latest = next(labelled, None)
    grid = Table.grid(padding=(0, 2))
    grid.add_row("accuracy", accuracy, "" if latest is None else f"{latest:.2f}")
    grid.add_row("verdict", outcome, windows[0].outcome if windows else "")
    return grid


def _records(seen: Seen, ledger: Ledger | None) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_row("champion", f"version {seen.champion}")
    if seen.incident is not None:
        grid.add_row("incident", f"{seen.incident.state}: {seen.incident.reason}")
    if seen.run is not None:
        grid.add_row("run", f"{seen.run.state}: {_progress(seen)}")
    if seen.rollout is not None:
        grid.add_row("rollout", f"{seen.rollout.state}: {seen.rollout.reason}")
    if ledger is not None:
        balance = "balances" if not ledger.problems else f"[red]{ledger.problems[0]}[/]"
        lost = f", [red]{ledger.lost} messages lost[/]" if ledger.lost else ""
        grid.add_row("ledger", f"{ledger.rows:,} rows, {ledger.labels:,} labels, {balance}{lost}")
    return grid


def _progress(seen: Seen) -> str:
    run = seen.run
    if run is None:
        return ""
    trials, budget = run.search.get("trials"), run.search.get("trials_budget")
    best = run.search.get("best")
    value = best.get("value") if isinstance(best, dict) else best
    if run.state == "searching" and trials is not None:
        return f"trial {trials} of {budget}" + (f", best {value:.3f}" if value else "")
    return run.reason


def _log(moments: Sequence[Moment]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for moment in moments[-_MOMENTS:]:
        clock = time.strftime("%H:%M:%S", time.localtime(moment.at_ms / 1000))
        grid.add_row(f"[dim]{clock}[/]", f"{moment.record} → {moment.to_state}", moment.reason)
    return grid


def _addresses(addresses: Sequence[tuple[str, str]]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for name, address in addresses:
        grid.add_row(f"[dim]{name}[/]", Text(address, style="dim", no_wrap=True))
    return grid
