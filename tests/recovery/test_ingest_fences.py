"""The ingest on a log in memory: zombies, crashes, losses, poison, a store that goes away."""

import random
from collections import Counter
from functools import partial

import msgspec
import psycopg.errors
import pytest
from sqlalchemy import delete, event, func, select
from sqlalchemy.exc import DataError, OperationalError

from trimtab.contracts.model import (
    Contract,
    Feature,
    Labels,
    Prediction,
    Reference,
    Source,
    Windows,
)
from trimtab.events.types import Inference, InferenceBatch, Label, Resource, ResourceSample
from trimtab.monitor import ingest as ingest_module
from trimtab.monitor import joiner as joiner_module
from trimtab.monitor import partition as partition_module
from trimtab.monitor.ingest import Ingest, Knowledge
from trimtab.monitor.joiner import Joiner
from trimtab.source import Partition, SourceAwayError
from trimtab.stats.cuts import build_numeric_cuts, model_cuts
from trimtab.store import tables as t
from trimtab.store.arm_counts import arm_counts
from trimtab.store.engine import open_store
from trimtab.store.joiners import ask_expiry
from trimtab.store.known_ids import forget_left_out
from trimtab.store.ledger import ledger
from trimtab.store.models import apply_contract, retire_model, save_cuts
from trimtab.store.panes import pane_times
from trimtab.store.performance import window_performance
from trimtab.store.resources import window_resources
from trimtab.store.samples import sample_between
from trimtab.store.watermarks import watermark
from trimtab.store.window_state import window_state
from trimtab.testing.log import MemoryLog, MemorySource
from trimtab.windows import abnormal
from trimtab.windows.ids import id_hashes
from trimtab.windows.label_sample import in_sample

T0 = 1_700_000_000_000
IN, LABELS, RESOURCES = Partition("in", 0), Partition("labels", 0), Partition("resources", 0)
ROLES = {"in": "inference", "labels": "labels", "resources": "resources"}
CONTRACT = Contract(
    name="m",
    task="binary",
    features={
        "x": Feature(kind="number", min=0, max=10, required=True),
        "c": Feature(kind="category", values=("a", "b")),
        "age": Feature(kind="number", personal=True),
    },
    prediction=Prediction(classes=("yes", "no"), positive="yes"),
    labels=Labels(arrive="within 1h", sources=("human",)),
    windows=Windows(length="2s", lateness="10s", out_of_order="0s", segments=("c",)),
    reference=Reference(rows=1),
)


class Clock:
    """Time that only tests move; each look moves the monotonic one by a second, so all is due."""

    def __init__(self, at_s=0.0):
        self.s = at_s

    def monotonic(self):
        self.s += 1.0
        return self.s

    def now_ms(self):
        return T0 + int(self.s * 1_000)


@pytest.fixture
def store(store_url):
    store = open_store(store_url)
    t.metadata.create_all(store.engine)
    apply_contract(store, CONTRACT, "", "test", T0)
    yield store
    store.close()


@pytest.fixture
def log():
    return MemoryLog()


def member(store, log, *partitions, owner="one", poll=500, at_s=0.0, **options):
    source = MemorySource(log, poll)
    clock = Clock(at_s)
    ingest = Ingest(
        store, source, ROLES, owner, now_ms=clock.now_ms, monotonic=clock.monotonic, **options
    )
    ingest.start()
    source.assign(*(partitions or (IN, LABELS, RESOURCES)))
    return ingest


def drain(ingest, rounds=30):
    quiet = 0
    for _ in range(rounds):
        quiet = 0 if ingest.step(0) else quiet + 1
        if quiet > 4:
            return


def row(i, *, at=None, **fields):
    given = {
        "features": {"x": float(i % 10), "c": "ab"[i % 2], "age": 40.0},
        "prediction": "yes" if i % 3 else "no",
        "latency_ms": 5.0,
    }
    time = T0 + i * 10 if at is None else at
    return Inference(id=f"id{i}", model="m", version="1", time=time, **(given | fields))


def send_rows(log, rows, partition=IN):
    for one in rows:
        log.send(partition, one, one.time)


def send_label(log, i, value, **fields):
    given = {"source": "human"} | fields
    label = Label(inference_id=f"id{i}", model="m", label=value, time=T0 + i, **given)
    log.send(LABELS, label, T0 + i)


def entry(store, topic="in"):
    (found,) = (one for one in ledger(store) if one.topic == topic)
    return found


def whole(store, segment=""):
    times = pane_times(store, "m")
    with store.read() as connection:
        return window_state(connection, "m", times[0], times[-1] + 1, segment)


def assert_balanced(store):
    assert [problem for one in ledger(store) for problem in one.balance()] == []


def test_rows_are_counted_with_their_offsets(store, log):
    send_rows(log, [row(i) for i in range(700)])
    ingest = member(store, log)
    drain(ingest)
    state = whole(store).state
    assert (state.rows, state.features["x"].rows, state.statuses) == (700, 700, {"ok": 700})
    assert whole(store, "c=a").state.rows == 350
    assert entry(store).unit("row")["counted"] == 700
    assert ingest.source.hinted[IN] == 700
    assert_balanced(store)


def test_the_same_id_in_the_same_pane_counts_once_even_after_a_restart(store, log):
    send_rows(log, [row(1), row(1), row(2)])
    drain(member(store, log))
    send_rows(log, [row(2), row(3)])
    drain(member(store, log, owner="two"))
    assert entry(store).unit("row") | {"held": 0} == {"counted": 3, "duplicate": 2, "held": 0}
    assert whole(store).state.rows == 3


def test_a_zombie_is_refused_and_the_owner_goes_on(store, log):
    send_rows(log, [row(i) for i in range(10)])
    zombie = member(store, log, IN, owner="zombie")
    drain(zombie)
    owner = member(store, log, IN, owner="owner")
    owner.step(0)
    assert owner.owned[IN].claim.epoch == 2
    send_rows(log, [row(i) for i in range(10, 20)])
    polled, _ = zombie.source.poll(0)
    zombie._take(IN, polled[IN])
    zombie._flush_all([IN])
    assert zombie.counters["conflicts"] == 1
    assert entry(store).next_offset == 10
    drain(owner)
    assert (entry(store).next_offset, entry(store).owner) == (20, "owner")
    assert whole(store).state.rows == 20
    assert_balanced(store)


def test_two_that_fight_over_a_partition_still_count_each_row_once(store, log):
    both = [member(store, log, IN, owner=name) for name in ("one", "two")]
    for i in range(60):
        send_rows(log, [row(i)])
        both[i % 2].step(0)
    for one in both:
        drain(one)
    assert sum(one.counters["conflicts"] for one in both) > 0
    drain(both[0])
    assert whole(store).state.rows == 60
    assert_balanced(store)


def test_a_crash_at_any_statement_of_a_flush_leaves_all_or_nothing(store, log, monkeypatch):
    rows = [row(i) for i in range(40)]
    for i, one in enumerate(rows):
        log.send(IN, one, one.time)
        send_label(log, i, "yes")
    log.append(IN, b"junk", T0)
    steps = [
        (partition_module.panes, "write_panes"),
        (partition_module.watermarks, "write_watermarks"),
        (partition_module.resources, "write_resources"),
        (partition_module.flushes, "keep_rejected"),
        (partition_module.flushes, "see_versions"),
        (partition_module.ledger, "add_classes"),
        (partition_module, "write_run"),
    ]
    randomness = random.Random(1)
    for module, name in steps:
        crashing = member(store, log, owner=f"before {name}", poll=5)
        with monkeypatch.context() as patch:
            kept = getattr(module, name)

            def crash(*args, kept=kept, **kwargs):
                if randomness.random() < 0.5:
                    raise KeyboardInterrupt
                return kept(*args, **kwargs)

            patch.setattr(module, name, crash)
            try:
                for _ in range(4):
                    crashing.step(0)
            except KeyboardInterrupt:
                pass
        assert_balanced(store)
    drain(member(store, log, owner="last"))
    assert whole(store).state.rows == 40
    assert entry(store).unit("row")["rejected"] == 1
    joiner = Joiner(store, "j")
    joiner.tick(T0)
    assert entry(store, "labels").placed_labels == {"joined": 40}
    assert_balanced(store)


