"""Retention goes by a model's event time, in bounded steps."""

from __future__ import annotations

from sqlalchemy import func, select

from trimtab.alerts.delivery import Relay
from trimtab.contracts.model import Contract, Feature, Labels, Windows
from trimtab.monitor import housekeeping
from trimtab.monitor.evaluator import Evaluator
from trimtab.monitor.housekeeping import Housekeeping, Retention
from trimtab.store import verdicts
from trimtab.store.engine import open_store
from trimtab.store.tables import deliveries, metadata, outbox, panes
from trimtab.testing.series import SeriesWriter

START = 600_000_000_000  # 1989: the wall clock must not matter


class Sink:
    def publish(self, messages):
        return [None] * len(messages)

    def close(self) -> None:
        return None


def count(store, table) -> int:
    with store.read() as connection:
        return connection.scalar(select(func.count()).select_from(table))


def test_old_panes_and_old_detail_go_by_event_time_and_verdicts_stay(store_url, monkeypatch):
    monkeypatch.setattr(housekeeping, "ROWS_PER_TICK", 10)
    store = open_store(store_url)
    metadata.create_all(store.engine)
    contract = Contract(
        name="m",
        task="binary",
        features={"x": Feature("number")},
        windows=Windows(length="2s", pane="2s", out_of_order="0s", min_rows=5),
    )
    now_ms = 1_700_000_000_000
    writer = SeriesWriter(store, contract, now_ms)
    writer.fit_cuts({"x": [float(i) for i in range(50)]})
    for number in range(40):
        writer.rows(START + number * 2_000, {"x": [1.0] * 10})
    writer.passed(START + 80_000)
    assert Evaluator(store, "one").tick(now_ms) == 40

    keep = Retention(panes_ms=20_000, verdict_detail_ms=20_000, outbox_ms=1_000)
    keeper = Housekeeping(store, "one", Relay(store, Sink(), "tt"), keep)
    assert keeper.tick(now_ms) == 40 + 10 + 1  # deliveries, panes, one verdict thinned
    assert count(store, panes) == 30
    for step in range(1, 12):
        keeper.tick(now_ms + 5_000 + step)
    assert count(store, panes) == 10
    assert count(store, outbox) == count(store, deliveries) == 0
    kept = verdicts.verdicts_between(store, "m", 0, START * 2)
    assert len(kept) == 40
    assert "features" not in kept[0].verdict.figures
    assert kept[0].verdict.figures["rows"] == 10
    assert "x" in kept[-1].verdict.figures["features"]
    keeper.close()
    store.close()


def test_what_waits_for_a_verdict_or_for_labels_stays_whatever_its_age(store_url):
    store = open_store(store_url)
    metadata.create_all(store.engine)
    contract = Contract(
        name="m",
        task="binary",
        features={"x": Feature("number")},
        labels=Labels(arrive="within 40 s"),
        windows=Windows(length="2s", pane="2s", out_of_order="0s", min_rows=5),
    )
    now_ms = 1_700_000_000_000
    writer = SeriesWriter(store, contract, now_ms)
    writer.fit_cuts({"x": [float(i) for i in range(50)]})
    for number in range(40):
        writer.rows(START + number * 2_000, {"x": [1.0] * 10})
    writer.passed(START + 80_000)
    keeper = Housekeeping(store, "one", Relay(store, Sink(), "tt"), Retention(panes_ms=10_000))
    keeper.tick(now_ms)
    assert count(store, panes) == 40  # nothing has been judged yet

    assert Evaluator(store, "one").tick(now_ms) == 40
    for step in range(1, 5):
        keeper.tick(now_ms + step * 100_000)
    assert count(store, panes) == 22  # labels may come for 40 s, and two windows more
    keeper.close()
    store.close()


def test_a_late_label_does_not_unsay_a_window_whose_counts_are_gone(store_url):
    store = open_store(store_url)
    metadata.create_all(store.engine)
    contract = Contract(
        name="m",
        task="binary",
        features={"x": Feature("number")},
        windows=Windows(length="2s", pane="2s", out_of_order="0s", min_rows=5),
    )
    now_ms = 1_700_000_000_000
    writer = SeriesWriter(store, contract, now_ms)
    writer.fit_cuts({"x": [float(i) for i in range(50)]})
    writer.rows(START, {"x": [1.0] * 10})
    writer.passed(START + 2_000)
    evaluator = Evaluator(store, "one")
    assert evaluator.tick(now_ms) == 1
    with store.write() as connection:
        connection.execute(panes.delete())
    writer.labels(START, {("yes", "yes"): 9, ("yes", "no"): 1}, predicted_rows=10)
    assert evaluator.tick(now_ms + 100_000) == 0
    (only,) = verdicts.verdict_history(store, "m", START)
    assert only.verdict.figures["rows"] == 10
    store.close()
