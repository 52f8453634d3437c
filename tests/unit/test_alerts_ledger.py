"""A ledger that does not balance calls people: once, until it balances again."""

from __future__ import annotations

import msgspec
import pytest
from sqlalchemy import select, update

from trimtab.alerts.delivery import Relay
from trimtab.alerts.ledger import next_ledger_alert
from trimtab.api.metrics import scrape
from trimtab.errors import ConflictError
from trimtab.monitor.housekeeping import LEDGER_EVERY_MS, Housekeeping
from trimtab.records import AlertState, Kind
from trimtab.store import alerts, ledger, overview
from trimtab.store.engine import open_store
from trimtab.store.tables import deliveries, leases, metadata, outbox, partitions

NOW_MS = 1_700_000_000_000


def test_an_alert_opens_once_follows_what_is_wrong_and_ends_when_nothing_is():
    assert next_ledger_alert(None, [], 1) is None
    opened = next_ledger_alert(None, ["a is wrong"], 1)
    assert (opened.change, opened.alert.state) == ("opened", AlertState.OPEN)
    assert (opened.alert.model, opened.alert.kind) == ("", Kind.LEDGER)
    assert next_ledger_alert(opened.alert, ["a is wrong"], 2) is None
    more = next_ledger_alert(opened.alert, ["a is wrong", "b is wrong"], 3)
    assert (more.change, more.alert.id) == ("updated", opened.alert.id)
    assert "a is wrong (and 1 more)" in more.alert.summary
    seen = msgspec.structs.replace(more.alert, state=AlertState.ACKNOWLEDGED, acknowledged_by="me")
    still = next_ledger_alert(seen, ["b is wrong"], 4)
    assert still.alert.state is AlertState.ACKNOWLEDGED
    over = next_ledger_alert(still.alert, [], 5)
    assert (over.change, over.alert.state, over.alert.resolved_ms) == (
        "resolved",
        AlertState.RESOLVED,
        5,
    )


class Sink:
    """A Kafka that takes everything."""

    def __init__(self):
        self.messages = []

    def publish(self, messages):
        self.messages += messages
        return [None] * len(messages)

    def close(self) -> None:
        return None


@pytest.fixture
def store(store_url):
    store = open_store(store_url)
    metadata.create_all(store.engine)
    ledger.claim(
        store,
        consumer="monitor",
        cluster_id="c",
        topic="in",
        topic_id="",
        partition=0,
        owner="one",
        beginning_offset=0,
        now_ms=NOW_MS,
    )
    yield store
    store.close()


def set_rows(store, rows):
    with store.write() as connection:
        connection.execute(update(partitions).values(rows=rows))


def told(store):
    with store.read() as connection:
        return connection.execute(
            select(deliveries.c.receiver, outbox.c.key, outbox.c.body)
            .join(outbox, outbox.c.id == deliveries.c.outbox_id)
            .order_by(outbox.c.id, deliveries.c.receiver)
        ).all()


def keeper_of(store, owner="one"):
    return Housekeeping(
        store, owner, Relay(store, Sink(), "tt"), operator_webhooks=["night"], lease_s=1
    )


def test_an_imbalance_alarms_once_and_is_resolved_when_the_ledger_balances_again(store):
    keeper = keeper_of(store)
    keeper.tick(NOW_MS)
    assert alerts.open_alerts(store) == []
    assert b"trimtab_ledger_problems 0.0" in scrape(store, "*")

    set_rows(store, 3)
    keeper.tick(NOW_MS + LEDGER_EVERY_MS - 1)
    assert alerts.open_alerts(store) == []  # it looks every minute
    for minute in (1, 2, 3):
        keeper.tick(NOW_MS + minute * LEDGER_EVERY_MS)
    (alert,) = alerts.open_alerts(store, "")
    assert "monitor in[0]: 3 rows, but classes sum to {}" in alert.summary
    assert [(r.receiver, r.key) for r in told(store)] == [
        ("kafka", "trimtab"),
        ("webhook:night", "trimtab"),
    ]
    assert b"trimtab_ledger_problems 1.0" in scrape(store, "*")
    assert b"trimtab_ledger_problems" not in scrape(store, "team:risk")
    for scope, seen in (("*", 1), ("team:default", 0), ("model:m", 0)):
        assert len(overview.alerts_page(store, scope=scope).items) == seen
    alerts.acknowledge(store, alert.id, "me", NOW_MS)

    set_rows(store, 0)
    keeper.tick(NOW_MS + 4 * LEDGER_EVERY_MS)
    assert alerts.open_alerts(store) == []
    (closed,) = alerts.alerts_of(store)
    assert closed.resolution == "Every partition balances again."
    changes = [msgspec.json.decode(r.body)["data"]["change"] for r in told(store)]
    assert changes == ["opened", "opened", "acknowledged", "resolved", "resolved"]
    keeper.close()


def test_a_silenced_alert_calls_no_webhook_and_stays_on_record(store):
    set_rows(store, 3)
    alerts.silence(store, "", "ledger", NOW_MS, NOW_MS + 10_000, "me")
    keeper = keeper_of(store)
    keeper.tick(NOW_MS)
    assert [r.receiver for r in told(store)] == ["kafka"]
    assert len(alerts.open_alerts(store)) == 1
    keeper.close()


def test_a_keeper_that_lost_its_lease_writes_no_alert(store):
    set_rows(store, 3)
    keeper = keeper_of(store)
    lease = keeper._held("ledger", NOW_MS)
    with store.write() as connection:
        connection.execute(
            update(leases).where(leases.c.name == "ledger").values(token=lease.token + 1)
        )
    with pytest.raises(ConflictError):
        keeper._check_ledger(lease, NOW_MS)
    assert alerts.open_alerts(store) == []
    keeper.close()