def test_a_store_that_goes_away_pauses_reading_and_nothing_is_lost(store, log, monkeypatch):
    send_rows(log, [row(i) for i in range(10)])
    ingest = member(store, log, IN)
    ingest.step(0)
    real = store.write
    with monkeypatch.context() as patch:

        def away():
            raise OperationalError("insert", {}, Exception("the server is gone"))

        patch.setattr(store, "write", away)
        send_rows(log, [row(i) for i in range(10, 30)])
        for _ in range(6):
            ingest.step(0)
        assert ingest.source.paused == {IN}
        assert not ingest.owned
        assert ingest.assigned == {IN}
    assert store.write == real
    drain(ingest)
    assert whole(store).state.rows == 30
    assert_balanced(store)


def test_every_kind_of_poison_is_one_rejected_row_and_the_partition_goes_on(store, log):
    poison = [None, b"", b"junk", b"\xff\xfe", b"[" * 5_000, b"{}", b'{"id": 1e999}', b"x" * 9_000]
    for value in poison:
        log.append(IN, value, T0)
    log.send(IN, row(0, at=T0 + 10**9), T0)
    send_rows(log, [row(1)])
    drain(member(store, log))
    found = entry(store)
    assert found.unit("row") | {"held": 0} == {"rejected": 9, "counted": 1, "held": 0}
    assert ("row", "rejected", "future") in found.classes
    assert ("row", "rejected", "bad_json") in found.classes
    with store.read() as connection:
        assert connection.scalar(select(func.count()).select_from(t.rejected)) == 9
        assert connection.scalar(select(func.max(func.length(t.rejected.c.payload)))) == 4_096
    assert_balanced(store)


def test_a_message_that_breaks_counting_itself_is_found_and_rejected(store, log, monkeypatch):
    send_rows(log, [row(99)])
    drain(member(store, log, IN))  # the model has its cuts, so rows are no longer held
    send_rows(log, [row(i) for i in range(20)])
    real = partition_module.count_rows

    def fragile(view, cuts, rows, *rest):
        assert "id7" not in rows.ids.tolist()
        return real(view, cuts, rows, *rest)

    monkeypatch.setattr(partition_module, "count_rows", fragile)
    ingest = member(store, log, IN)
    for _ in range(60):
        ingest.step(0)
    classes = entry(store).classes
    assert classes["row", "rejected", "internal_error"] == 1
    assert entry(store).unit("row")["counted"] == 20
    assert_balanced(store)


def test_a_second_one_behind_the_batch_in_trouble_costs_no_innocent_record(store, log, monkeypatch):
    """What comes behind such a batch is read as one again: if it fails, which record it is must be found."""
    send_rows(log, [row(99)])
    drain(member(store, log, IN))
    send_rows(log, [row(i) for i in range(20)])
    real = partition_module.count_rows

    def fragile(view, cuts, rows, *rest):
        assert not {"id7", "id33"} & set(rows.ids.tolist())
        return real(view, cuts, rows, *rest)

    monkeypatch.setattr(partition_module, "count_rows", fragile)
    ingest = member(store, log, IN)
    while not ingest._trouble:
        ingest.step(0)
    send_rows(log, [row(i) for i in range(20, 40)])
    for _ in range(120):
        ingest.step(0)
    with store.read() as connection:
        rejected = connection.execute(select(t.rejected.c.offset)).scalars().all()
    assert sorted(rejected) == [8, 34], "the first offset is id99's"
    assert entry(store).unit("row")["counted"] == 39
    assert_balanced(store)


def test_a_value_that_the_store_refuses_is_rejected_and_does_not_look_like_an_outage(
    store, log, monkeypatch
):
    send_rows(log, [row(99)])
    drain(member(store, log, IN))
    send_rows(log, [row(i) for i in range(20)])
    real = partition_module.write_run

    def refuses(connection, *, run, **place):
        if int(id_hashes(["id7"])[0]) in run.hashes.tolist():
            raise DataError(
                "insert", {}, Exception("value too long for type character varying(40)")
            )
        real(connection, run=run, **place)

    monkeypatch.setattr(partition_module, "write_run", refuses)
    ingest = member(store, log, IN)
    for _ in range(60):
        ingest.step(0)
    assert ingest.counters["store_errors"] == 0
    assert entry(store).classes["row", "rejected", "internal_error"] == 1
    assert entry(store).unit("row")["counted"] == 20
    assert_balanced(store)


def test_a_broker_that_is_away_at_the_claim_is_asked_again(store, log, monkeypatch):
    send_rows(log, [row(i) for i in range(5)])
    ingest = member(store, log, IN)
    with monkeypatch.context() as patch:

        def away(_partition):
            raise SourceAwayError("no broker")

        patch.setattr(ingest.source, "beginning", away)
        for _ in range(4):
            ingest.step(0)
        assert not ingest.owned
        assert ingest.counters["source_away"] > 1
    drain(ingest)
    assert whole(store).state.rows == 5


def test_a_loss_touches_no_window_before_the_last_record_that_was_read(store, log):
    hour = 3_600_000
    ingest = member(store, log, IN)
    send_rows(log, [row(0)])
    drain(ingest)
    send_rows(log, [row(i, at=T0 + hour + i) for i in range(1, 11)])
    drain(ingest)  # the same owner, long after its claim
    send_rows(log, [row(i, at=T0 + 2 * hour + i) for i in range(11, 20)])
    log.drop_before(IN, 15)
    drain(ingest)
    assert entry(store).lost == 4
    with store.read() as connection:
        assert window_state(connection, "m", T0, T0 + 10_000).lost == 0
        assert window_state(connection, "m", T0 + 2 * hour, T0 + 2 * hour + 10_000).lost == 4
    assert_balanced(store)


def test_a_loss_before_anything_was_read_reaches_back_to_when_the_end_was_seen(store, log):
    """A topic claimed while it was empty, and a monitor that was away for longer than the topic keeps."""
    hour = 3_600_000
    ingest = member(store, log, IN, at_s=3_600)
    drain(ingest)
    ingest.stop()
    send_rows(log, [row(i, at=T0 + 30 * hour + i) for i in range(20)])
    log.drop_before(IN, 10)
    drain(member(store, log, IN, owner="two", at_s=40 * 3_600))
    assert entry(store).lost == 10
    with store.read() as connection:
        assert window_state(connection, "m", T0, T0 + 10_000).lost == 0
        assert window_state(connection, "m", T0 + 20 * hour, T0 + 20 * hour + 10_000).lost == 10
    assert_balanced(store)


def test_unknown_models_and_wrong_topics_are_counted_by_name(store, log):
    bound = Contract(name="bound", task="binary", source=Source(topics=("elsewhere",)))
    apply_contract(store, bound, "", "test", T0)
    log.send(IN, Inference(id="a", model="nobody", version="1", time=T0), T0)
    log.send(IN, Inference(id="b", model="bound", version="1", time=T0), T0)
    drain(member(store, log))
    assert entry(store).classes == {
        ("row", "ignored", "unknown_model"): 1,
        ("row", "rejected", "wrong_topic"): 1,
    }


def test_a_contract_applied_later_counts_from_the_first_offset_after(store, log):
    ingest = member(store, log, IN)
    later = Contract(name="later", task="binary", reference=Reference(rows=1))
    log.send(IN, Inference(id="a", model="later", version="1", time=T0), T0)
    drain(ingest)
    apply_contract(store, later, "", "test", T0)
    log.send(IN, Inference(id="b", model="later", version="1", time=T0), T0)
    drain(ingest)
    assert entry(store).classes["row", "ignored", "unknown_model"] == 1
    with store.read() as connection:
        activation = connection.execute(select(t.contract_activations)).one()
    assert (activation.model, activation.revision, activation.from_offset) == ("later", 1, 1)


