"""The demo's closing words: figures read from the store, as a table or as JSON."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from trimtab.records import Kind
from trimtab.store.agent import transitions_of
from trimtab.store.alerts import alerts_of
from trimtab.store.arm_counts import arm_counts
from trimtab.store.engine import Store
from trimtab_agent.demo.script import STEADY_WINDOWS, Seen, Window, mean_accuracy
from trimtab_agent.demo.watch import Ledger, look, moments

_ALL_WINDOWS = 500
_LIVE = ("dashboard", "API key")
"""Addresses that end with the processes."""


class Played(Struct, frozen=True):
    """A phase and when it was played, in wall-clock milliseconds."""

    name: str
    from_ms: int
    to_ms: int


class Summary(Struct, frozen=True, kw_only=True):
    """What happened. Accuracies are over labelled rows of whole windows."""

    ending: str
    accuracy_before_drift: float | None
    accuracy_at_alert: float | None
    """Until the first alert about performance."""
    accuracy_after: float | None
    alerts_opened: int
    alerts: list[str]
    """Their conditions, first opened first."""
    why_retrained: str
    gate: dict[str, Any]
    challenger_share_max: float
    """Largest share of any window's rows that the challenger's arm got before promotion."""
    rows_streamed: int
    requests: dict[str, int]
    ledger_balances: bool
    ledger_problems: list[str]
    messages_lost: int
    elapsed_s: float
    transitions: list[dict[str, Any]]
    restarts: list[str]
    addresses: dict[str, str]


def summarise(
    store: Store,
    model: str,
    played: Sequence[Played],
    ledger: Ledger,
    *,
    elapsed_s: float,
    client: dict[str, int],
    restarts: Sequence[str],
    addresses: dict[str, str],
    bad_challenger: bool,
) -> Summary:
    """Read the figures of a finished demo from the store."""
    seen = look(store, model, windows=_ALL_WINDOWS)
    phases = {phase.name: phase for phase in played}
    healthy = phases["healthy"]
    alerts = alerts_of(store, model)
    of_quality = [alert for alert in alerts if alert.kind is Kind.PERFORMANCE]
    first_alert = min((alert.window_start_ms for alert in of_quality), default=None)
    opened_ms = min((alert.opened_ms for alert in of_quality), default=None)
    before = [window for window in seen.windows if window.start_ms < healthy.to_ms]
    at_alert = [
        window
        for window in seen.windows
        if first_alert is not None
        and opened_ms is not None
        and first_alert <= window.start_ms <= opened_ms
    ]
    return Summary(
        ending="rolled back" if bad_challenger else "promoted",
        accuracy_before_drift=mean_accuracy(before),
        accuracy_at_alert=mean_accuracy(at_alert),
        accuracy_after=mean_accuracy(_after(seen)),
        alerts_opened=seen.alerts_opened,
        alerts=[alert.condition for alert in sorted(alerts, key=lambda alert: alert.opened_ms)],
        why_retrained=_why(store, seen),
        gate=seen.run.gate if seen.run else {},
        challenger_share_max=_largest_share(store, model),
        rows_streamed=ledger.rows,
        requests=client,
        ledger_balances=not ledger.problems,
        ledger_problems=ledger.problems,
        messages_lost=ledger.lost,
        elapsed_s=round(elapsed_s, 1),
        transitions=[
            {
                "at": datetime.fromtimestamp(moment.at_ms / 1000, UTC).isoformat(),
                "record": moment.record,
                "to": moment.to_state,
                "reason": moment.reason,
            }
            for moment in moments(store, model)
        ],
        restarts=list(restarts),
        addresses=addresses,
    )


def _why(store: Store, seen: Seen) -> str:
    """Why the run was started, in the agent's words."""
    steps = transitions_of(store, "run", seen.run.id) if seen.run else []
    return steps[0].reason if steps else ""


def _after(seen: Seen) -> list[Window]:
    """The windows since the promotion, or those that showed the model to be ok again."""
    if seen.rollout is not None and seen.rollout.promoted_ms is not None:
        return seen.since(seen.rollout.promoted_ms)
    return [window for window in seen.windows if window.accuracy is not None][:STEADY_WINDOWS]


def _largest_share(store: Store, model: str) -> float:
    """Largest share that the challenger's arm really got in one of the canary's revisions."""
    seen = look(store, model)
    if seen.rollout is None:
        return 0.0
    revisions = [int(step["revision"]) for step in seen.rollout.steps]
    shares = [0.0]
    for revision in revisions:
        counts = [count for count in arm_counts(store, model, [revision], None) if count.rows]
        rows = sum(count.rows for count in counts)
        shares += [count.rows / rows for count in counts if count.arm == "challenger" and rows]
    return round(max(shares), 4)


def show(summary: Summary, console: Console, *, running: bool) -> None:
    """Print the summary as tables; addresses are never cut, and `running` says that they answer."""
    console.print()  # in a file the board above ends without a line break
    facts, log = _tables(summary)
    console.print(facts)
    for name, address in summary.addresses.items():
        if running or name not in _LIVE:
            console.print(f"{name}  {address}", markup=False, highlight=False, soft_wrap=True)
    if not running:
        console.print(
            "Nothing runs any more; --keep leaves everything running, with its dashboard."
        )
    console.print()
    console.print(log)


def _tables(summary: Summary) -> tuple[RenderableType, RenderableType]:
    facts = Table.grid(padding=(0, 2))
    ended = (
        "the challenger was worse on live traffic and was rolled back"
        if summary.ending == "rolled back"
        else "the challenger was promoted"
    )
    facts.add_row("[bold]ending[/]", ended)
    for name, value in (
        ("accuracy before drift", summary.accuracy_before_drift),
        ("accuracy at the alert", summary.accuracy_at_alert),
        ("accuracy at the end", summary.accuracy_after),
    ):
        facts.add_row(name, "not measured" if value is None else f"{value:.3f}")
    facts.add_row("alerts", "; ".join(summary.alerts) or "none")
    facts.add_row("why retrained", Text(summary.why_retrained))
    facts.add_row("challenger's largest share", f"{summary.challenger_share_max:.0%}")
    facts.add_row("rows streamed", f"{summary.rows_streamed:,}")
    balance = "balances" if summary.ledger_balances else "; ".join(summary.ledger_problems)
    facts.add_row("ledger", f"{balance}, {summary.messages_lost} messages lost")
    facts.add_row("time", f"{summary.elapsed_s:.0f} s")
    if summary.restarts:
        facts.add_row("processes restarted", ", ".join(summary.restarts))
    log = Table(title="What happened", title_justify="left", box=None, padding=(0, 2, 0, 0))
    log.add_column("time (UTC)", style="dim")
    log.add_column("record")
    log.add_column("why")
    for step in summary.transitions:
        log.add_row(step["at"][11:19], f"{step['record']} → {step['to']}", Text(step["reason"]))
    return facts, log
