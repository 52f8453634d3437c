"""The detector at work: fitted when a baseline is complete, asked of every window, replayed after late rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hourly_world import HOUR, START, HourlyWorld
from sqlalchemy import select, update
from typer.testing import CliRunner

from trimtab.cli import app
from trimtab.contracts.model import Alarms, Contract, Feature, Reference, Windows
from trimtab.detect.budget import FLEET
from trimtab.detect.evidence import Detector
from trimtab.errors import NotFoundError, TrimtabError
from trimtab.monitor.evaluator import Evaluator
from trimtab.monitor.verify import verify_verdict
from trimtab.records import AlertState, Kind, Outcome, Reason
from trimtab.store import alerts, baselines, verdicts
from trimtab.store.detector_view import detector_view, fleet_budgets, plan_view
from trimtab.store.detectors import detectors_of
from trimtab.store.engine import Store, open_store
from trimtab.store.feature_view import feature_view
from trimtab.store.migrate import upgrade
from trimtab.store.models import active_cuts, apply_contract
from trimtab.store.tables import detector_states, detectors, metadata

REFERENCE = 60
ROWS = 300


def contract(**changes) -> Contract:
    given = {
        "name": "m",
        "task": "binary",
        "features": {"x": Feature("number"), "y": Feature("number"), "c": Feature("category")},
        "windows": Windows(length="1h", pane="1h", lateness="3h", out_of_order="0s", min_rows=100),
        "alarms": Alarms(false_alarms="1 per 30 days"),
        "reference": Reference(windows=REFERENCE),
    }
    return Contract(**{**given, **changes})


class World(HourlyWorld):
    """Numbers `x` and `y` and a category `c`; `shift` moves `x`."""

    def __init__(self, store: Store, made: Contract | None = None, **options) -> None:
        super().__init__(store, made or contract(), **options)
        self.rng = np.random.default_rng(5)
        self.writer.fit_cuts(
            {
                "x": self.rng.normal(size=4_000).tolist(),
                "y": self.rng.exponential(size=4_000).tolist(),
                "c": self.rng.choice(list("abc"), 4_000, p=[0.6, 0.3, 0.1]).tolist(),
            },
            ["a", "b"],
        )

    def write(self, number: int, shift: float = 0.0, rows: int = ROWS, missing: float = 0.0):
        x = self.rng.normal(size=rows) + shift
        gone = self.rng.random(rows) < missing
        self.writer.now_ms = self.now_ms
        self.writer.rows(
            self.at(number),
            {
                "x": [None if g else v for v, g in zip(x.tolist(), gone, strict=True)],
                "y": self.rng.exponential(size=rows).tolist(),
                "c": self.rng.choice(list("abc"), rows, p=[0.6, 0.3, 0.1]).tolist(),
            },
            prediction=self.rng.choice(["a", "b"], rows).tolist(),
        )

    def states(self) -> list[int]:
        """Numbers of the windows whose states are kept."""
        with self.store.read() as connection:
            starts = connection.scalars(
                select(detector_states.c.window_start_ms).order_by(
                    detector_states.c.window_start_ms
                )
            ).all()
        return [(start - START) // HOUR for start in starts]


def open_alerts(store: Store):
    with store.read() as connection:
        return alerts.open_alerts(connection, "m")


def active(store: Store) -> int | None:
    with store.read() as connection:
        return baselines.active_baseline_id(connection, "m")


@pytest.fixture
def store(store_url: str):
    opened = open_store(store_url)
    metadata.create_all(opened.engine)
    yield opened
    opened.close()


@pytest.fixture
def local(sqlite_url: str):
    opened = open_store(sqlite_url)
    metadata.create_all(opened.engine)
    yield opened
    opened.close()


def test_a_change_raises_one_alert_that_ends_when_the_feature_is_as_before(store):
    world = World(store)
    world.go(REFERENCE + 10)
    calm = world.verdict(REFERENCE + 9)
    assert calm.outcome is Outcome.OK
    assert "the detector sees no change" in calm.summary
    assert 0 <= calm.figures["detector"]["evidence"] < 0.1

    changed_at = world.next
    world.go(12, shift=0.8)
    opened = open_alerts(store)
    assert [a.condition for a in opened] == ["detector:input"]
    first = next(
        n for n in range(changed_at, world.next) if world.verdict(n).outcome is Outcome.ALARM
    )
    assert first - changed_at < 4
    finding = next(f for f in world.verdict(first).findings if f.outcome is Outcome.ALARM)
    assert (finding.kind, finding.reason) == (Kind.INPUT, Reason.DETECTOR)
    assert finding.onset_ms == world.at(changed_at)
    assert finding.detail.startswith("x: shifted by +0.")
    # The drift goes on: still red, still the same alert.
    assert world.verdict(world.next - 1).outcome is Outcome.ALARM
    assert world.verdict(world.next - 1).figures["detector"]["open"]["x"]["what"] == "location"

    world.go(40)
    assert open_alerts(store) == []
    assert world.verdict(world.next - 1).outcome is Outcome.OK
    history = alerts.alerts_of(store, "m")
    assert [a.state for a in history] == [AlertState.RESOLVED]
    for row in verdicts.latest_verdicts(store, "m", 3):
        assert verify_verdict(store, row.id).confirmed


def test_missing_values_are_a_break_of_the_data_not_of_the_input(local):
    world = World(local)
    world.go(REFERENCE + 2)
    world.go(4, missing=0.3)
    alert = open_alerts(local)[0]
    assert (alert.condition, alert.kind) == ("detector:data_quality", Kind.DATA_QUALITY)
    assert "missing 3" in alert.summary or "missing 2" in alert.summary


def test_a_change_that_is_accepted_ends_its_alarm_and_the_next_change_is_found(local):
    world = World(local)
    world.go(REFERENCE + 2)
    with pytest.raises(NotFoundError, match="nobody"):
        baselines.accept(local, "nobody", None, world.now_ms)
    with pytest.raises(TrimtabError, match="--since"):
        baselines.accept(local, "m", None, world.now_ms)
    before = active(local)
    world.go(16, shift=1.0)
    (alert,) = open_alerts(local)
    made = baselines.accept(local, "m", None, world.now_ms)
    row = baselines.baseline(local, made)
    since = (alert.window_start_ms - world.at(0)) // HOUR
    assert (row.source, row.windows) == ("accepted", world.next - since)
    assert active(local) == made != before
    world.go(12, shift=1.0)
    assert open_alerts(local) == []
    view = feature_view(local, "m", "x", FLEET)
    assert view.first is not None
    assert view.first.sd_equivalents == pytest.approx(1.0, abs=0.3)
    assert view.first.psi > 0.5 > view.figures["psi"]
    assert feature_view(local, "m", "c", FLEET).first.psi < 0.1
    world.go(6, shift=2.0)
    assert [one.condition for one in open_alerts(local)] == ["detector:input"]


def test_traffic_that_stops_raises_an_alert_that_ends_when_it_is_back(local):
    world = World(local)
    world.go(168 + 10)  # hours of the week that the reference has
    world.next += 3  # three hours without a row
    world.close()
    silent = world.verdict(world.next - 1)
    assert (silent.figures["rows"], silent.outcome, silent.kind) == (0, Outcome.ALARM, Kind.VOLUME)
    (alert,) = open_alerts(local)
    assert alert.condition == "detector:volume"
    assert alert.summary == "no row came for this window"
    assert verify_verdict(local, world.rows_of(world.next - 1)[-1].id).confirmed
    world.go(12)
    assert open_alerts(local) == []


def test_late_rows_give_the_states_that_punctual_rows_give(sqlite_url, tmp_path):
    said = []
    for place, is_late in (("punctual", False), ("late", True)):
        store = open_store(f"sqlite:///{tmp_path / place}.db")
        metadata.create_all(store.engine)
        world = World(store)
        world.go(REFERENCE + 2)
        first = world.next
        extra = {"x": [4.0] * 200, "y": [1.0] * 200, "c": ["a"] * 200}

        def add() -> None:
            world.writer.now_ms = world.now_ms  # noqa: B023 - called in this round
            world.writer.rows(world.at(first), extra, prediction=["a"] * 200)  # noqa: B023

        world.write(first)
        if not is_late:
            add()
        world.next += 1
        world.close()
        world.go(2)
        if is_late:
            before = world.verdict(first)
            add()
            world.close()
            after = world.verdict(first)
            assert (before.revision, after.revision) == (1, 2)
            assert after.changed == "+200 rows"
        world.go(1)
        said.append(
            [
                (v.outcome, v.figures["detector"]["open"], v.figures["detector"]["moved"])
                for v in (world.verdict(first + n) for n in range(4))
            ]
        )
        with store.read() as connection:
            newest = connection.scalars(
                select(detector_states.c.digest).order_by(detector_states.c.window_start_ms.desc())
            ).first()
        said[-1].append(newest)
        last, follower = verdicts.latest_verdicts(store, "m", 2)
        assert verify_verdict(store, last.id).confirmed
        # It says what it said, and has no revision: only the state before it is another.
        assert verify_verdict(store, follower.id).confirmed is not is_late
        assert follower.verdict.revision == 1
        store.close()
    assert said[0][-1] == said[1][-1], "the states after the last window"
    assert said[0] == said[1]


def test_states_are_kept_as_far_back_as_late_rows_reach(local):
    world = World(local)
    world.go(REFERENCE + 20)
    last = world.next - 1
    # A row of three hours ago may still come: the states of these windows, and the one before.
    assert world.states() == list(range(last - 3, last + 1))


def test_a_revision_beyond_the_states_repeats_what_the_detector_said(local):
    world = World(local)
    world.go(REFERENCE + 20)
    early = REFERENCE + 2
    said = world.verdict(early).figures["detector"]
    world.writer.now_ms = world.now_ms
    world.writer.gauges(world.at(early), {"cpu_percent": [50.0]})
    world.close()
    again = world.verdict(early)
    assert again.revision == 2
    assert again.figures["detector"] == said
    row = verdicts.verdict_history(local, "m", world.at(early))[-1]
    answer = verify_verdict(local, row.id)
    assert answer.expired
    assert answer.parts == ["the detector's state before it has expired"]


def test_figures_are_against_the_windows_of_the_same_hour_where_there_is_a_season(local):
    world = World(local, contract(reference=Reference(windows=120)))
    rhythm = [np.sin(2 * np.pi * (n % 24) / 24) for n in range(150)]
    for n in range(122):
        world.go(1, shift=float(rhythm[n]))
    seasonal = world.verdict(121)
    assert seasonal.outcome is Outcome.OK, "the rhythm of the day is no change"
    baseline = seasonal.figures["baseline"]
    assert baseline["season"] == "01:00"
    assert baseline["windows"] == 120
    assert baseline["rows"] == 5 * ROWS
    assert seasonal.figures["features"]["x"]["psi"] < 0.1
    # Noon's values at night are what an average day has, and are no night's.
    world.go(1, shift=float(rhythm[122]) + 1.0)
    assert world.verdict(122).figures["features"]["x"]["psi"] > 0.5
    row = verdicts.verdict_history(local, "m", world.at(122))[-1]
    assert verify_verdict(local, row.id).confirmed


def test_a_short_reference_gives_no_detector_and_says_what_it_needs(local):
    world = World(local, contract(reference=Reference(windows=12)))
    world.go(20)
    with local.read() as connection:
        (row,) = detectors_of(connection, "m")
    assert row.fitted is None
    assert row.refused.startswith("the baseline holds 12 windows; the detector needs 48")
    assert world.verdict(19).figures["detector"]["reason"] == row.refused


def test_a_file_without_times_gives_the_figures_and_traffic_the_detector(local, tmp_path):
    world = World(local, contract(reference=Reference(from_="training.csv", windows=50)))
    training = tmp_path / "training.csv"
    rng = np.random.default_rng(11)
    columns = (
        rng.normal(size=3_000),
        rng.exponential(size=3_000),
        rng.choice(list("abc"), 3_000),
        rng.choice(["a", "b"], 3_000),
    )
    lines = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
    training.write_text("\n".join(["x,y,c,answer", *lines]))
    fitted = baselines.fit_from_file(
        local, "m", str(training), prediction_column="answer", now_ms=world.now_ms
    )
    with local.read() as connection:
        world.writer.cuts = active_cuts(connection, "m")

    world.go(10)
    early = world.verdict(9)
    assert early.figures["detector"]["reason"].startswith("calibrating: 9 of 50 windows")
    assert early.outcome is Outcome.CANNOT_TELL
    assert early.evidence.baseline_id == fitted

    world.go(45)
    late = world.verdict(54)
    assert late.evidence.baseline_id == fitted, "figures stay those against the file"
    assert late.figures["detector"]["evidence"] >= 0
    assert late.outcome is Outcome.OK
    world.go(5, shift=1.0)
    assert world.verdict(world.next - 1).outcome is Outcome.ALARM


def test_new_windows_wait_for_a_detector_that_is_being_fitted(local, monkeypatch):
    import threading

    from trimtab.monitor import fits

    go_on = threading.Event()
    real = fits.fit_detector

    def slow(*args, **kwargs):
        go_on.wait(60)
        return real(*args, **kwargs)

    monkeypatch.setattr(fits, "fit_detector", slow)
    world = World(local, fit_wait_s=0.01)
    world.go(REFERENCE + 5)
    newest = verdicts.latest_verdicts(local, "m")[0].verdict
    assert newest.window_start_ms == world.at(REFERENCE - 1)
    assert world.evaluator.behind
    go_on.set()
    while not detectors_in(local):
        world.evaluator.tick(world.now_ms)
    world.close()
    for number in range(REFERENCE, REFERENCE + 5):
        assert world.verdict(number).figures["detector"]["id"] == 1
    world.evaluator.close()


def detectors_in(store: Store) -> bool:
    with store.read() as connection:
        return bool(detectors_of(connection, "m"))


def test_a_new_baseline_of_few_windows_inherits_what_is_usual(local):
    world = World(local)
    world.go(REFERENCE + 2)
    world.go(20, shift=0.8)
    assert open_alerts(local)
    baselines.rebase(
        local, "m", world.at(REFERENCE + 4), world.at(REFERENCE + 20), "rebase", world.now_ms
    )
    world.go(6, shift=0.8)
    with local.read() as connection:
        rows = detectors_of(connection, "m")
    assert rows[-1].fitted.inherited
    assert rows[-1].fitted.calibration.windows == 16
    assert world.verdict(world.next - 1).outcome is Outcome.OK
    assert open_alerts(local) == []


def test_another_contract_over_the_same_baseline_inherits_nothing(local):
    world = World(local)
    world.go(REFERENCE + 2)
    newer = contract(alarms=Alarms(false_alarms="1 per 30 days", smallest_shift=0.1))
    apply_contract(local, newer, "", "test", world.now_ms)
    world.go(2)
    with local.read() as connection:
        first, second = (row.fitted for row in detectors_of(connection, "m"))
    assert not first.inherited
    assert not second.inherited, "it would take its own baseline for the one before"
    assert second.certificate is not None
    assert second.calibration.floor.min() == pytest.approx(0.1)
    assert world.verdict(world.next - 1).figures["detector"]["id"] == 2


def test_a_fit_that_fails_is_told_and_stops_no_verdict(local, monkeypatch):
    from trimtab.monitor import fits

    def fails(*args, **kwargs):
        raise ValueError("odd counts")

    monkeypatch.setattr(fits, "fit_detector", fails)
    world = World(local)
    world.go(REFERENCE + 3)
    last = world.verdict(REFERENCE + 2)
    assert "could not be fitted (ValueError: odd counts)" in last.figures["detector"]["reason"]
    assert world.evaluator.failures == {}


def test_a_tick_waits_for_one_fit_however_many_models_want_one(local, monkeypatch):
    waited = []

    class Slow:
        def __init__(self, store):
            pass

        def ask(self, wanted, contract, budget, wait_s):
            waited.append((wanted.model, wait_s))

        def close(self):
            pass

    monkeypatch.setattr("trimtab.monitor.evaluator.Fits", Slow)
    names = ["a", "b", "c"]
    worlds = [World(local, contract(name=name)) for name in names]
    for world in worlds:
        for _ in range(REFERENCE):
            world.write(world.next)
            world.next += 1
        world.writer.passed(world.at(world.next))
    evaluator = Evaluator(local, "two", fit_wait_s=0.25)
    now_ms = START + 200 * 1_000
    while evaluator.tick(now_ms):
        pass
    waited.clear()
    evaluator.tick(now_ms)
    assert waited == [("a", 0.25), ("b", 0.0), ("c", 0.0)]
    evaluator.close()


def test_what_another_release_stored_is_repeated(local):
    world = World(local)
    world.go(REFERENCE + 6)
    early = REFERENCE + 1
    said = world.verdict(early).figures["detector"]
    with local.write() as connection:
        connection.execute(update(detectors).values(body=b"another release", recipe="another"))
    world.writer.now_ms = world.now_ms
    world.writer.gauges(world.at(early), {"cpu_percent": [50.0]})
    world.evaluator = Evaluator(local, "one", fit_wait_s=60.0)
    world.close()
    assert world.verdict(early).revision == 2
    assert world.verdict(early).figures["detector"] == said
    assert world.evaluator.failures == {}


def test_a_provisional_baseline_becomes_whole_when_enough_windows_have_come(local):
    world = World(local)
    world.go(REFERENCE)
    world.go(20, shift=0.8)
    since = REFERENCE + 4
    baselines.rebase(local, "m", world.at(since), world.at(REFERENCE + 20), "rebase", world.now_ms)
    world.go(since + 167 - world.next, shift=0.8)
    assert [b.source for b in baselines.baselines_of(local, "m")] == ["traffic", "rebase"]
    world.go(3, shift=0.8)
    grown = baselines.baselines_of(local, "m")[-1]
    assert grown.source.startswith("grown:")
    assert 168 <= grown.windows <= 170
    world.go(1, shift=0.8)
    with local.read() as connection:
        fitted = detectors_of(connection, "m")[-1].fitted
    assert not fitted.inherited
    assert fitted.certificate is not None
    assert world.verdict(world.next - 1).figures["detector"]["id"] == 3


def test_the_budget_of_the_contract_is_the_detectors(local):
    world = World(local, contract(alarms=Alarms(false_alarms="1 per 90 days")))
    world.go(REFERENCE + 1)
    assert world.verdict(REFERENCE).figures["detector"]["windows_per_alarm"] == 90 * 24


def test_without_one_of_its_own_a_model_has_a_quarter_of_the_fleets_budget(local):
    world = World(local, contract(alarms=Alarms()))
    world.go(REFERENCE + 1)
    assert world.verdict(REFERENCE).figures["detector"]["windows_per_alarm"] == 30 * 24


def test_people_are_told_budget_reference_and_what_a_change_takes(sqlite_url, monkeypatch):
    store = open_store(sqlite_url)
    upgrade(store)
    world = World(store, contract(reference=Reference(windows=100)))
    world.go(50)
    early = detector_view(store, "m", "4 per 30 days")
    assert (early.fitted, early.windows_per_alarm) == (False, 720)
    with pytest.raises(NotFoundError, match="no baseline is complete yet"):
        plan_view(store, "m", "4 per 30 days")

    world.go(55)
    world.go(4, shift=1.0)
    view = detector_view(store, "m", "4 per 30 days")
    assert (view.fitted, view.baseline, view.reference_windows) == (True, 1, 100)
    assert view.false_alarms_per_30_days == 1
    assert list(view.open) == ["x"]
    assert fleet_budgets(store, "4 per 30 days") == (1.0, 1)

    usual = plan_view(store, "m", "4 per 30 days")
    rarer = plan_view(store, "m", "4 per 30 days", budget="1 per 300 days")
    mine, other = (
        next(p for p in each.planned if (p.source, p.what) == ("x", "location"))
        for each in (usual, rarer)
    )
    assert mine.windows[0] < other.windows[0] < 1.5 * mine.windows[0]
    assert mine.windows == tuple(sorted(mine.windows, reverse=True))
    assert "windows" in usual.reference
    store.close()

    monkeypatch.setenv("TRIMTAB_STORE__URL", sqlite_url)
    for command in (["detector", "show", "m"], ["plan", "m"], ["plan", "m", "--all"]):
        text = CliRunner().invoke(app, command, catch_exceptions=False)
        told = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
        assert (text.exit_code, told.exit_code) == (0, 0)
        assert "720" in text.stdout
        assert json.loads(told.stdout)["model"] == "m"


def test_two_evaluators_give_the_same_detector(sqlite_url, tmp_path):
    made = []
    for place in ("one", "two"):
        store = open_store(f"sqlite:///{tmp_path / place}.db")
        metadata.create_all(store.engine)
        world = World(store)
        world.go(REFERENCE + 1)
        with store.read() as connection:
            fitted = detectors_of(connection, "m")[0].fitted
        made.append(fitted)
        store.close()
    assert isinstance(made[0].detector(720.0, HOUR), Detector)
    assert (made[0].calibration.innovation == made[1].calibration.innovation).all()
    assert made[0].certificate == made[1].certificate