def test_gaps_and_losses_are_told_apart(store, log):
    send_rows(log, [row(0)])
    log.skip(IN, 3)
    send_rows(log, [row(1)])
    log.skip(IN)
    ingest = member(store, log, IN)
    drain(ingest)
    assert (entry(store).messages, entry(store).gaps, entry(store).next_offset) == (2, 4, 6)
    ingest.stop()
    send_rows(log, [row(i) for i in range(2, 12)])
    log.drop_before(IN, 10)
    drain(member(store, log, IN, owner="two"))
    found = entry(store)
    assert (found.messages, found.gaps, found.lost, found.next_offset) == (8, 4, 4, 16)
    with store.read() as connection:
        assert window_state(connection, "m", T0 - 10_000, T0 + 10_000).lost == 4
        assert window_state(connection, "m", T0 + 10_000_000, T0 + 10_010_000).lost == 0
    assert_balanced(store)


def test_what_is_lost_of_a_replay_marks_the_windows_of_its_own_time(store, log):
    """Records of today that tell of 1995: their Kafka time says nothing of their windows."""
    past = msgspec.structs.replace(CONTRACT, name="past")
    apply_contract(store, past, "", "test", T0)
    then_ms = 800_000_000_000

    def send(model, first_ms, numbers):
        for i in numbers:
            one = msgspec.structs.replace(row(i, at=first_ms + i * 1_000), model=model)
            log.send(IN, one, T0 + i * 1_000)

    def lost(model, from_ms, to_ms):
        with store.read() as connection:
            return window_state(connection, model, from_ms, to_ms).lost

    send("past", then_ms, range(40))
    send("m", T0, range(40))
    ingest = member(store, log, IN)
    drain(ingest)
    ingest.stop()
    send("past", then_ms, range(40, 60))
    log.drop_before(IN, 90)  # ten of past are lost
    ingest = member(store, log, IN, owner="two", at_s=200.0)
    drain(ingest)
    assert entry(store).lost == 10
    assert lost("past", then_ms, then_ms + 20_000) == 0, "these were sealed"
    assert lost("past", then_ms + 40_000, then_ms + 50_000) == 10
    assert lost("past", then_ms + 50_000, then_ms + 60_000) == 10, (
        "in between they may lie anywhere"
    )
    assert lost("past", then_ms + 60_000, then_ms + 70_000) == 0
    assert lost("m", then_ms + 40_000, then_ms + 50_000) == 0
    assert lost("m", T0 + 99_000, T0 + 101_000) == 10, "nothing has come of it since"
    assert lost("m", T0 + 10**9, T0 + 10**9 + 2_000) == 0, "after the loss was found nothing is"
    send("m", T0, range(60, 70))
    drain(ingest)
    assert lost("m", T0 + 99_000, T0 + 101_000) == 0
    assert lost("m", T0 + 50_000, T0 + 60_000) == 10
    assert_balanced(store)


def test_late_rows_reopen_their_pane_until_the_seal_and_are_too_late_after(store, log):
    send_rows(log, [row(0, at=T0)])
    log.send(IN, row(1, at=T0 + 9_000), T0 + 9_000)
    log.send(IN, row(2, at=T0 + 1), T0 + 9_000)
    log.send(IN, row(3, at=T0 + 12_000), T0 + 12_000)
    log.send(IN, row(4, at=T0 + 1_999), T0 + 12_000)
    drain(member(store, log))
    assert entry(store).unit("row") | {"held": 0} == {"counted": 4, "too_late": 1, "held": 0}
    with store.read() as connection:
        first = connection.execute(
            select(t.panes).where(t.panes.c.pane_start_ms == T0, t.panes.c.segment == "")
        ).one()
    assert (first.rows, first.sealed, first.generation) == (2, True, 0)


def test_a_longer_lateness_opens_a_new_generation_from_the_identity(store, log):
    for i, at in enumerate((T0, T0 + 20_000)):
        log.send(IN, row(i, at=at), at)
    drain(member(store, log))
    longer = Windows(length="2s", lateness="60s", out_of_order="0s", segments=("c",))
    changed = Contract(
        **{n: getattr(CONTRACT, n) for n in CONTRACT.__struct_fields__ if n != "windows"},
        windows=longer,
    )
    apply_contract(store, changed, "", "test", T0)
    log.send(IN, row(2, at=T0 + 1), T0 + 20_000)
    log.send(IN, row(0, at=T0), T0 + 20_000)
    drain(member(store, log, owner="two"))
    assert entry(store).unit("row")["duplicate"] == 1
    with store.read() as connection:
        found = connection.execute(
            select(t.panes.c.generation, t.panes.c.rows)
            .where(t.panes.c.pane_start_ms == T0, t.panes.c.segment == "")
            .order_by(t.panes.c.generation)
        ).all()
    assert [tuple(one) for one in found] == [(0, 1), (1, 1)]
    assert whole(store).state.rows == 3


def test_rows_are_held_until_enough_have_come_and_are_then_counted(store, log):
    two = [Partition("in", 0), Partition("in", 1)]
    few = Contract(
        **{n: getattr(CONTRACT, n) for n in CONTRACT.__struct_fields__ if n != "reference"},
        reference=Reference(rows=30),
    )
    apply_contract(store, few, "", "test", T0)
    ingest = member(store, log, *two)
    for i in range(29):
        send_rows(log, [row(i)], two[i % 2])
    drain(ingest)
    assert sum(one.unit("row")["held"] for one in ledger(store)) == 29
    assert pane_times(store, "m") == []
    ingest.stop()
    send_rows(log, [row(29)], two[1])
    drain(member(store, log, *two, owner="two"))
    assert sum(one.unit("row")["held"] for one in ledger(store)) == 0
    assert whole(store).state.rows == 30
    with store.read() as connection:
        assert connection.scalar(select(func.count()).select_from(t.held_rows)) == 0
    assert_balanced(store)


def test_batches_count_like_single_rows_with_ids_of_their_own(store, log):
    batch = InferenceBatch(
        id="b",
        model="m",
        version="1",
        time=T0,
        rows=3,
        features={"x": [1.0, 2.0, "wrong"], "c": ["a", "b", "z"], "extra": [1, 2, 3]},
        prediction=["yes", "no", "maybe"],
        status=["ok", "ok", "error"],
    )
    log.send(IN, batch, T0)
    log.send(IN, Inference(id="b#1", model="m", version="1", time=T0, features={"x": 2.0}), T0)
    drain(member(store, log))
    state = whole(store).state
    assert entry(store).unit("row") | {"held": 0} == {"counted": 3, "duplicate": 1, "held": 0}
    assert entry(store).messages == 2
    assert state.features["x"].type_errors == 1
    assert state.rules == {
        abnormal.REQUEST: 1,
        abnormal.TYPE_ERROR: 1,
        abnormal.UNSEEN_CATEGORY: 1,
        abnormal.RESPONSE: 1,
        abnormal.ERROR: 1,
        abnormal.UNKNOWN_CLASS: 1,
    }


def test_abnormal_rows_are_counted_by_rule(store, log):
    send_rows(
        log,
        [
            row(0, features={"x": 11.0}),
            row(1, features={"x": -1}),
            row(2, features={"c": "a"}),
            row(3, prediction=None),
            row(4, prediction=None, status="timeout"),
            row(5),
        ],
    )
    drain(member(store, log))
    assert whole(store).state.rules == {
        abnormal.REQUEST: 3,
        abnormal.OUT_OF_RANGE: 2,
        abnormal.MISSING_REQUIRED: 1,
        abnormal.RESPONSE: 2,
        abnormal.MISSING_PREDICTION: 1,
        abnormal.TIMEOUT: 1,
    }


