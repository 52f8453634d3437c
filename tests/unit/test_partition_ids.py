"""The ids by which a partition finds duplicates: how many stay in memory, and that none is missed."""

import random
from collections import Counter

import pytest

from trimtab.contracts.model import Contract, Feature, Reference, Windows
from trimtab.events.types import Inference
from trimtab.monitor.decode import Reading
from trimtab.monitor.partition import OwnedPartition
from trimtab.monitor.views import ModelView
from trimtab.source import Partition
from trimtab.store import ledger
from trimtab.store.engine import open_store
from trimtab.store.models import apply_contract
from trimtab.store.tables import metadata
from trimtab.testing.log import MemoryLog

T0 = 1_700_000_000_000
IN = Partition("in", 0)
PANE_MS = 1_000
CONTRACT = Contract(
    name="m",
    task="binary",
    features={"x": Feature(kind="number")},
    windows=Windows(length="1s", lateness="30s", out_of_order="0s"),
    reference=Reference(rows=1),
)
VIEWS = {"m": ModelView(1, CONTRACT)}


@pytest.fixture
def store(store_url):
    store = open_store(store_url)
    metadata.create_all(store.engine)
    apply_contract(store, CONTRACT, "", "test", T0)
    yield store
    store.close()


def owned(store, id_bytes_max: int, consumer: str = "monitor") -> OwnedPartition:
    """Claim the partition; a consumer of another name has a ledger of its own."""
    claim = ledger.claim(
        store,
        consumer=consumer,
        cluster_id="c",
        topic="in",
        topic_id="",
        partition=0,
        owner="test",
        beginning_offset=0,
        now_ms=T0,
    )
    return OwnedPartition(store, claim, "inference", VIEWS, id_bytes_max=id_bytes_max)


def send(log: MemoryLog, name: str, time_ms: int) -> None:
    row = Inference(id=name, model="m", version="1", time=time_ms, features={"x": 1.0})
    log.send(IN, row, time_ms)


def flush(one: OwnedPartition, log: MemoryLog, count: int | None = None):
    records = [r for r in log.records[IN] if r.offset >= one.next_offset][:count]
    reading = Reading("inference", "in", VIEWS)
    reading.add(records)
    return one.flush(reading, records[-1].offset + 1, {}, T0)


def row_classes(flushed) -> Counter[str]:
    return Counter(
        {key.cls: n for key, n in flushed.classes.items() if key.unit == "row" and n and n > 0}
    )


def test_a_duplicate_is_found_in_a_pane_whose_ids_were_let_go(store):
    log, one = MemoryLog(), owned(store, id_bytes_max=80)  # ten ids
    for pane in range(5):
        for i in range(10):
            send(log, f"{pane}-{i}", T0 + pane * PANE_MS + i)
        flush(one, log)
    state = one.models["m"]
    assert set(state.flushes) == {T0 + pane * PANE_MS for pane in range(5)}
    assert set(state.hashes) == {T0 + 4 * PANE_MS}, "panes behind the watermark must be let go"

    send(log, "1-3", T0 + PANE_MS + 3)  # came before
    send(log, "1-new", T0 + PANE_MS + 4)
    late = flush(one, log)
    assert late.read_back == 1
    assert row_classes(late) == {"duplicate": 1, "held": 1}
    send(log, "1-new", T0 + PANE_MS + 4)
    send(log, "0-9", T0 + 9)
    assert row_classes(flush(one, log)) == {"duplicate": 2}


def test_ids_in_memory_stay_within_their_room_but_for_the_open_pane(store):
    log, room = MemoryLog(), 8 * 120
    one = owned(store, room)
    for i in range(2_000):
        send(log, f"id-{i}", T0 + i * 10)  # 100 ids per pane
    while one.next_offset < log.ends[IN]:
        flush(one, log, 37)
        newest = max(one.models["m"].hashes)
        behind = [h for start, h in one.models["m"].hashes.items() if start != newest]
        assert sum(h.nbytes for h in behind) <= room
        assert one.models["m"].id_bytes <= max(room, one.models["m"].hashes[newest].nbytes)

    again = owned(store, room)  # a restart reads no more back than there is room for
    assert again.models["m"].id_bytes <= room
    send(log, "id-1999", T0 + 19_990)
    send(log, "id-5", T0 + 50)
    assert row_classes(flush(again, log)) == {"duplicate": 2}


@pytest.mark.parametrize("seed", range(3))
def test_no_row_is_classed_otherwise_however_little_room_there_is(store, seed):
    rng, log = random.Random(seed), MemoryLog()
    names: list[tuple[str, int]] = []
    for i in range(600):
        if names and rng.random() < 0.3:
            name, time_ms = rng.choice(names)
        else:
            back_ms = rng.choice((0, 0, 0, 2_000, 20_000))
            name, time_ms = f"id-{i}", T0 + 100 * i - back_ms
            names.append((name, time_ms))
        send(log, name, time_ms)

    found = []
    for consumer, room in (("monitor", 1 << 30), ("small", 64)):
        one, total, read_back = owned(store, room, consumer), Counter(), 0
        cuts = random.Random(seed)
        while one.next_offset < log.ends[IN]:
            flushed = flush(one, log, cuts.randint(1, 60))
            total += row_classes(flushed)
            read_back += flushed.read_back
            if cuts.random() < 0.1:
                one = owned(store, room, consumer)
        found.append((total, read_back))
    (wide, none), (narrow, some) = found
    assert none == 0
    assert some > 10
    assert narrow == wide
    assert wide["duplicate"] > 50
    assert wide["too_late"] > 10
