"""An evaluator that skips models with nothing to judge writes what one that looks at each writes."""

import random
from collections import Counter

import msgspec
import numpy as np
import pytest
from sqlalchemy import select, update

from trimtab.contracts.model import Alarms, Contract, Feature, Labels, Reference, Windows
from trimtab.monitor import evaluator as evaluator_module
from trimtab.monitor.evaluator import Evaluator
from trimtab.store.engine import Store, open_store
from trimtab.store.models import apply_contract
from trimtab.store.tables import alerts, evaluations, metadata, partitions, verdicts
from trimtab.testing.series import SeriesWriter

SECOND = 1_000
START = 1_700_000_000_000
LENGTH = 2 * SECOND
MODELS = ("busy", "late", "silent")


def contract(name: str, **changes) -> Contract:
    given = {
        "name": name,
        "task": "binary",
        "features": {"x": Feature("number")},
        "labels": Labels("within 20s"),
        "windows": Windows(
            length="2s", pane="1s", lateness="1 min", out_of_order="1s", idle="5s", min_rows=5
        ),
        "alarms": Alarms(rules=("accuracy < 0.9 in 2 of 3", "psi(x) > 0.25 in 2 of 3")),
        "reference": Reference(windows=3),
    }
    return Contract(**{**given, **changes})


class World:
    """Some models on two partitions, written by chance; the chance is the seed's alone."""

    def __init__(self, store: Store, seed: int, *, skip_quiet: bool) -> None:
        self.store, self.rng, self.now_ms = store, random.Random(seed), START
        self.numbers = np.random.default_rng(seed)
        self.writers = {m: SeriesWriter(store, contract(m), START) for m in MODELS}
        fit = np.random.default_rng(1).normal(size=500).tolist()
        for writer in self.writers.values():
            writer.fit_cuts({"x": fit}, ["a", "b"])
        self.evaluator = Evaluator(store, "one", skip_quiet=skip_quiet)

    def step(self) -> None:
        rng = self.rng
        self.now_ms += rng.choice((100, 700, 2_500, 9_000))
        model = rng.choice(MODELS[: rng.choice((1, 2, 3))])
        writer = self.writers[model]
        writer.now_ms = self.now_ms
        act = rng.choice(
            ("rows",) * 3 + ("labels", "gauges", "pass", "read", "quiet", "apply", "lose")
        )
        pane_ms = (self.now_ms - rng.choice((0, 0, 0, 4_000, 30_000))) // SECOND * SECOND
        partition = rng.choice((0, 0, 1))
        if act == "rows":
            x = (self.numbers.normal(size=20) + rng.choice((0, 0, 3))).tolist()
            writer.rows(pane_ms, {"x": x}, prediction=["a", "b"] * 10, partition=partition)
        elif act == "labels":
            right = rng.randint(0, 10)
            pairs = [("a", "a")] * right + [("a", "b")] * (10 - right)
            writer.labels(pane_ms, pairs, predicted_rows=20)
        elif act == "gauges":
            writer.gauges(pane_ms, {"cpu_percent": [rng.random()]})
        elif act == "pass":
            writer.passed(self.now_ms, partition)
        elif act == "read":
            self.owned(lagging=rng.random() < 0.3)
        elif act == "lose":
            if rng.random() < 0.5:
                writer.loses(3, partition)
            else:
                writer.reads_on(pane_ms, partition)
        elif act == "apply" and rng.random() < 0.2:
            idle = f"{rng.randint(2, 9)}s"
            windows = msgspec.structs.replace(writer.contract.windows, idle=idle)
            writer.contract = msgspec.structs.replace(writer.contract, windows=windows)
            apply_contract(self.store, writer.contract, "", "test", self.now_ms)
        if rng.random() < 0.8:
            self.evaluator.tick(self.now_ms)

    def owned(self, *, lagging: bool) -> None:
        """The owner says that it lives, and where the log ends: no flush."""
        with self.store.write() as connection:
            connection.execute(
                update(partitions).values(
                    next_offset=1,
                    end_offset=2 if lagging else 1,
                    caught_up_ms=partitions.c.caught_up_ms if lagging else self.now_ms,
                    owner_seen_ms=self.now_ms,
                )
            )

    def written(self) -> list[tuple]:
        with self.store.read() as connection:
            columns = [c for c in verdicts.c if c.name not in ("id", "body")]
            found = connection.execute(
                select(*columns, verdicts.c.body).order_by(
                    verdicts.c.model, verdicts.c.window_start_ms, verdicts.c.revision
                )
            )
            progress = [
                (model, {k: v for k, v in msgspec.json.decode(state).items() if k != "seen"})
                for model, state in connection.execute(
                    select(evaluations.c.model, evaluations.c.state).order_by(evaluations.c.model)
                )
            ]  # without `seen`: gauges of an open window are looked at when it closes
            raised = connection.execute(
                select(alerts.c.model, alerts.c.state, alerts.c.opened_ms).order_by(
                    alerts.c.model, alerts.c.opened_ms, alerts.c.id
                )
            )
            return [tuple(row) for rows in (found, progress, raised) for row in rows]


def open_at(path) -> Store:
    store = open_store(f"sqlite:///{path}")
    metadata.create_all(store.engine)
    return store