def test_labels_before_after_twice_corrected_withdrawn_and_from_the_wrong_source(store, log):
    joiner = Joiner(store, "j")
    ingest = member(store, log)
    send_label(log, 0, "yes")  # before its row
    drain(ingest)
    joiner.tick(T0)
    assert entry(store, "labels").waiting_labels == 1
    send_rows(log, [row(i, prediction="yes") for i in range(5)])
    send_label(log, 0, "yes")  # twice
    send_label(log, 1, "no")
    send_label(log, 1, "yes", revision=1)  # corrected
    send_label(log, 2, "yes")
    send_label(log, 2, None, revision=1, retracted=True)
    send_label(log, 3, "yes", source="model")
    send_label(log, 4, [1])
    drain(ingest)
    for tick in range(3):
        joiner.tick(T0 + tick)
    found = entry(store, "labels")
    assert found.placed_labels == {"joined": 3, "superseded": 2, "duplicate": 1}
    assert found.unit("label") == {"ignored": 1, "rejected": 1}
    assert found.waiting_labels == 0
    with store.read() as connection:
        (one,) = window_performance(connection, "m", T0, T0 + 10_000).values()
    assert (one.state.confusion, one.labelled_rows, one.predicted_rows) == (
        {("yes", "yes"): 2},
        2,
        5,
    )
    assert_balanced(store)


def test_a_joiner_that_takes_over_rebuilds_and_the_old_one_is_refused(store, log):
    send_rows(log, [row(i, prediction="yes") for i in range(4)])
    send_label(log, 0, "yes")
    ingest = member(store, log)
    drain(ingest)
    old, new = Joiner(store, "old"), Joiner(store, "new")
    old.tick(T0)
    assert new.tick(T0) == 0  # the other one holds the shard
    send_label(log, 0, "no", revision=1)
    send_label(log, 1, "yes")
    drain(ingest)
    later = T0 + 60_000
    assert new.tick(later) > 0
    send_label(log, 2, "yes")
    drain(ingest)
    assert old.tick(T0 + 1) == 0  # believes in its lease of long ago; the fence knows better
    assert new.tick(later + 1) == 1
    with store.read() as connection:
        (one,) = window_performance(connection, "m", T0, T0 + 10_000).values()
    assert one.state.confusion == {("no", "yes"): 1, ("yes", "yes"): 2}
    assert_balanced(store)


def test_a_joiner_claims_only_what_nobody_has_merged(store, log, monkeypatch):
    claimed: list[str] = []
    real = joiner_module.claim_joiner

    def claim(store, model, shard, owner, now_ms, hold_ms):
        claimed.append(owner)
        return real(store, model, shard, owner, now_ms, hold_ms)

    monkeypatch.setattr(joiner_module, "claim_joiner", claim)
    send_rows(log, [row(i) for i in range(20)])
    send_label(log, 3, "yes")
    ingest = member(store, log)
    drain(ingest)
    first = Joiner(store, "first")
    assert (first.tick(T0), first.tick(T0 + 1)) == (21, 0)
    claimed.clear()
    every_ms = joiner_module.LOOK_AT_ALL_MS
    for step in range(1, 5):  # long enough for a look at all, and for the claim to end
        assert first.tick(T0 + step * every_ms) == 0
    second = Joiner(store, "second")
    assert second.tick(T0 + 5 * every_ms) == 0
    assert claimed == []
    send_label(log, 4, "no")
    drain(ingest)
    assert (
        second.tick(T0 + 5 * every_ms + 1) == 1
    )  # it takes over by need, from the stored positions
    send_label(log, 5, "no")
    drain(ingest)
    first.tick(T0 + 5 * every_ms + 2)
    assert second.tick(T0 + 5 * every_ms + 3) == 1
    assert claimed == ["second", "first"]
    with store.read() as connection:
        (performance,) = window_performance(connection, "m", T0, T0 + 60_000).values()
    assert performance.labelled_rows == 3
    assert_balanced(store)


def test_a_changed_contract_leaves_what_was_prepared_for_other_models(store):
    named = {name: msgspec.structs.replace(CONTRACT, name=name) for name in ("a", "b", "c")}
    for one in named.values():
        apply_contract(store, one, "", "test", T0)
    cuts = model_cuts([("x", build_numeric_cuts([1.0, 2.0, 3.0]))])
    with store.write() as connection:
        for name in ("a", "b"):
            save_cuts(connection, name, cuts, "test", T0)
    knowledge = Knowledge(store)
    knowledge.refresh()
    views, known = knowledge.views, knowledge.cuts
    assert (set(views), set(known)) == ({"a", "b", "c", "m"}, {"a", "b"})
    assert knowledge.shortest_pane_ms == 2_000
    knowledge.refresh()
    assert knowledge.views is views
    assert knowledge.cuts is known

    longer = msgspec.structs.replace(named["b"], windows=Windows(length="1s", lateness="10s"))
    apply_contract(store, longer, "", "test", T0)
    retire_model(store, "c", T0)
    other = model_cuts([("x", build_numeric_cuts([5.0, 6.0]))])
    with store.write() as connection:
        save_cuts(connection, "b", other, "test", T0)
    knowledge.refresh()
    assert set(knowledge.views) == {"a", "b", "m"}
    assert knowledge.views["a"] is views["a"]
    assert knowledge.views["b"].revision == 2
    assert knowledge.shortest_pane_ms == 1_000
    assert knowledge.cuts == {"a": cuts, "b": other}
    assert knowledge.cuts["a"] is known["a"]
    assert set(views) == {"a", "b", "c", "m"}  # a flush under way keeps what it began with


def hour_later(log, numbers):
    send_rows(log, [row(i, at=T0 + 3_600_000 + i) for i in numbers])


def ask(store, before_ms):
    with store.write() as connection:
        ask_expiry(connection, "m", before_ms)


def rows_of(store, table):
    with store.read() as connection:
        return connection.scalar(select(func.count()).select_from(table))


def test_what_expires_leaves_index_runs_performance_and_ledger_together(store, log):
    send_rows(log, [row(i) for i in range(40)])
    send_label(log, 0, "yes")
    send_label(log, 99, "yes")  # its inference never comes
    ingest = member(store, log, IN, LABELS)
    drain(ingest)
    joiner = Joiner(store, "j")
    joiner.tick(T0)
    assert entry(store, "labels").waiting_labels == 1
    hour_later(log, range(40, 45))
    drain(ingest)
    ask(store, T0 + 3_600_000)
    joiner.tick(T0 + 1)
    (owned,) = joiner._owned.values()
    assert len(owned.index) == 5
    found = entry(store, "labels")
    assert found.placed_labels == {"joined": 1, "expired": 1}
    assert found.waiting_labels == 0
    assert pane_starts(store) == {T0 + 3_600_000}
    assert rows_of(store, t.label_runs) == 1  # the pane that is still open
    send_label(log, 42, "yes")
    drain(ingest)
    Joiner(store, "other").tick(T0 + 60_000)
    assert entry(store, "labels").placed_labels == {"joined": 2, "expired": 1}
    assert_balanced(store)


def pane_starts(store):
    with store.read() as connection:
        return set(connection.scalars(select(t.performance.c.pane_start_ms)))


