"""Housekeeping: relay, traffic, retention, roll-up, and the check that the ledger balances.

Each under a lease of its own, bounded per tick.

Retention is measured in a model's event time (its newest row), not by the wall clock, so that a replay of
the past keeps what it needs. What still waits for its verdict or its join, or may get labels that change it,
holds that time back: a replay puts years of event time behind it in seconds. The outbox and rejected
payloads, which belong to no model's time, go by the clock.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, delete, func, select, update

from trimtab import logs
from trimtab.alerts.delivery import Relay
from trimtab.alerts.ledger import apply_ledger_alert
from trimtab.contracts.model import Contract
from trimtab.errors import ConflictError
from trimtab.monitor.rollup import Rolled, roll_up
from trimtab.store.engine import Store
from trimtab.store.joiners import ask_expiry
from trimtab.store.known_ids import forget_left_out
from trimtab.store.leases import Lease, acquire, check, release
from trimtab.store.ledger import ledger
from trimtab.store.models import load_contracts
from trimtab.store.settled import judged_to_ms, unjoined_from_ms
from trimtab.store.tables import (
    deliveries,
    outbox,
    rejected,
    row_samples,
    verdicts,
    watermarks,
)
from trimtab.windows.panes import start_of
from trimtab.windows.rollup import DAY_MS, HOUR_MS, Kept

RETENTION_EVERY_MS = 60_000
LEDGER_EVERY_MS = 60_000
ROWS_PER_TICK = 1_000
"""Rows deleted per table and tick: a long list goes over several ticks and never holds the lock for long."""
EXPIRY_STEPS = 720
"""Labels expire in steps of this part of their retention: hourly at 30 days."""

log = logs.get("housekeeping")


class Retention(Struct, frozen=True):
    """How long states are kept, in milliseconds of a model's event time (or of the clock, see above)."""

    panes_ms: int = 48 * HOUR_MS
    """Then they are folded into hours; see `monitor.rollup` for what stays longer."""
    hours_ms: int = 30 * DAY_MS
    """Then they are folded into days."""
    days_ms: int = 2 * 365 * DAY_MS
    labels_ms: int = 30 * DAY_MS
    samples_ms: int = 7 * DAY_MS
    verdict_detail_ms: int = 30 * DAY_MS
    """Older superseded revisions go, and the latest keeps its findings without the tree of figures."""
    rejected_ms: int = 7 * DAY_MS
    outbox_ms: int = 7 * DAY_MS


