"""Retention over a fleet looks only at what has moved, and ends where looking at everything ends."""

import random

import pytest
from sqlalchemy import select

from trimtab.alerts.delivery import Relay
from trimtab.contracts.model import Contract, Feature, Labels, Windows
from trimtab.monitor import housekeeping
from trimtab.monitor.evaluator import Evaluator
from trimtab.monitor.housekeeping import RETENTION_EVERY_MS, Housekeeping, Retention
from trimtab.store.engine import Store, open_store
from trimtab.store.models import retire_model
from trimtab.store.oldest import Oldest
from trimtab.store.tables import joiners, metadata, panes, rollups, verdicts
from trimtab.testing.series import SeriesWriter
from trimtab.windows.rollup import HOUR_MS

START = 6_944 * 24 * HOUR_MS
HALF_MS = HOUR_MS // 2
NOW_MS = 1_700_000_000_000
KEEP = Retention(
    panes_ms=4 * HOUR_MS,
    hours_ms=30 * HOUR_MS,
    days_ms=90 * HOUR_MS,
    labels_ms=20 * HOUR_MS,
    samples_ms=HOUR_MS,
    verdict_detail_ms=6 * HOUR_MS,
)
MODELS = ("busy", "labelled", "idle")


class Sink:
    def publish(self, messages):
        return [None] * len(messages)

    def close(self) -> None:
        return None


def contract(name: str) -> Contract:
    return Contract(
        name=name,
        task="binary",
        features={"x": Feature("number")},
        labels=Labels("within 3 h") if name == "labelled" else Labels(),
        windows=Windows(length="30 min", pane="30 min", out_of_order="0s", min_rows=5),
    )


def keeper_of(store: Store) -> Housekeeping:
    return Housekeeping(store, "one", Relay(store, Sink(), "tt", {}), KEEP)


def writer_of(store: Store, name: str) -> SeriesWriter:
    writer = SeriesWriter(store, contract(name), NOW_MS)
    writer.fit_cuts({"x": [float(i) for i in range(50)]})
    return writer


def contents(store: Store) -> list[list[tuple]]:
    """What retention decides about, whole."""
    tables = (panes, rollups, verdicts, joiners)
    with store.read() as connection:
        return [
            sorted(
                tuple(row)
                for row in connection.execute(
                    select(*(c for c in table.columns if c.name not in ("id", "expires_ms")))
                )
            )
            for table in tables
        ]


def story(store: Store, seed: int) -> list[list[list[tuple]]]:
    """Write by chance, judge and keep house; return what is stored after every full round."""
    rng = random.Random(seed)
    writers = {name: writer_of(store, name) for name in MODELS}
    evaluator, keeper = Evaluator(store, "one"), keeper_of(store)
    at_ms, now_ms, found = START, NOW_MS, []
    for step in range(40):
        at_ms += rng.choice((0, HALF_MS, HALF_MS, 5 * HOUR_MS))
        now_ms += 2 * RETENTION_EVERY_MS
        name = rng.choice(MODELS[: rng.choice((1, 2, 2, 3))])
        writer = writers[name]
        writer.now_ms = now_ms
        act = rng.choice(("rows", "rows", "late", "labels", "pass"))
        if act in ("rows", "late"):
            late_ms = 2 * HOUR_MS if act == "late" else 0
            writer.rows(at_ms - late_ms, {"x": [1.0] * 10}, newest_ms=at_ms + HALF_MS - 1)
        elif act == "labels" and name == "labelled":
            writer.labels(at_ms - HOUR_MS, [("yes", "no")] * (1 + step), predicted_rows=50)
        else:
            writer.passed(at_ms)
            writer.seal(at_ms)
        if step == 30:
            retire_model(store, "busy", now_ms)
        if rng.random() < 0.8:
            evaluator.tick(now_ms)
        for moment in range(20):
            if not keeper.tick(now_ms + moment):
                break
        found.append(contents(store))
    keeper.close()
    return found


class Thorough(Housekeeping):
    """Looks at every model in every round."""

    def _begin_round(self, looks, now_ms) -> None:
        self._settled.clear()
        super()._begin_round(looks, now_ms)

    def _may_forget(self, *_) -> bool:
        return True


@pytest.mark.parametrize("seed", range(4))
def test_skipping_what_has_not_moved_keeps_the_same_as_looking_at_everything(
    seed, tmp_path, monkeypatch
):
    found = []
    for number in range(2):
        store = open_store(f"sqlite:///{tmp_path / f'{number}.db'}")
        metadata.create_all(store.engine)
        if number == 1:
            monkeypatch.setattr(Oldest, "may_seal", lambda *_, **__: True)
            monkeypatch.setattr(Oldest, "may_age", lambda *_: True)
            monkeypatch.setitem(globals(), "Housekeeping", Thorough)
        found.append(story(store, seed))
        store.close()
    assert found[0] == found[1]
    _, last_rollups, last_verdicts, _ = found[0][-1]
    assert last_rollups
    assert last_verdicts


def test_models_that_nothing_has_moved_are_not_asked_for_again(store_url, monkeypatch):
    monkeypatch.setattr(housekeeping, "MODELS_PER_TICK", 2)
    asked: list[str] = []
    real = housekeeping.oldest_of

    def oldest_of(connection, names):
        asked.extend(names)
        return real(connection, names)

    monkeypatch.setattr(housekeeping, "oldest_of", oldest_of)
    store = open_store(store_url)
    metadata.create_all(store.engine)
    names = [f"m{k}" for k in range(5)]
    writers = {name: writer_of(store, name) for name in names}
    for writer in writers.values():
        writer.rows(START, {"x": [1.0] * 10})
        writer.passed(START + HOUR_MS)
        writer.seal(START + HALF_MS)
    assert Evaluator(store, "one").tick(NOW_MS) == 10
    keeper = keeper_of(store)
    ticks = [len(asked) for step in range(6) if keeper.tick(NOW_MS + step) is not None]
    assert ticks == [2, 4, 5, 5, 5, 5]  # two at a time, each once
    assert asked == names
    with store.read() as connection:
        assert not connection.execute(select(panes)).all()  # folded
    keeper.tick(NOW_MS + RETENTION_EVERY_MS + 10)
    assert len(asked) == 5
    writers["m3"].rows(START + HOUR_MS, {"x": [1.0] * 10})
    keeper.tick(NOW_MS + 2 * RETENTION_EVERY_MS + 20)
    assert asked[5:] == ["m3"]
    keeper.tick(NOW_MS + 2 * housekeeping.LOOK_AT_ALL_MS)
    assert asked[6:] == names[:2]  # now and then, all of them
    keeper.close()
    store.close()