def test_a_correction_that_outlives_its_label_does_not_count_it_again(store, log):
    """The label's run expires, its correction's stays: whoever rebuilds must not see a first label."""
    send_rows(log, [row(0, prediction="yes")])
    send_label(log, 0, "no")
    ingest = member(store, log, IN, LABELS)
    drain(ingest)
    first = Joiner(store, "first")
    first.tick(T0)
    late = Label(
        inference_id="id0", model="m", label="yes", time=T0 + 9_000, source="human", revision=1
    )
    log.send(LABELS, late, T0 + 9_000)
    drain(ingest)
    first.tick(T0 + 1)
    ask(store, T0 + 5_000)
    first.tick(T0 + 2)
    assert pane_starts(store) == set()
    again = msgspec.structs.replace(late, label="no", revision=2)
    log.send(LABELS, again, T0 + 9_000)
    drain(ingest)
    Joiner(store, "second").tick(T0 + 60_000)
    assert pane_starts(store) == set()
    found = entry(store, "labels")
    assert found.placed_labels == {"joined": 1, "superseded": 1}
    assert found.waiting_labels == 1  # of an inference that is forgotten; it expires in its turn
    assert_balanced(store)


def test_a_joiner_that_lost_its_shard_lets_nothing_go(store, log):
    send_rows(log, [row(i) for i in range(4)])
    send_label(log, 0, "yes")
    send_label(log, 9, "yes")
    ingest = member(store, log, IN, LABELS)
    drain(ingest)
    old, new = Joiner(store, "old"), Joiner(store, "new")
    old.tick(T0)
    later = T0 + 60_000
    new._own("m", 0, later)
    ask(store, T0 + 3_600_000)
    runs = rows_of(store, t.label_runs)
    old.tick(T0 + 1)  # believes in its lease of long ago
    assert rows_of(store, t.label_runs) == runs > 0
    assert rows_of(store, t.kept_runs) == 0
    assert pane_starts(store) != set()
    assert entry(store, "labels").placed_labels == {"joined": 1}
    new.tick(later + 1)
    assert entry(store, "labels").placed_labels == {"joined": 1, "expired": 1}
    assert pane_starts(store) == set()
    assert_balanced(store)


def test_a_checkpoint_killed_at_any_statement_leaves_all_or_nothing(store, log):
    hour = 3_600_000
    send_rows(log, [row(i) for i in range(10)])
    for i in range(12):
        send_label(log, i, "yes")
    ingest = member(store, log, IN, LABELS)
    drain(ingest)
    Joiner(store, "j").tick(T0)
    hour_later(log, range(20, 25))
    drain(ingest)
    now = T0
    for statement in range(100):
        ask(store, T0 + hour)
        now += 60_000
        killed = kill_at(store, statement, Joiner(store, f"j{statement}"), now)
        assert_balanced(store)
        if not killed:
            break
    assert 5 < statement < 100
    assert entry(store, "labels").placed_labels == {"joined": 10, "expired": 2}
    send_label(log, 22, "yes")
    drain(ingest)
    Joiner(store, "last").tick(now + 60_000)
    assert entry(store, "labels").placed_labels == {"joined": 11, "expired": 2}
    assert pane_starts(store) == {T0 + hour}
    assert_balanced(store)


def kill_at(store, statement, joiner, now_ms):
    """Tick until all is done, but die at a statement of a checkpoint; return whether it came to that."""
    seen, inside = 0, False

    def count(_connection, _cursor, text, *_):
        nonlocal seen, inside
        inside = inside or "kept_positions=" in text.replace(" ", "")
        if inside and seen == statement:
            raise KeyboardInterrupt
        seen += inside

    event.listen(store.engine, "before_cursor_execute", count)
    try:
        joiner.tick(now_ms)
    except KeyboardInterrupt:
        return True
    finally:
        event.remove(store.engine, "before_cursor_execute", count)
    return False


def test_a_sample_keeps_a_label_with_its_prediction_and_duplicates_are_still_known(store, log):
    sampled = msgspec.structs.replace(
        CONTRACT, labels=msgspec.structs.replace(CONTRACT.labels, sample_share=0.25)
    )
    apply_contract(store, sampled, "", "test", T0)
    inside = in_sample(id_hashes(f"id{i}" for i in range(200)), 0.25)
    chosen = int(inside.sum())
    assert 20 < chosen < 80
    for i in range(0, 200, 2):
        send_label(log, i, "yes")
    send_rows(log, [row(i, prediction="yes") for i in range(200)])
    for i in range(1, 200, 2):
        send_label(log, i, "yes")
    drain(member(store, log, IN, LABELS, shards=3))
    joiner = Joiner(store, "j")
    for tick in range(4):
        joiner.tick(T0 + tick)
    found = entry(store, "labels")
    assert found.placed_labels == {"joined": chosen}
    assert found.unit("label") == {"unsampled": 200 - chosen}
    with store.read() as connection:
        (one,) = window_performance(connection, "m", T0, T0 + 10_000).values()
    assert (one.labelled_rows, one.predicted_rows) == (chosen, chosen)
    send_rows(log, [row(i) for i in range(200)])
    drain(member(store, log, IN, LABELS, owner="two", shards=3))
    assert entry(store).unit("row")["duplicate"] == 200
    assert_balanced(store)
    with store.write() as connection:
        assert forget_left_out(connection, "m", T0 - 1, 100) == 0  # their pane is open
    hour_later(log, [500])
    drain(member(store, log, IN, LABELS, owner="three", shards=3))
    with store.write() as connection:
        assert forget_left_out(connection, "m", T0 - 1, 100) == 1


def test_an_id_is_known_again_when_a_longer_lateness_opens_panes_whose_runs_are_gone(store, log):
    send_rows(log, [row(0), row(1)])
    hour_later(log, [5])
    ingest = member(store, log, IN, LABELS)
    drain(ingest)
    joiner = Joiner(store, "j")
    joiner.tick(T0)
    ask(store, T0 - 1)  # nothing is that old: the checkpoint only keeps
    joiner.tick(T0 + 1)
    assert rows_of(store, t.label_runs) == 1
    longer = msgspec.structs.replace(
        CONTRACT, windows=msgspec.structs.replace(CONTRACT.windows, lateness="2h")
    )
    apply_contract(store, longer, "", "test", T0 + 1)
    send_rows(log, [row(0), row(2)])
    drain(member(store, log, IN, LABELS, owner="two"))
    found = entry(store).unit("row")
    assert (found["counted"], found["duplicate"], found.get("too_late", 0)) == (4, 1, 0)


def test_resources_are_gauges_of_a_window(store, log):
    sample = ResourceSample(cpu_percent=50.0, memory_bytes=1_000)
    log.send(RESOURCES, Resource(instance="i", model="m", version="1", time=T0, sample=sample), T0)
    send_rows(log, [row(0, resources=ResourceSample(cpu_percent=70.0))])
    drain(member(store, log))
    with store.read() as connection:
        found = window_resources(connection, "m", T0, T0 + 2_000)
    assert found["1"].gauges["cpu_percent"].count == 2
    assert found["1"].gauges["memory_bytes"].count == 1
    assert_balanced(store)


def test_a_gauge_beside_a_row_counts_as_often_as_its_row(store, log):
    sample = ResourceSample(cpu_percent=70.0)
    sent = [row(0, resources=sample)] * 3 + [row(2_000)] + [row(1, resources=sample)]
    send_rows(log, sent)  # thrice; then one that makes the last too late
    drain(member(store, log))
    classes = entry(store).unit("row")
    assert (classes["counted"], classes["duplicate"], classes["too_late"]) == (2, 2, 1)
    with store.read() as connection:
        found = window_resources(connection, "m", T0, T0 + 60_000)
    assert found["1"].gauges["cpu_percent"].count == 1


def test_labels_meet_the_rows_of_a_batch_whatever_its_id_looks_like(store, log):
    batch = InferenceBatch(
        id="x#3", model="m", version="1", time=T0, rows=2, prediction=["yes", "no"]
    )
    log.send(IN, batch, T0)
    for name in ("x#3#0", "x#3#1"):
        label = Label(inference_id=name, model="m", label="yes", time=T0, source="human")
        log.send(LABELS, label, T0)
    drain(member(store, log))
    joiner = Joiner(store, "j")
    joiner.tick(T0 + 60_000)
    with store.read() as connection:
        assert (
            connection.scalar(
                select(func.sum(t.performance.c.labelled_rows)).where(t.performance.c.segment == "")
            )
            == 2
        )


