"""What the demo sees: everything is read from the store that any operator reads."""

from msgspec import Struct

from trimtab.records import Alert, AlertState, Kind, Rollout, Run
from trimtab.store.agent import (
    RecordKind,
    current_traffic,
    list_incidents,
    list_rollouts,
    list_runs,
    transitions_of,
)
from trimtab.store.alerts import alerts_of
from trimtab.store.engine import Store
from trimtab.store.ledger import PartitionLedger, ledger
from trimtab.store.verdicts import VerdictRow, latest_verdicts
from trimtab_agent.demo.script import Seen, Window

WINDOWS_SHOWN = 40


class Moment(Struct, frozen=True):
    """One step of a record, for the board's log and the summary."""

    at_ms: int
    record: str
    to_state: str
    reason: str


def look(store: Store, model: str, windows: int = WINDOWS_SHOWN) -> Seen:
    """What the store shows of the model now."""
    alerts: list[Alert] = alerts_of(store, model)
    incidents = list_incidents(store, model, limit=5)
    runs: list[Run] = list_runs(store, model, limit=1)
    rollouts: list[Rollout] = list_rollouts(store, model, limit=1)
    reasons = {
        str(transition.inputs.get("reason_code", ""))
        for incident in incidents
        for transition in transitions_of(store, "incident", incident.id)
    } | {str(incident.decision.get("reason_code", "")) for incident in incidents}
    traffic = current_traffic(store, model)
    return Seen(
        windows=[_window(row) for row in latest_verdicts(store, model, limit=windows)],
        champion=traffic.arms[0].version if traffic else "",
        alerts_opened=len(alerts),
        quality_alerts=sum(alert.kind is Kind.PERFORMANCE for alert in alerts),
        alerts_open=sum(alert.state != AlertState.RESOLVED for alert in alerts),
        reasons=frozenset(reasons - {""}),
        incident=incidents[0] if incidents else None,
        run=runs[0] if runs else None,
        rollout=rollouts[0] if rollouts else None,
    )


def moments(store: Store, model: str) -> list[Moment]:
    """Every transition of the model's records and alerts so far, oldest first."""
    records: list[tuple[RecordKind, str]] = [
        *(("incident", row.id) for row in list_incidents(store, model)),
        *(("run", row.id) for row in list_runs(store, model)),
        *(("rollout", row.id) for row in list_rollouts(store, model)),
    ]
    found = [
        Moment(transition.at_ms, record, transition.to_state, transition.reason)
        for record, record_id in records
        for transition in transitions_of(store, record, record_id)
    ]
    for alert in alerts_of(store, model):
        found.append(Moment(alert.opened_ms, "alert", "open", alert.condition))
        if alert.resolved_ms is not None:
            found.append(Moment(alert.resolved_ms, "alert", "resolved", alert.resolution or ""))
    return sorted(found, key=lambda moment: moment.at_ms)


class Ledger(Struct, frozen=True, kw_only=True):
    """The ledgers of the monitor in sum, and where one does not balance."""

    rows: int
    labels: int
    lost: int
    lag_messages: int
    """Messages that the slowest reader (monitor or archive) has yet to read on its worst partition."""
    problems: list[str]


def read_ledger(store: Store) -> Ledger:
    """Sum the ledgers."""
    partitions: list[PartitionLedger] = ledger(store)
    monitor = [row for row in partitions if row.consumer == "monitor"]
    return Ledger(
        rows=sum(row.rows for row in monitor),
        labels=sum(row.labels for row in monitor),
        lost=sum(row.lost for row in partitions),
        lag_messages=max(
            ((row.end_offset or 0) - row.next_offset for row in partitions), default=0
        ),
        problems=[problem for row in monitor for problem in row.balance()],
    )


def _window(row: VerdictRow) -> Window:
    figures = row.verdict.figures
    right, labelled = 0.0, 0
    for version in figures.get("performance", {}).values():
        accuracy = version.get("figures", {}).get("accuracy", {}).get("value")
        if accuracy is not None:
            labelled += version["labelled_rows"]
            right += accuracy * version["labelled_rows"]
    return Window(
        start_ms=row.verdict.window_start_ms,
        outcome=str(row.verdict.outcome),
        accuracy=right / labelled if labelled else None,
        rows=labelled,
    )