class Housekeeping:
    """Relay, traffic and retention. `tick` from one thread only."""

    def __init__(
        self,
        store: Store,
        owner: str,
        relay: Relay,
        retention: Retention | None = None,
        *,
        lease_s: float = 30.0,
        operator_webhooks: Sequence[str] = (),
    ) -> None:
        """`owner` names this process; `operator_webhooks` hear of trimtab itself."""
        self._store = store
        self._owner = owner
        self._relay = relay
        self._retention = retention or Retention()
        self._hold_ms = round(lease_s * 1000)
        self._leases: dict[str, Lease] = {}
        self._retained_ms: int | None = None
        self._checked_ms: int | None = None
        self._operator_webhooks = tuple(operator_webhooks)
        self._thinned_ms: dict[str, int] = {}
        """Per model, the last window whose verdict was thinned since this process began."""

    def tick(self, now_ms: int) -> int:
        """Do what is due; return how many messages were delivered and rows removed."""
        done = 0
        try:
            lease = self._held("relay", now_ms)
            if lease is not None:
                done += self._relay.deliver(lease, now_ms)
                done += self._relay.publish_traffic(lease, now_ms)
            due = self._retained_ms is None or now_ms - self._retained_ms >= RETENTION_EVERY_MS
            lease = self._held("retention", now_ms) if due else None
            if lease is not None:
                rolled, removed = self._roll_up(lease), self._retain(lease, now_ms)
                done += rolled.rows + removed
                if removed == 0 and not rolled.more:
                    self._retained_ms = now_ms
            due = self._checked_ms is None or now_ms - self._checked_ms >= LEDGER_EVERY_MS
            lease = self._held("ledger", now_ms) if due else None
            if lease is not None:
                self._check_ledger(lease, now_ms)
                self._checked_ms = now_ms
        except ConflictError:
            self._leases.clear()
            log.info("housekeeping_lost_lease", owner=self._owner)
        return done

    def close(self) -> None:
        """Give the leases back and close the relay."""
        for lease in self._leases.values():
            release(self._store, lease)
        self._leases.clear()
        self._relay.close()

    def _held(self, name: str, now_ms: int) -> Lease | None:
        lease = self._leases.get(name)
        if lease is None or lease.expires_ms - now_ms <= self._hold_ms // 2:
            lease = acquire(self._store, name, self._owner, now_ms, self._hold_ms)
            if lease is None:
                self._leases.pop(name, None)
            else:
                self._leases[name] = lease
        return lease

    def _check_ledger(self, lease: Lease, now_ms: int) -> None:
        """Say when the books do not balance: something was lost or counted twice."""
        problems = [text for entry in ledger(self._store, None) for text in entry.balance()]
        with self._store.write() as connection:
            check(connection, lease)
            change = apply_ledger_alert(connection, problems, self._operator_webhooks, now_ms)
        if change is not None:
            log.warning("ledger_alert", change=change.change, problems=problems[:10])

    # --- retention ----------------------------------------------------------------------------------

    def _newest_ms(self) -> Mapping[str, int]:
        """The newest event time of each model."""
        with self._store.read() as connection:
            return {
                row.model: row.newest
                for row in connection.execute(
                    select(
                        watermarks.c.model, func.max(watermarks.c.newest_ms).label("newest")
                    ).group_by(watermarks.c.model)
                )
            }

    def _roll_up(self, lease: Lease) -> Rolled:
        keep = self._retention
        kept = Kept(panes_ms=keep.panes_ms, hours_ms=keep.hours_ms, days_ms=keep.days_ms)
        watched = load_contracts(self._store)
        rows, more = 0, False
        for model, newest_ms in self._newest_ms().items():
            row = watched.get(model)
            contract = None if row is None else row.contract
            done = roll_up(self._store, lease, model, contract, newest_ms, kept, ROWS_PER_TICK)
            rows, more = rows + done.rows, more or done.more
        return Rolled(rows, more)

    def _retain(self, lease: Lease, now_ms: int) -> int:
        keep = self._retention
        watched = load_contracts(self._store)
        removed = 0
        for model, newest_ms in self._newest_ms().items():
            with self._store.write() as connection:
                check(connection, lease)
                row = watched.get(model)
                contract = None if row is None else row.contract
                removed += _forget_model(connection, model, contract, newest_ms, keep)
                removed += self._thin_verdicts(
                    connection, model, newest_ms - keep.verdict_detail_ms
                )
        with self._store.write() as connection:
            check(connection, lease)
            removed += _forget_by_clock(connection, now_ms, keep)
        return removed

    def _thin_verdicts(self, connection: Connection, model: str, before_ms: int) -> int:
        """Delete old superseded revisions, and the large figures of the ones that stay."""
        old = (verdicts.c.model == model) & (verdicts.c.window_start_ms < before_ms)
        ids = connection.scalars(
            select(verdicts.c.id).where(old, verdicts.c.latest.is_(False)).limit(ROWS_PER_TICK)
        ).all()
        if ids:
            connection.execute(delete(verdicts).where(verdicts.c.id.in_(ids)))
        query = select(verdicts.c.id, verdicts.c.window_start_ms, verdicts.c.body).where(
            old, verdicts.c.latest
        )
        if model in self._thinned_ms:
            query = query.where(verdicts.c.window_start_ms > self._thinned_ms[model])
        rows = connection.execute(
            query.order_by(verdicts.c.window_start_ms).limit(ROWS_PER_TICK // 10)
        ).all()
        for row in rows:
            body = msgspec.json.decode(row.body)
            for name in ("features", "prediction", "resources"):
                body["figures"].pop(name, None)
            connection.execute(
                update(verdicts)
                .where(verdicts.c.id == row.id)
                .values(body=msgspec.json.encode(body, order="deterministic").decode())
            )
            self._thinned_ms[model] = row.window_start_ms
        return len(ids) + len(rows)


def _forget_model(
    connection: Connection, model: str, contract: Contract | None, newest_ms: int, keep: Retention
) -> int:
    """Forget what is old. `contract` is None for a model that is watched no more."""
    labels_ms = keep.labels_ms
    if contract is not None:
        judged_ms = judged_to_ms(connection, model)
        if judged_ms is None:
            return 0
        # Under constant traffic something always waits for the joiner: it holds back what is newer.
        unjoined_ms = unjoined_from_ms(connection, model)
        newest_ms = min(newest_ms, judged_ms)
        newest_ms = newest_ms if unjoined_ms is None else min(newest_ms, unjoined_ms)
        horizon_ms = contract.labels.horizon_ms or 0
        # A label makes a new revision of its window, and that needs the window's counts.
        labels_ms = max(labels_ms, horizon_ms + 2 * contract.windows.length_ms)
    removed = _forget_samples(connection, model, newest_ms - keep.samples_ms)
    # Only the joiner knows what has joined, so it lets go of labels and their performance.
    before_ms = newest_ms - labels_ms
    ask_expiry(connection, model, start_of(before_ms, max(1, labels_ms // EXPIRY_STEPS)))
    return removed + forget_left_out(connection, model, before_ms, ROWS_PER_TICK)


def _forget_samples(connection: Connection, model: str, before_ms: int) -> int:
    """Delete a model's oldest samples before a time, up to the time that ROWS_PER_TICK of them reach."""
    column = row_samples.c.sample_start_ms
    times = connection.scalars(
        select(column)
        .where(row_samples.c.model == model, column < before_ms)
        .order_by(column)
        .limit(ROWS_PER_TICK)
    ).all()
    if not times:
        return 0
    done = connection.execute(
        delete(row_samples).where(row_samples.c.model == model, column <= times[-1])
    )
    return int(done.rowcount)


def _forget_by_clock(connection: Connection, now_ms: int, keep: Retention) -> int:
    ids = connection.scalars(
        select(outbox.c.id)
        .where(outbox.c.created_ms < now_ms - keep.outbox_ms)
        .limit(ROWS_PER_TICK)
    ).all()
    if ids:
        connection.execute(delete(deliveries).where(deliveries.c.outbox_id.in_(ids)))
        connection.execute(delete(outbox).where(outbox.c.id.in_(ids)))
    old = connection.scalars(
        select(rejected.c.id)
        .where(rejected.c.record_ms < now_ms - keep.rejected_ms)
        .limit(ROWS_PER_TICK)
    ).all()
    if old:
        connection.execute(delete(rejected).where(rejected.c.id.in_(old)))
    return len(ids) + len(old)