def test_arms_are_counted_by_assignment(store, log):
    send_rows(log, [row(i, arm="challenger", traffic_revision=3) for i in range(4)])
    send_rows(log, [row(9, arm="champion", traffic_revision=3, status="error")])
    send_rows(log, [row(10)])
    drain(member(store, log))
    found = {one.arm: (one.rows, one.errors) for one in arm_counts(store, "m", [3], None)}
    assert found == {"challenger": (4, 0), "champion": (1, 1)}


def test_a_sample_leaves_personal_features_out(store, log):
    send_rows(log, [row(i) for i in range(600)])
    drain(member(store, log))
    with store.read() as connection:
        rows = sample_between(connection, "m", T0, T0 + 10_000)
    assert len(rows) == 500
    assert rows[0].features.keys() == {"x", "c"}


def test_a_new_identity_of_the_topic_starts_a_ledger_of_its_own(store, log):
    send_rows(log, [row(0), row(1)])
    drain(member(store, log, IN))
    other = MemoryLog("another")
    send_rows(other, [row(5)])
    drain(member(store, other, IN, owner="two"))
    assert [(one.cluster_id, one.next_offset) for one in ledger(store)] == [
        ("memory", 2),
        ("another", 1),
    ]
    assert_balanced(store)


def made_again(log, first, count):
    """Make the topic of the rows again and send as many others, as long as the client reads on."""
    log.make_again("in")
    send_rows(log, [row(i) for i in range(first, first + count)])


def test_of_a_topic_made_again_no_row_is_counted_in_two_ledgers_or_in_none(store, log):
    """No client tells: each reads on at the old position, and would skip what lies before it."""
    send_rows(log, [row(i) for i in range(5)])
    ingest = member(store, log, IN)
    drain(ingest)
    made_again(log, 100, 8)
    drain(ingest)
    assert ingest.counters["identities_changed"] == 1
    old, new = sorted(ledger(store), key=lambda one: one.partition_id)
    assert (old.messages, old.next_offset, old.rows, old.lag) == (5, 5, 5, 0)
    assert (new.first_offset, new.messages, new.unit("row")) == (0, 8, {"counted": 8})
    assert old.balance() == new.balance() == []


def test_a_batch_with_rows_of_both_logs_is_counted_by_neither_half(store, log):
    """Of the old log they can be read no more; which they are nobody can tell."""
    ingest = member(store, log, IN)
    clock = ingest._monotonic
    ingest._monotonic = lambda: 5.0  # nothing is due
    ingest.step(0)
    send_rows(log, [row(i) for i in range(5)])
    ingest.step(0)
    made_again(log, 100, 8)
    ingest.step(0)
    assert ingest._buffers[IN].records == 8
    ingest._monotonic = clock
    drain(ingest)
    old, new = sorted(ledger(store), key=lambda one: one.partition_id)
    assert (old.messages, new.messages) == (0, 8)


def test_a_new_log_that_is_shorter_is_found_though_nothing_comes_of_it(store, log):
    send_rows(log, [row(i) for i in range(5)])
    ingest = member(store, log, IN)
    drain(ingest)
    made_again(log, 100, 3)
    drain(ingest)
    old, new = sorted(ledger(store), key=lambda one: one.partition_id)
    assert (old.messages, new.messages) == (5, 3)


def test_a_partition_that_could_only_half_be_claimed_does_not_stop_the_others(
    store, log, monkeypatch
):
    ingest = member(store, log, IN, Partition("in", 1))
    real = ingest.source.beginning

    def beginning(partition):
        if partition != IN:
            raise SourceAwayError("its leader is away")
        return real(partition)

    monkeypatch.setattr(ingest.source, "beginning", beginning)
    send_rows(log, [row(0)])
    drain(ingest)
    made_again(log, 100, 2)
    drain(ingest)
    assert [one.messages for one in sorted(ledger(store), key=lambda one: one.partition_id)] == [
        1,
        2,
    ]


def test_what_a_new_log_has_dropped_is_not_lost_from_the_old_ledger(store, log):
    send_rows(log, [row(i) for i in range(5)])
    ingest = member(store, log, IN)
    drain(ingest)
    made_again(log, 100, 20)
    log.drop_before(IN, 12)
    drain(ingest)
    old, new = sorted(ledger(store), key=lambda one: one.partition_id)
    assert (old.messages, old.lost) == (5, 0)
    assert (new.first_offset, new.messages, new.lost) == (12, 8, 0)


def test_a_loss_that_nobody_confirms_is_met_again(store, log):
    send_rows(log, [row(i) for i in range(5)])
    ingest = member(store, log, IN)
    drain(ingest)
    send_rows(log, [row(i) for i in range(5, 10)])
    log.drop_before(IN, 7)
    ingest.source.silent.add("in")
    drain(ingest)
    assert (entry(store).messages, entry(store).lost) == (5, 0)
    ingest.source.silent.clear()
    drain(ingest)
    assert (entry(store).messages, entry(store).lost) == (8, 2)
    assert_balanced(store)


def test_what_nobody_confirms_waits_in_bounded_memory_and_holds_up_no_other(store, log):
    ingest = member(store, log, IN, LABELS, poll=10, flush_rows=20)
    drain(ingest)
    ingest.source.silent.add("in")
    for i in range(30):
        send_rows(log, [row(10 * i + n) for n in range(10)])
        send_label(log, i, "yes")
        ingest.step(0)
    assert entry(store).next_offset == 0
    assert ingest._buffers[IN].records == 20
    assert IN in ingest.source.paused
    assert entry(store, "labels").next_offset > 20
    assert ingest.counters["unconfirmed"] == 1
    assert (entry(store).owner, entry(store).lag) == ("one", 0), "what end it sees nobody confirms"
    ingest.source.silent.clear()
    drain(ingest, 60)
    assert IN not in ingest.source.paused
    assert (entry(store).next_offset, entry(store).rows) == (300, 300)
    assert (ingest.counters["claims"], ingest.counters["unconfirmed"]) == (2, 1)
    assert_balanced(store)


@pytest.mark.parametrize("how", ["stopped", "revoked"])
def test_who_leaves_without_an_answer_commits_nothing_and_another_reads_it(store, log, how):
    ingest = member(store, log, IN)
    ingest._monotonic = lambda: 5.0  # nothing is due
    ingest.step(0)
    send_rows(log, [row(i) for i in range(5)])
    ingest.step(0)
    ingest.source.silent.add("in")
    if how == "stopped":
        ingest.stop()
    else:
        ingest.source.revoke(IN)
        ingest.step(0)
        assert not ingest.owned
    assert entry(store).next_offset == 0
    drain(member(store, log, IN, owner="two"))
    assert (entry(store).messages, entry(store).rows) == (5, 5)
    assert_balanced(store)


def test_one_question_goes_before_the_flushes_of_a_step_and_none_before_nothing(store, log):
    ingest = member(store, log)
    drain(ingest)
    ingest._sighted_s = 1e9  # no question but those of flushes
    ingest.source.asked.clear()
    for _ in range(3):
        ingest.step(0)
    assert ingest.source.asked == []
    send_rows(log, [row(0)])
    send_label(log, 0, "yes")
    drain(ingest)
    assert ingest.source.asked == [[IN, LABELS]]
    send_rows(log, [row(1)])
    ingest.source.revoke(IN, LABELS, RESOURCES)
    drain(ingest)
    assert ingest.source.asked == [[IN, LABELS]], "nothing was read that a revocation could commit"


