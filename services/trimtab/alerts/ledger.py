"""The one alert about trimtab itself: the ledger does not balance.

It has no model (`model` is ""), so only keys of every model see it. It opens when any partition's ledger
does not balance, follows what is wrong, and is resolved when everything balances again.
"""

import hashlib
from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection

from trimtab.alerts.lifecycle import AlertChange
from trimtab.events.types import ALERT_TYPE
from trimtab.records import Alert, AlertState, Kind
from trimtab.store import alerts

CONDITION = "ledger"
SUMMARY_CHARACTERS_MAX = 600


def next_ledger_alert(
    held: Alert | None, problems: Sequence[str], now_ms: int
) -> AlertChange | None:
    """Return what the ledger's problems change; `held` is the open alert, None without one."""
    if held is None:
        return AlertChange("opened", _opened(problems, now_ms)) if problems else None
    if not problems:
        return AlertChange(
            "resolved",
            msgspec.structs.replace(
                held,
                state=AlertState.RESOLVED,
                updated_ms=now_ms,
                resolved_ms=now_ms,
                resolution="Every partition balances again.",
            ),
        )
    said = _summary(problems)
    if said == held.summary:
        return None
    return AlertChange("updated", msgspec.structs.replace(held, updated_ms=now_ms, summary=said))


def _opened(problems: Sequence[str], now_ms: int) -> Alert:
    return Alert(
        id=hashlib.sha256(f"{CONDITION}\x1f{now_ms}".encode()).hexdigest()[:16],
        model="",
        condition=CONDITION,
        kind=Kind.LEDGER,
        state=AlertState.OPEN,
        opened_ms=now_ms,
        updated_ms=now_ms,
        window_start_ms=now_ms,
        last_window_ms=now_ms,
        windows=0,
        verdict_id=0,
        summary=_summary(problems),
    )


def _summary(problems: Sequence[str]) -> str:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    first = problems[0][:SUMMARY_CHARACTERS_MAX]
    return f"The ledger does not balance: {first}{more}. `trimtab ledger show` names all."


def apply_ledger_alert(
    connection: Connection, problems: Sequence[str], webhooks: Sequence[str], now_ms: int
) -> AlertChange | None:
    """Open, update or resolve the alert, and queue what receivers should hear, in the caller's transaction.

    `webhooks` are the names of those that hear of trimtab itself.
    """
    open_ = [a for a in alerts.open_alerts(connection, "", lock=True) if a.condition == CONDITION]
    change = next_ledger_alert(open_[0] if open_ else None, problems, now_ms)
    if change is None:
        return None
    alert = change.alert
    silenced = any(s.mutes(CONDITION, now_ms) for s in alerts.silences_of(connection, "", now_ms))
    told = [] if silenced or change.change == "updated" else webhooks
    alerts.save_alert(connection, alert)
    alerts.enqueue(
        connection,
        f"alert:{alert.id}:{change.change}:{now_ms}",
        alerts.OUTCOMES,
        alerts.key_of(alert),
        ALERT_TYPE,
        alerts.alert_event_body(alert, change.change, silenced=silenced),
        now_ms,
        [alerts.KAFKA, *(f"webhook:{name}" for name in told)],
    )
    return change