@pytest.mark.parametrize("seed", range(3))
def test_skipping_quiet_models_changes_no_verdict_no_alert_and_no_progress(tmp_path, seed):
    worlds = []
    for name, skip_quiet in (("skips", True), ("looks", False)):
        worlds.append(World(open_at(tmp_path / f"{name}.db"), seed, skip_quiet=skip_quiet))
    for _ in range(120):
        for world in worlds:
            world.step()
    skips, looks = (world.written() for world in worlds)
    for world in worlds:
        world.store.close()
    assert skips == looks
    reasons = {row[verdict_column("reason")] for row in looks if len(row) > 8}
    assert "no_data" in reasons, "the clock must have closed windows"
    assert len(looks) > 30


def verdict_column(name: str) -> int:
    return [c.name for c in verdicts.c if c.name not in ("id", "body")].index(name)


def test_a_model_that_nothing_moves_is_not_looked_at_again_until_something_does(
    tmp_path, monkeypatch
):
    world = World(open_at(tmp_path / "one.db"), 1, skip_quiet=True)
    looked: Counter[str] = Counter()
    real = evaluator_module.progress_of

    def counting(connection, model):
        looked[model] += 1
        return real(connection, model)

    monkeypatch.setattr(evaluator_module, "progress_of", counting)
    for writer in world.writers.values():
        for pane in range(4):
            writer.rows(START + pane * SECOND, {"x": [0.1] * 20}, prediction=["a", "b"] * 10)
        writer.passed(START + 3 * SECOND)
    for _ in range(3):
        world.now_ms += 100
        world.evaluator.tick(world.now_ms)
    before = Counter(looked)
    for _ in range(5):
        world.now_ms += 100
        world.evaluator.tick(world.now_ms)
    assert looked == before

    def again() -> set[str]:
        before = Counter(looked)
        world.now_ms += 100
        world.evaluator.tick(world.now_ms)
        return set(looked - before)

    world.writers["silent"].gauges(START + 60 * SECOND, {"cpu_percent": [0.1]})
    assert again() == set()  # its window is open
    world.writers["silent"].gauges(START, {"cpu_percent": [0.1]})
    assert again() == {"silent"}
    assert again() == {"silent"}  # what it is to wait for is known now
    assert again() == set()
    world.writers["late"].rows(START, {"x": [0.1] * 20}, prediction=["a", "b"] * 10)
    assert again() == {"late"}
    assert again() == {"late"}
    assert again() == set()
    for _ in range(3):  # its revision waits for its turn
        world.now_ms += 5 * SECOND
        world.evaluator.tick(world.now_ms)
    assert again() == set()
    world.writers["silent"].labels(START, [("a", "a")], predicted_rows=20)
    assert again() == {"silent"}
    world.store.close()


def test_a_tick_looks_at_so_many_models_and_the_next_goes_on_behind_them(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator_module, "LOOKS_PER_TICK", 2)
    store = open_store(f"sqlite:///{tmp_path / 'trimtab.db'}")
    metadata.create_all(store.engine)
    fit = np.random.default_rng(1).normal(size=500).tolist()
    writers = [SeriesWriter(store, contract(f"m{k}"), START) for k in range(5)]
    for writer in writers:
        writer.fit_cuts({"x": fit}, ["a", "b"])
        writer.rows(START, {"x": fit[:20]}, prediction=["a", "b"] * 10)
        writer.passed(START + LENGTH)
    judging = Evaluator(store, "one")
    ticks = [(judging.tick(START + step), judging.behind) for step in range(3)]
    assert ticks == [
        (2, True),
        (2, True),
        (1, True),
    ]  # m0 is looked at again: it was not found quiet
    while judging.behind:
        assert judging.tick(START + 10) == 0
    with store.read() as connection:
        assert len(connection.execute(select(verdicts.c.model)).all()) == 5
    store.close()


def test_a_lease_that_ran_out_unseen_is_no_reason_to_look_at_everything_again(
    tmp_path, monkeypatch
):
    store = open_store(f"sqlite:///{tmp_path / 'trimtab.db'}")
    metadata.create_all(store.engine)
    writer = SeriesWriter(store, contract("m"), START)
    fit = np.random.default_rng(1).normal(size=500).tolist()
    writer.fit_cuts({"x": fit}, ["a", "b"])
    writer.rows(START, {"x": fit[:20]}, prediction=["a", "b"] * 10)
    writer.passed(START + LENGTH)
    one = Evaluator(store, "one", lease_s=0.1)
    assert (one.tick(START), one.tick(START + 1)) == (1, 0)
    looked: list[str] = []
    real = Evaluator._plan

    def plan(self, connection, reader, now_ms):
        looked.append(self._owner)
        return real(self, connection, reader, now_ms)

    monkeypatch.setattr(Evaluator, "_plan", plan)
    assert one.tick(START + 200) == 0  # its own lease is over, and nobody has had it
    assert looked == []
    two = Evaluator(store, "two", lease_s=0.1)
    assert two.tick(START + 400) == 0
    assert one.tick(START + 600) == 0  # another has held it
    assert looked == ["two", "one"]
    store.close()
