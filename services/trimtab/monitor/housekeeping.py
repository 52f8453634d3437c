"""Housekeeping: relay, traffic, retention, roll-up, and the check that the ledger balances.

Each under a lease of its own, bounded per tick.

Retention is measured in a model's event time (its newest row), not by the wall clock, so that a replay of
the past keeps what it needs. What still waits for its verdict or its join, or may get labels that change it,
holds that time back: a replay puts years of event time behind it in seconds. The outbox and rejected
payloads, which belong to no model's time, go by the clock. A round looks at the models that have moved since
they were last looked at to the end: of the others nothing has grown old.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, delete, select, update

from trimtab import logs
from trimtab.alerts.delivery import Relay
from trimtab.alerts.ledger import apply_ledger_alert
from trimtab.contracts.model import Contract
from trimtab.errors import ConflictError
from trimtab.monitor.rollup import Rolled, roll_up
from trimtab.store.engine import Store
from trimtab.store.joiners import ask_expiry
from trimtab.store.known_ids import forget_left_out
from trimtab.store.labelled_scores import keep_notes, notes_due
from trimtab.store.leases import Lease, acquire, check, release
from trimtab.store.ledger import ledger
from trimtab.store.models import ContractRow, CurrentContracts
from trimtab.store.oldest import Oldest, oldest_of
from trimtab.store.reference_labels import keep_labels, labels_due
from trimtab.store.rollups import forget_stray_gauges
from trimtab.store.settled import Stand, judged_to_ms, stands, unjoined_from_ms
from trimtab.store.tables import (
    deliveries,
    outbox,
    rejected,
    row_samples,
    verdicts,
)
from trimtab.windows.panes import start_of
from trimtab.windows.rollup import DAY_MS, HOUR_MS, Kept

RETENTION_EVERY_MS = 60_000
LEDGER_EVERY_MS = 60_000
ROWS_PER_TICK = 1_000
"""Rows deleted per table and tick: a long list goes over several ticks and never holds the lock for long."""
MODELS_PER_TICK = 100
LOOK_AT_ALL_MS = 6 * HOUR_MS
"""Gauges of a window that is still open move nothing of a model that a round could see."""
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


class _Look(Struct, frozen=True):
    """What a model was when it was looked at."""

    model: str
    stand: Stand
    row: ContractRow | None
    """None for a model that is watched no more."""


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
        self._contracts = CurrentContracts(store)
        self._round: dict[str, None] = {}
        """Models that this round has yet to look at, or to finish."""
        self._settled: dict[str, _Look] = {}
        """What models were when nothing of them was old any more."""
        self._looked_at_all_ms: int | None = None
        self._forgets_strays = False
        """Whether gauges of models without rows are due to be looked at."""
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
                removed = self._retain(lease, now_ms)
                done += removed
                if removed == 0 and not self._round:
                    self._retained_ms = now_ms
            due = self._checked_ms is None or now_ms - self._checked_ms >= LEDGER_EVERY_MS
            lease = self._held("ledger", now_ms) if due else None
            if lease is not None:
                self._check_ledger(lease, now_ms)
                self._checked_ms = now_ms
        except ConflictError:
            self._leases.clear()
            self._round.clear()
            log.info("housekeeping_lost_lease", owner=self._owner)
        return done

    @property
    def behind(self) -> bool:
        """Whether a round of retention has models left: the next tick should come soon."""
        return bool(self._round)

    def close(self) -> None:
        """Give the leases back and close the relay."""
        try:
            for lease in self._leases.values():
                release(self._store, lease)
        finally:
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

    def _retain(self, lease: Lease, now_ms: int) -> int:
        """Do a part of a round; `_round` is empty afterwards when it was the last. Return the rows removed."""
        looks = self._looks()
        if not self._round:
            self._begin_round(looks, now_ms)
        removed = 0
        turn = list(self._round)[:MODELS_PER_TICK]
        with self._store.read() as connection:
            oldest = oldest_of(connection, turn)
        for model in turn:
            del self._round[model]
            gone, more = self._retain_model(lease, looks[model], oldest[model])
            removed += gone
            if more:
                self._round[model] = None  # its turn comes again after the others'
            else:
                self._settled[model] = looks[model]
        with self._store.write() as connection:
            check(connection, lease)
            if self._forgets_strays:
                gone = forget_stray_gauges(connection, self._retention.days_ms, ROWS_PER_TICK)
                self._forgets_strays = gone >= ROWS_PER_TICK
                removed += gone
            return removed + _forget_by_clock(connection, now_ms, self._retention)

    def _looks(self) -> dict[str, _Look]:
        self._contracts.refresh()
        with self._store.read() as connection:
            found = stands(connection)
        return {m: _Look(m, stand, self._contracts.rows.get(m)) for m, stand in found.items()}

    def _begin_round(self, looks: Mapping[str, _Look], now_ms: int) -> None:
        """Take the models that have moved; now and then every model: see LOOK_AT_ALL_MS."""
        if self._looked_at_all_ms is None or now_ms - self._looked_at_all_ms >= LOOK_AT_ALL_MS:
            self._settled.clear()
            self._looked_at_all_ms = now_ms
            self._forgets_strays = True
        moved = (m for m, look in looks.items() if look != self._settled.get(m))
        self._round = dict.fromkeys(moved)

    def _retain_model(self, lease: Lease, look: _Look, oldest: Oldest) -> tuple[int, bool]:
        """Return the rows that went, and whether more may be due at once."""
        keep, newest_ms = self._retention, look.stand.newest_ms
        contract = None if look.row is None else look.row.contract
        model = look.model
        kept = Kept(panes_ms=keep.panes_ms, hours_ms=keep.hours_ms, days_ms=keep.days_ms)
        rolled, ages = Rolled(0, more=False), oldest.may_age(newest_ms, kept)
        if ages or oldest.may_seal(newest_ms, watched=contract is not None):
            rolled = roll_up(
                *(self._store, lease, model, contract, newest_ms, kept, ROWS_PER_TICK),
                only_panes=not ages,
            )
        if contract is not None:
            self._keep_reference_labels(lease, contract, newest_ms)
        if not self._may_forget(model, contract, oldest, newest_ms):
            return rolled.rows, rolled.more
        with self._store.write() as connection:
            check(connection, lease)
            removed = _forget_model(connection, model, contract, newest_ms, keep)
            removed += self._thin_verdicts(connection, model, newest_ms - keep.verdict_detail_ms)
        return rolled.rows + removed, removed > 0 or rolled.more

    def _keep_reference_labels(self, lease: Lease, contract: Contract, newest_ms: int) -> None:
        """Keep a baseline's labels, and what they say of its scores, before `_forget_model` lets them go."""
        labels_ms = _labels_kept_ms(contract, self._retention)
        expire_to_ms = _expire_to_ms(newest_ms - labels_ms, labels_ms)
        with self._store.read() as connection:
            due = notes_due(connection, contract, newest_ms, expire_to_ms)
            labels = labels_due(connection, contract, newest_ms, expire_to_ms)
        if due or labels:
            with self._store.write() as connection:
                check(connection, lease)
                keep_notes(connection, due)
                for baseline_id, by_version in labels.items():
                    keep_labels(connection, baseline_id, by_version)

    def _may_forget(
        self, model: str, contract: Contract | None, oldest: Oldest, newest_ms: int
    ) -> bool:
        """Whether anything but counts and gauges may be older than it is kept."""
        keep = self._retention
        detail_ms = newest_ms - keep.verdict_detail_ms
        labels_ms = _labels_kept_ms(contract, keep)
        whole_ms = oldest.judged_ms  # the oldest window whose verdict has its details
        if model in self._thinned_ms:
            length_ms = 1 if contract is None else contract.windows.length_ms
            whole_ms = self._thinned_ms[model] + length_ms
        return oldest.left_out_run is not None or any(
            start_ms is not None and start_ms < before_ms
            for start_ms, before_ms in (
                (oldest.sample_ms, newest_ms - keep.samples_ms),
                (oldest.expire_to_ms, _expire_to_ms(newest_ms - labels_ms, labels_ms)),
                (oldest.superseded_ms, detail_ms),
                (whole_ms, detail_ms),
            )
        )

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
    if contract is not None:
        judged_ms = judged_to_ms(connection, model)
        if judged_ms is None:
            return 0
        # Under constant traffic something always waits for the joiner: it holds back what is newer.
        unjoined_ms = unjoined_from_ms(connection, model)
        newest_ms = min(newest_ms, judged_ms)
        newest_ms = newest_ms if unjoined_ms is None else min(newest_ms, unjoined_ms)
    removed = _forget_samples(connection, model, newest_ms - keep.samples_ms)
    # Only the joiner knows what has joined, so it lets go of labels and their performance.
    labels_ms = _labels_kept_ms(contract, keep)
    before_ms = newest_ms - labels_ms
    ask_expiry(connection, model, _expire_to_ms(before_ms, labels_ms))
    return removed + forget_left_out(connection, model, before_ms, ROWS_PER_TICK)


def _labels_kept_ms(contract: Contract | None, keep: Retention) -> int:
    """How long labels are kept: one makes a new revision of its window, which needs the window's counts."""
    if contract is None:
        return keep.labels_ms
    horizon_ms = contract.labels.horizon_ms or 0
    return max(keep.labels_ms, horizon_ms + 2 * contract.windows.length_ms)


def _expire_to_ms(before_ms: int, labels_ms: int) -> int:
    """Up to where joiners are asked to let go, in steps."""
    return start_of(before_ms, max(1, labels_ms // EXPIRY_STEPS))


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
    old = (row_samples.c.model == model) & (column <= times[-1])
    # In the order in which a flush writes them, or the two may wait for each other.
    connection.execute(
        select(column).where(old).order_by(column, row_samples.c.partition_id).with_for_update()
    ).all()
    done = connection.execute(delete(row_samples).where(old))
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