def test_a_revoked_partition_is_flushed_before_it_goes(store, log):
    ingest = member(store, log, IN, flush_s=1e9)
    ingest._monotonic = lambda: 5.0
    ingest.step(0)
    send_rows(log, [row(i) for i in range(7)])
    ingest.step(0)
    assert entry(store).next_offset == 0
    ingest.source.revoke(IN)
    ingest.step(0)
    assert entry(store).next_offset == 7
    assert not ingest.owned


def test_what_is_gone_from_sql_does_not_stop_the_flush(store, log):
    send_rows(log, [row(0)])
    ingest = member(store, log, IN)
    drain(ingest)
    with store.write() as connection:
        connection.execute(delete(t.rejected))
        connection.execute(delete(t.panes))
    send_rows(log, [row(1)])
    drain(ingest)
    assert entry(store).next_offset == 2


def with_pane(pane, **changed):
    """The contract with another pane length."""
    windows = msgspec.structs.replace(CONTRACT.windows, pane=pane, **changed)
    return msgspec.structs.replace(CONTRACT, windows=windows)


def test_a_longer_pane_leaves_sealed_counts_of_shorter_ones_alone(store, log):
    apply_contract(store, with_pane("500ms"), "", "test", T0)
    send_rows(log, [row(1, at=T0), row(2, at=T0 + 600), row(3, at=T0 + 11_000)])
    drain(member(store, log))
    apply_contract(store, with_pane("2s"), "", "test", T0)
    # The pane of two seconds takes rows still; that of half a second with the same start is sealed.
    send_rows(log, [row(4, at=T0 + 1_100)])
    drain(member(store, log, owner="two"))
    assert entry(store).unit("row") | {"held": 0} == {"counted": 4, "held": 0}
    assert whole(store).state.rows == 4


@pytest.mark.parametrize("room", [None, 0])
@pytest.mark.parametrize(("before", "after"), [("500ms", "2s"), ("2s", "500ms"), ("1s", "2s")])
def test_what_comes_again_after_another_pane_length_counts_once(
    store, log, before, after, room, monkeypatch
):
    if room is not None:  # every id is read back from its run
        cramped = partial(ingest_module.OwnedPartition, id_bytes_max=room)
        monkeypatch.setattr(ingest_module, "OwnedPartition", cramped)
    rows = [row(i, at=T0 + i * 700) for i in range(8)]
    apply_contract(store, with_pane(before), "", "test", T0)
    send_rows(log, rows)
    ingest = member(store, log)
    drain(ingest)
    apply_contract(store, with_pane(after), "", "test", T0)
    send_rows(log, [*rows, row(9, at=T0 + 100), row(1, at=T0 + 1_900)])
    # The last one is another row by the shorter panes: what it was when it came is not known.
    again = 9 if before == "2s" else 8
    drain(ingest)
    found = entry(store).unit("row") | {"held": 0}
    assert found == {"counted": 18 - again, "duplicate": again, "held": 0}
    send_rows(log, rows)
    drain(member(store, log, owner="two"))
    assert entry(store).unit("row")["duplicate"] == again + 8
    apply_contract(store, with_pane(before), "", "test", T0)
    send_rows(log, rows)
    drain(member(store, log, owner="three"))
    assert entry(store).unit("row")["duplicate"] == again + 16
    assert whole(store).state.rows == 18 - again


# --- who is to blame ------------------------------------------------------------------------------


def rejected_offsets(store):
    with store.read() as connection:
        return sorted(connection.execute(select(t.rejected.c.offset)).scalars())


def said(caplog, text):
    return [one for one in caplog.records if text in one.getMessage()]


def assert_it_waits(ingest, caplog):
    """Time passes with every look at the clock: the tries are as rare as it says, the words rarer."""
    seconds = ingest._monotonic.__self__.s
    assert 3 < ingest.counters["stuck"] < 10 + seconds / ingest_module.STUCK_LONGEST_S
    waits = said(caplog, "waits at offset")
    assert 1 <= len(waits) <= 1 + seconds / ingest_module.STUCK_SAY_S
    assert len(said(caplog, "failed")) <= 2
    assert ingest.counters["store_errors"] == 0
    mark = watermark(ingest.store, "m", T0 + int(1_000 * seconds))
    assert (mark.reason, mark.held_by) == ("stalled", (entry(ingest.store).partition_id,))


@pytest.mark.parametrize("where", ["cuts", "release", "load", "seal"])
def test_a_failure_without_any_record_rejects_none_and_holds_up_no_other(
    store, log, monkeypatch, caplog, where
):
    def broken(*_args):
        raise ValueError("a stored state that cannot be read")

    open_panes = partition_module.panes.open_panes
    seal = partition_module.OwnedPartition._seal

    def load_of_one(connection, pid):
        return broken() if pid == partition_id else open_panes(connection, pid)

    def seal_of_one(owned, *args):
        return broken() if owned.claim.partition_id == partition_id else seal(owned, *args)

    reference = Reference(rows=20 if where == "cuts" else 10)
    apply_contract(store, msgspec.structs.replace(CONTRACT, reference=reference), "", "test", T0)
    send_rows(log, [row(i) for i in range(12)])
    ingest = member(store, log, IN, LABELS)
    with monkeypatch.context() as patch:
        if where == "release":  # the rows are held, and then there are cuts
            patch.setattr(partition_module.OwnedPartition, "_release", broken)
        drain(ingest)
        partition_id = entry(store).partition_id
        if where == "cuts":  # the next rows are enough for them
            patch.setattr(partition_module, "concatenate", broken)
        if where == "load":
            patch.setattr(partition_module.panes, "open_panes", load_of_one)
            ingest._drop_and_claim_again(IN, 0.0)
        if where == "seal":
            patch.setattr(partition_module.OwnedPartition, "_seal", seal_of_one)
        send_rows(log, [row(i) for i in range(12, 30)])
        for i in range(200):
            send_label(log, i, "yes")
            ingest.step(0)
        assert (entry(store).next_offset, rejected_offsets(store)) == (12, [])
        assert_it_waits(ingest, caplog)
        assert entry(store, "labels").next_offset > 190
    drain(ingest, 200)
    assert entry(store).unit("row") | {"held": 0} == {"counted": 30, "held": 0}
    assert whole(store).state.rows == 30
    assert_balanced(store)


def one_that_cannot_count_id7(store, log, monkeypatch):
    """A member whose counting fails on one of twenty records that wait; the store knows the model already."""
    send_rows(log, [row(99)])
    drain(member(store, log, IN))
    send_rows(log, [row(i) for i in range(20)])
    real = partition_module.count_rows

    def fragile(view, cuts, rows, *rest):
        assert "id7" not in rows.ids.tolist()
        return real(view, cuts, rows, *rest)

    monkeypatch.setattr(partition_module, "count_rows", fragile)
    return member(store, log, IN)


def keeps_nothing(_connection, _pid, payloads):
    assert not payloads


