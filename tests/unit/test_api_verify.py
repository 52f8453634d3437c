"""`trimtab verify` confirms what the stored states still give, and names what they no longer hold."""

from collections.abc import Iterator

import numpy as np
import pytest
from sqlalchemy import delete

from trimtab.contracts.model import Alarms, Contract, Feature, Labels, Reference, Windows
from trimtab.monitor.evaluator import Evaluator
from trimtab.monitor.verify import verify_verdict
from trimtab.store import migrate
from trimtab.store.engine import Store, open_store
from trimtab.store.tables import panes
from trimtab.store.verdicts import latest_verdicts, verdict_history
from trimtab.testing.series import SeriesWriter

START = 1_700_000_000_000
LENGTH = 2_000


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


def judged(store: Store, windows: int = 6) -> SeriesWriter:
    contract = Contract(
        name="m",
        task="binary",
        features={"x": Feature("number")},
        labels=Labels("within 1 min"),
        windows=Windows(length="2s", pane="2s", lateness="1 min", out_of_order="0s", min_rows=20),
        alarms=Alarms(rules=("accuracy < 0.9 in 2 of 3", "psi(x) > 0.25 in 2 of 3")),
        reference=Reference(windows=3),
    )
    writer = SeriesWriter(store, contract, START)
    rng = np.random.default_rng(3)
    writer.fit_cuts({"x": rng.normal(size=2_000).tolist()}, ["a", "b"])
    for number in range(windows):
        answers = ["a" if row % 2 else "b" for row in range(200)]
        start_ms = START + number * LENGTH
        writer.rows(start_ms, {"x": (rng.normal(size=200) + number).tolist()}, prediction=answers)
        writer.labels(start_ms, [("a", "a")] * 170 + [("a", "b")] * 30, predicted_rows=200)
    writer.passed(START + windows * LENGTH)
    evaluator = Evaluator(store, "one")
    for tick in range(3):
        evaluator.tick(START + tick * 5_000 + 60_000)
    return writer


def test_a_verdict_is_recomputed_byte_for_byte(store: Store) -> None:
    judged(store)
    newest, *others = latest_verdicts(store, "m")
    assert newest.verdict.evidence.baseline_id is not None
    answer = verify_verdict(store, newest.id)
    assert answer.parts == []
    assert answer.confirmed
    assert len(others) == 5


def test_counts_that_are_gone_are_named(store: Store) -> None:
    judged(store)
    newest = latest_verdicts(store, "m")[0]
    with store.write() as connection:
        connection.execute(delete(panes))
    answer = verify_verdict(store, newest.id)
    assert not answer.confirmed
    assert "the panes' counts have expired" in answer.said


def test_counts_that_were_changed_are_found(store: Store) -> None:
    writer = judged(store)
    newest = latest_verdicts(store, "m")[0]
    writer.labels(newest.verdict.window_start_ms, [("a", "b")] * 5, predicted_rows=205)
    answer = verify_verdict(store, newest.id)
    assert not answer.confirmed
    assert "figures" in answer.parts


def test_a_replaced_revision_says_so(store: Store) -> None:
    writer = judged(store)
    newest = latest_verdicts(store, "m")[0]
    writer.labels(newest.verdict.window_start_ms, [("a", "b")] * 50, predicted_rows=250)
    Evaluator(store, "one").tick(START + 900_000)
    history = verdict_history(store, "m", newest.verdict.window_start_ms)
    assert len(history) == 2
    assert "replaced by revision 2" in verify_verdict(store, history[0].id).said
    assert verify_verdict(store, history[1].id).confirmed
