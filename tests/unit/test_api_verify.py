"""`trimtab verify` confirms what the stored states still give, and names what they no longer hold."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from sqlalchemy import Table, delete, update

from trimtab.alerts.delivery import Relay
from trimtab.contracts.model import Alarms, Contract, Feature, Labels, Reference, Windows
from trimtab.monitor.evaluator import Evaluator
from trimtab.monitor.housekeeping import Housekeeping, Retention
from trimtab.monitor.joiner import Joiner
from trimtab.monitor.verify import verify_verdict
from trimtab.records import Verdict
from trimtab.store import migrate
from trimtab.store.engine import Store, open_store
from trimtab.store.joiners import ask_expiry
from trimtab.store.models import apply_contract
from trimtab.store.rollups import apply_fold, forget_counts, plan_panes, plan_rollup
from trimtab.store.tables import (
    baseline_windows,
    baselines,
    contracts,
    cuts,
    detectors,
    panes,
    resource_panes,
)
from trimtab.store.verdicts import latest_verdicts, verdict_history
from trimtab.testing.series import SeriesWriter
from trimtab.windows.rollup import DAY_MS, Resolution

START = 1_700_000_000_000
LENGTH = 2_000


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


CONTRACT = Contract(
    name="m",
    task="binary",
    features={"x": Feature("number")},
    labels=Labels("within 1 min"),
    windows=Windows(length="2s", pane="2s", lateness="1 min", out_of_order="0s", min_rows=20),
    alarms=Alarms(rules=("accuracy < 0.9 in 2 of 3", "psi(x) > 0.25 in 2 of 3")),
    reference=Reference(windows=3),
)


def judged(store: Store, windows: int = 6) -> SeriesWriter:
    writer = SeriesWriter(store, CONTRACT, START)
    rng = np.random.default_rng(3)
    writer.fit_cuts({"x": rng.normal(size=2_000).tolist()}, ["a", "b"])
    for number in range(windows):
        answers = ["a" if row % 2 else "b" for row in range(200)]
        start_ms = START + number * LENGTH
        writer.rows(start_ms, {"x": (rng.normal(size=200) + number).tolist()}, prediction=answers)
        writer.labels(start_ms, [("a", "a")] * 170 + [("a", "b")] * 30, predicted_rows=200)
        writer.gauges(start_ms, {"cpu_percent": [10.0, 20.0]})
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
    assert not answer.expired
    assert len(others) == 5


def forget_panes(store: Store, _: Verdict) -> None:
    with store.write() as connection:
        assert forget_counts(connection, "m", START + 10 * DAY_MS, 1_000)


def forget_performance(store: Store, judged: Verdict) -> None:
    with store.write() as connection:
        ask_expiry(connection, "m", judged.window_end_ms)
    Joiner(store, "one").tick(START)


def fold_into_hours(store: Store, _: Verdict) -> None:
    end_ms = START + DAY_MS
    with store.write() as connection:
        connection.execute(update(panes).values(sealed=True))
        folded = plan_panes(connection, "m", None, end_ms, 1_000)
        assert folded is not None
        apply_fold(connection, folded)
        folded = plan_rollup(connection, "m", Resolution.HOUR, end_ms, 1_000)
        assert folded is not None
        apply_fold(connection, folded)


def drop(table: Table) -> Callable[[Store, Verdict], None]:
    def gone(store: Store, _: Verdict) -> None:
        with store.write() as connection:
            assert connection.execute(delete(table)).rowcount

    return gone


def drop_baseline(store: Store, judged: Verdict) -> None:
    drop(detectors)(store, judged)
    drop(baseline_windows)(store, judged)
    drop(baselines)(store, judged)


def drop_contract_revision(store: Store, judged: Verdict) -> None:
    newer = msgspec.structs.replace(CONTRACT, alarms=Alarms(rules=("accuracy < 0.5 in 2 of 3",)))
    assert apply_contract(store, newer, "", "test", START).revision == 2
    with store.write() as connection:
        old = contracts.c.revision == judged.evidence.contract_revision
        assert connection.execute(delete(contracts).where(old)).rowcount == 1


def drop_detail(store: Store, _: Verdict) -> None:
    keep = Retention(verdict_detail_ms=0)
    keeper = Housekeeping(store, "one", Relay(store, Sink(), "tt"), keep)
    keeper.tick(START + DAY_MS)
    keeper.close()


class Sink:
    def publish(self, messages: list[Any]) -> list[None]:
        return [None] * len(messages)

    def close(self) -> None:
        return None


@pytest.mark.parametrize(
    ("let_go", "named"),
    [
        (forget_panes, ["the panes' counts have expired", "the resources' gauges have expired"]),
        (drop(resource_panes), ["the resources' gauges have expired"]),
        (
            forget_performance,
            ["its predictions and labels have expired, and with them its performance"],
        ),
        (fold_into_hours, ["its panes are part of a whole hour by now"]),
        (drop(cuts), ["that it was counted under are gone"]),
        (drop_baseline, ["that it was compared with is gone"]),
        (drop_contract_revision, ["contract revision 1 is gone"]),
        (drop_detail, ["its own figures of features, prediction and resources have expired"]),
    ],
)
def test_what_has_expired_is_named_and_passes_for_no_difference(
    store: Store, let_go: Callable[[Store, Verdict], None], named: list[str]
) -> None:
    judged(store)
    # The newest but one, so that its age has passed where that is asked.
    chosen = latest_verdicts(store, "m")[1]
    assert verify_verdict(store, chosen.id).confirmed
    let_go(store, chosen.verdict)
    answer = verify_verdict(store, chosen.id)
    assert answer.expired
    assert not answer.confirmed
    assert len(answer.parts) == len(named)
    for part, text in zip(answer.parts, named, strict=True):
        assert text in part
        assert text in answer.said
    assert answer.said.startswith("It cannot be recomputed any more")


def test_labels_past_retention_that_a_verdict_did_not_count_do_not_matter(store: Store) -> None:
    writer = judged(store, windows=4)
    start_ms = START + 4 * LENGTH
    writer.rows(start_ms, {"x": [0.5] * 200}, prediction=["a"] * 200)
    writer.passed(start_ms + LENGTH)
    Evaluator(store, "one").tick(START + 900_000)
    (chosen,) = (v for v in latest_verdicts(store, "m") if v.verdict.window_start_ms == start_ms)
    assert chosen.verdict.figures["rows"] == 200
    forget_performance(store, chosen.verdict)
    assert verify_verdict(store, chosen.id).confirmed


def test_a_window_without_rows_keeps_the_cuts_of_its_time(store: Store) -> None:
    writer = judged(store)
    writer.passed(START + 7 * LENGTH)
    Evaluator(store, "one").tick(START + 900_000)
    empty = latest_verdicts(store, "m")[0]
    assert empty.verdict.figures["rows"] == 0
    writer.fit_cuts({"x": [5.0, 6.0, 7.0] * 100}, ["a", "b"])
    assert empty.verdict.evidence.cuts_id != writer.cuts.cuts_id
    assert verify_verdict(store, empty.id).confirmed


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
