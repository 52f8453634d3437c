"""A silent monitor, unread messages and rows that came too early are shown, not guessed."""

import pytest

from trimtab.contracts.model import Contract
from trimtab.monitor.evaluator import Evaluator
from trimtab.store.engine import open_store
from trimtab.store.flushes import held_total
from trimtab.store.ledger import Advance, ClassKey, add_classes, advance, claim
from trimtab.store.migrate import upgrade
from trimtab.store.models import apply_contract
from trimtab.store.overview import ledger_lines, monitor_pulse, unknown_model_rows
from trimtab.store.tables import held_rows, panes
from trimtab.store.verdicts import progress_of


@pytest.fixture
def store(sqlite_url):
    store = open_store(sqlite_url)
    upgrade(store)
    yield store
    store.close()


def claimed(store, now_ms):
    return claim(
        store,
        consumer="monitor",
        cluster_id="c",
        topic="t",
        topic_id="",
        partition=0,
        owner="me",
        beginning_offset=0,
        now_ms=now_ms,
    )


def test_without_a_monitor_there_is_no_pulse(store):
    pulse = monitor_pulse(store)

    assert (pulse.seen_ms, pulse.unread) == (None, 0)


def test_the_pulse_tells_the_last_sign_of_life_and_what_is_unread(store):
    mine = claimed(store, 1_000)
    with store.write() as connection:
        step = Advance(from_offset=0, next_offset=10, messages=10, rows=10, end_offset=25)
        advance(connection, mine.partition_id, mine.epoch, step, 5_000)

    pulse = monitor_pulse(store)

    assert (pulse.seen_ms, pulse.unread) == (5_000, 15)
    assert [line.unread for line in ledger_lines(store)] == [15]


def test_rows_of_models_without_a_contract_are_counted_for_the_one_who_applies_it_late(store):
    mine = claimed(store, 1_000)
    with store.write() as connection:
        counts = {
            ClassKey("row", "", "ignored", "unknown_model"): 7,
            ClassKey("row", "", "rejected", "bad_json"): 3,
        }
        add_classes(connection, mine.partition_id, counts)

    assert unknown_model_rows(store) == 7


def test_no_window_is_judged_while_rows_are_held_for_the_cuts(store):
    apply_contract(store, Contract(name="m", task="binary"), "", "test", 0)
    mine = claimed(store, 1_000)
    pane = {
        "model": "m",
        "pane_start_ms": 0,
        "version": "1",
        "arm": "",
        "traffic_revision": 0,
        "segment": "",
        "partition_id": mine.partition_id,
        "generation": 0,
        "cuts_id": "c",
        "pane_length_ms": 60_000,
        "rows": 1,
        "state": b"",
        "sealed": False,
        "first_offset": 0,
        "next_offset": 1,
        "flush_seq": 1,
    }
    held = {
        "model": "m",
        "partition_id": mine.partition_id,
        "first_offset": 0,
        "rows": 5,
        "body": b"",
    }
    with store.write() as connection:
        connection.execute(panes.insert().values(**pane))
        connection.execute(held_rows.insert().values(**held))
    evaluator = Evaluator(store, "test")

    assert evaluator.tick(10_000) == 0

    with store.read() as connection:
        assert held_total(connection, "m") == 5
        assert progress_of(connection, "m") is None
    evaluator.close()