def test_a_record_that_cannot_even_be_rejected_waits_and_is_named_once(
    store, log, monkeypatch, caplog
):
    ingest = one_that_cannot_count_id7(store, log, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(partition_module.flushes, "keep_rejected", keeps_nothing)
        for _ in range(200):
            ingest.step(0)
        assert entry(store).next_offset == 8
        assert ingest._trouble[IN].poison == {8}
        assert_it_waits(ingest, caplog)
    drain(ingest, 200)
    assert rejected_offsets(store) == [8]
    assert entry(store).unit("row")["counted"] == 20
    assert not ingest._trouble
    assert_balanced(store)


def test_the_end_of_a_batch_in_trouble_may_lie_behind_its_last_record(store, log, monkeypatch):
    """Offsets without a message end it: what fails behind them is looked at one by one, too."""
    send_rows(log, [row(99)])
    drain(member(store, log, IN))
    send_rows(log, [row(i) for i in range(20)])
    log.skip(IN, 3)
    real = partition_module.count_rows

    def fragile(view, cuts, rows, *rest):
        assert not {"id7", "id33"} & set(rows.ids.tolist())
        return real(view, cuts, rows, *rest)

    monkeypatch.setattr(partition_module, "count_rows", fragile)
    ingest = member(store, log, IN)
    while not ingest._trouble:
        ingest.step(0)
    send_rows(log, [row(i) for i in range(20, 40)])
    for _ in range(120):
        ingest.step(0)
    assert rejected_offsets(store) == [8, 37]
    assert entry(store).unit("row")["counted"] == 39
    assert ingest.counters["stuck"] == 0
    assert_balanced(store)


def test_a_topic_made_again_has_innocent_records_at_the_offsets_in_trouble(store, log, monkeypatch):
    ingest = one_that_cannot_count_id7(store, log, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(partition_module.flushes, "keep_rejected", keeps_nothing)
        while not ingest.counters["stuck"]:
            ingest.step(0)
    assert ingest._trouble[IN].poison == {8}
    made_again(log, 100, 30)
    drain(ingest, 200)
    old, new = sorted(ledger(store), key=lambda one: one.partition_id)
    assert (old.next_offset, new.unit("row")) == (8, {"counted": 30})
    assert not ingest._trouble


def test_a_deadlock_costs_its_own_partition_a_moment_and_no_other(store, log, monkeypatch):
    ingest = member(store, log, IN, LABELS)
    drain(ingest)
    labels = ingest.owned[LABELS]
    real = partition_module.panes.write_panes
    victims = [OperationalError("update", {}, psycopg.errors.DeadlockDetected())]

    def race(*args):
        if victims:
            raise victims.pop()
        real(*args)

    monkeypatch.setattr(partition_module.panes, "write_panes", race)
    send_rows(log, [row(i) for i in range(5)])
    send_label(log, 0, "yes")
    drain(ingest)
    assert (ingest.counters["conflicts"], ingest.counters["store_errors"]) == (1, 0)
    assert ingest.counters["counting_failed"] == 0
    assert entry(store).unit("row")["counted"] == 5
    assert entry(store, "labels").next_offset == 1
    assert ingest.owned[LABELS] is labels
    assert_balanced(store)


def test_the_source_is_left_whatever_happens_in_the_last_flush(store, log, monkeypatch):
    ingest = member(store, log, IN)
    drain(ingest)
    send_rows(log, [row(0)])
    ingest._monotonic = lambda: 5.0  # nothing is due
    ingest.step(0)

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(ingest, "_flush_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ingest.stop()
    assert ingest.source.positions == {}


# --- a contract that changes while rows are held --------------------------------------------------


def changed(**fields):
    return msgspec.structs.replace(HELD, **fields)


HELD = Contract(
    name="m",
    task="binary",
    features={"x": Feature(kind="number"), "c": Feature(kind="category")},
    prediction=Prediction(score="yes"),
    labels=Labels(arrive="never"),
    windows=Windows(length="2s", lateness="10s", out_of_order="0s", segments=("region",)),
    reference=Reference(rows=14),
)
CHANGES = {
    "segments added": changed(
        windows=msgspec.structs.replace(HELD.windows, segments=("c", "region", "zone"))
    ),
    "segments removed": changed(windows=msgspec.structs.replace(HELD.windows, segments=())),
    "feature added": changed(features=HELD.features | {"age": Feature(kind="number")}),
    "feature removed": changed(features={"c": Feature(kind="category")}),
    "number to category": changed(features=HELD.features | {"x": Feature(kind="category")}),
    "category to number": changed(features=HELD.features | {"c": Feature(kind="number")}),
    "segment to feature": changed(features=HELD.features | {"region": Feature(kind="category")}),
    "task": changed(task="regression", prediction=Prediction()),
    "score": changed(prediction=Prediction(score="sure")),
    "more classes": changed(task="multiclass", prediction=Prediction()),
}


@pytest.mark.parametrize("back", [False, True], ids=["there", "and back"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_contract_that_changes_while_rows_are_held_counts_each_row_once(store, log, change, back):
    """Each revision brings rows of its own to both partitions; then there are enough for cuts."""
    revisions = [HELD, CHANGES[change], *([HELD] if back else [])]
    other = Partition("in", 1)
    ingest = member(store, log, IN, other)
    sent = 0
    in_column = Counter()

    def send(contract, rows, partition):
        nonlocal sent
        in_column.update(dict.fromkeys(contract.windows.segments, rows))
        for _ in range(rows):
            answer = sent * 0.5 if contract.task == "regression" else "yes"
            fields = {
                "prediction": answer,
                "scores": {contract.prediction.score or "yes": 0.25},
                "attributes": {"region": "north", "zone": "7"},
            }
            one = row(sent, at=T0 + sent, **fields)
            log.send(partition, one, one.time)
            sent += 1

    for contract in revisions:
        apply_contract(store, contract, "", "test", T0)
        for partition in (IN, other):
            send(contract, 2, partition)
            drain(ingest)
    held = sum(one.unit("row").get("held", 0) for one in ledger(store))
    assert held == sent == 4 * len(revisions)
    for partition in (IN, other, IN):
        send(revisions[-1], 3, partition)
        drain(ingest)
    assert rejected_offsets(store) == []
    assert (ingest.counters["counting_failed"], ingest.counters["stuck"]) == (0, 0)
    total = Counter()
    for one in ledger(store):
        total.update(one.unit("row"))
    assert total == {"counted": sent, "held": 0}
    state = whole(store).state
    assert state.rows == sent
    assert {name: one.rows for name, one in state.features.items()} == dict.fromkeys(
        revisions[-1].features, sent
    )
    assert_balanced(store)
    assert rows_by_column(store) == in_column, (
        "a row is in the segments of the contract it was read under"
    )


def rows_by_column(store):
    """Rows of all segments of a column, by column."""
    with store.read() as connection:
        segments = set(connection.scalars(select(t.panes.c.segment))) - {""}
    total = Counter()
    for one in segments:
        total[one.partition("=")[0]] += whole(store, one).state.rows
    return total


def test_held_rows_are_counted_where_their_predictions_wait_for_labels(store, log):
    """Pane and segments of held rows are those they were read under, also after a restart and a change."""
    before = changed(
        labels=Labels(arrive="within 1h", sources=("human",)),
        windows=Windows(length="1h", lateness="1h", out_of_order="0s", segments=("region",)),
        reference=Reference(rows=60),
    )
    after = changed(
        labels=before.labels,
        reference=before.reference,
        windows=msgspec.structs.replace(before.windows, length="10 min", pane="1 min"),
    )

    def send(first, many):
        for i in range(first, first + many):
            where = {"region": f"r{i // 2}"}
            one = row(i, at=T0 + i * 60_000, scores={"yes": 0.25}, attributes=where)
            log.send(IN, one, one.time)
            log.send(
                LABELS,
                Label(inference_id=f"id{i}", model="m", label="yes", time=T0 + i, source="human"),
                T0 + i,
            )

    apply_contract(store, before, "", "test", T0)
    send(0, 40)
    drain(member(store, log, IN, LABELS))
    apply_contract(store, after, "", "test", T0)
    send(40, 30)
    ingest = member(store, log, IN, LABELS, owner="two")
    drain(ingest)
    ingest.stop()
    joiner = Joiner(store, "one")
    for _ in range(5):
        joiner.tick(T0 + 10**9)
    with store.read() as connection:
        counted, joined = (
            connection.execute(
                select(table.c.pane_start_ms, table.c.segment, func.sum(column))
                .group_by(table.c.pane_start_ms, table.c.segment)
                .order_by(table.c.pane_start_ms, table.c.segment)
            ).all()
            for table, column in (
                (t.panes, t.panes.c.rows),
                (t.performance, t.performance.c.predicted_rows),
            )
        )
    assert [tuple(one) for one in counted] == [tuple(one) for one in joined]
    names = {segment for _, segment, _ in counted}
    assert names == {"", "region=other", *(f"region=r{i}" for i in range(20))}
