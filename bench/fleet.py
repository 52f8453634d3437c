"""What a fleet of mostly idle models costs one monitor.

    python bench/fleet.py [--quick] [--json]

2,000 contracts of 5 numeric features in one SQLite store and one topic, read from memory. Every model has sent
rows an hour ago and has been judged; 20 go on sending, at 50 rows/s each, in windows of 2 s (all others: 1 h).
CPU time of this process, in milliseconds, medians over ticks: `tick_idle_ms` is the evaluator's when nothing
moves, `tick_idle_all_ms` the same when it looks at every model; `tick_active_ms` with the active ones sending,
`step_active_ms` the ingest's beside it. `delay_*_s` is wall-clock time from a window's end, out of order
included, to its stored verdict, with ingest and evaluator in turn in one thread, a quarter of a second apart.
`refresh_ms` is a look whether any contract has changed, `refresh_changed_ms` the same when one has. Requests
are answered in this process: medians of wall-clock milliseconds.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import rig
from litestar.testing import TestClient
from sqlalchemy import func, select

from trimtab.alerts.delivery import Relay
from trimtab.api.app import create_app
from trimtab.clock import now_ms
from trimtab.contracts.model import Contract, Reference, Windows
from trimtab.events.types import Inference
from trimtab.monitor.evaluator import Evaluator
from trimtab.monitor.housekeeping import RETENTION_EVERY_MS, Housekeeping
from trimtab.monitor.ingest import Ingest
from trimtab.monitor.joiner import Joiner
from trimtab.records import Role
from trimtab.settings import load
from trimtab.source import Partition
from trimtab.store import overview
from trimtab.store.engine import Store
from trimtab.store.keys import create_key
from trimtab.store.models import apply_contract
from trimtab.store.tables import verdicts
from trimtab.testing.log import MemoryLog, MemorySource

MODELS, QUICK_MODELS, ACTIVE = 2_000, 200, 20
FEATURES, FIRST_ROWS, ROWS_PER_S = 5, 20, 50
OUT_OF_ORDER_MS, HOUR_MS = 200, 3_600_000
TICKS, EVERY_S = 20, 0.25
IN = Partition("in", 0)


def contract(number: int) -> Contract:
    """Return the contract of one model; the first ACTIVE have short windows."""
    windows = Windows(
        length="2s" if number < ACTIVE else "1h",
        out_of_order="200 ms",
        lateness="10s",
        min_rows=10,
    )
    reference = Reference(rows=FIRST_ROWS, windows=2)
    return rig.two_classes(f"model-{number:04d}", FEATURES, windows, reference)


class Fleet:
    """The models, their log and one monitor's parts."""

    def __init__(self, store: Store, models: int) -> None:
        self.store, self.models = store, models
        self.log, self.rng, self.sent = MemoryLog(), np.random.default_rng(1), 0
        for number in range(models):
            apply_contract(store, contract(number), "", "bench", now_ms())
        self.source = MemorySource(self.log, 50_000)
        self.source.assign(IN)
        self.ingest = Ingest(store, self.source, {"in": "inference"}, "bench", flush_s=0.25)
        self.ingest.start()
        self.joiner = Joiner(store, "bench")
        self.evaluator = Evaluator(store, "bench")

    def send(self, number: int, rows: int, time_ms: int) -> None:
        """Send rows of one model."""
        for values in self.rng.normal(size=(rows, FEATURES)).tolist():
            self.sent += 1
            row = Inference(
                id=f"r{self.sent}",
                model=f"model-{number:04d}",
                version="1",
                time=time_ms,
                features={f"f{k}": value for k, value in enumerate(values)},
                prediction="ab"[self.sent % 2],
            )
            self.log.send(IN, row, time_ms)

    def settle(self) -> None:
        """Read and judge until nothing is left to do."""
        until = time.monotonic() + 600
        while time.monotonic() < until:
            stored = self.ingest.owned.get(IN)
            end = self.log.ends.get(IN, 0)
            self.ingest.step(0)
            behind = stored is None or stored.next_offset < end
            joined = self.joiner.tick(now_ms())
            judged = self.evaluator.tick(now_ms())
            judged = judged or self.evaluator.behind
            if not (behind or joined or judged or stored is None or stored.held):
                return
        raise SystemExit("The fleet did not come to rest.")


def housekeeping_ms(store: Store) -> dict[str, float]:
    """CPU of retention: the first round, which looks at every model, and one in which nothing has moved."""
    house = Housekeeping(store, "bench", Relay(store, rig.Nowhere(), "trimtab", {}))

    def round_from(at_ms: int) -> None:
        while house.tick(at_ms) or house.behind:
            pass

    at_ms = now_ms()
    first = rig.cpu_ms(lambda: round_from(at_ms))
    again = rig.cpu_ms(lambda: round_from(at_ms + RETENTION_EVERY_MS + 1_000))
    house.close()
    return {"housekeeping_first_ms": round(first, 1), "housekeeping_round_ms": round(again, 1)}


def delays(fleet: Fleet, seconds: float) -> dict[str, Any]:
    """Let the active models send for a while; return delays and the costs of ticks and steps."""
    began_ms, until = now_ms(), time.monotonic() + seconds
    ticks, steps, seen, late_s = list[float](), list[float](), 0, list[float]()
    with fleet.store.read() as connection:
        seen = connection.scalar(select(func.max(verdicts.c.id))) or 0
    sent_ms = began_ms
    while time.monotonic() < until:
        at_ms = now_ms()
        rows = (at_ms - sent_ms) * ROWS_PER_S // 1_000
        for number in range(min(ACTIVE, fleet.models)):
            fleet.send(number, rows, at_ms)
        sent_ms = at_ms
        steps.append(rig.cpu_ms(lambda: fleet.ingest.step(0)))
        fleet.joiner.tick(now_ms())
        ticks.append(rig.cpu_ms(lambda: fleet.evaluator.tick(now_ms())))
        stored_ms = now_ms()
        with fleet.store.read() as connection:
            new = connection.execute(
                select(verdicts.c.id, verdicts.c.window_end_ms, verdicts.c.window_start_ms)
                .where(verdicts.c.id > seen, verdicts.c.revision == 1)
                .order_by(verdicts.c.id)
            ).all()
        seen = max([seen, *(row.id for row in new)])
        late_s += [
            (stored_ms - row.window_end_ms - OUT_OF_ORDER_MS) / 1_000
            for row in new
            if row.window_start_ms >= began_ms
        ]
        time.sleep(max(0.0, EVERY_S - (now_ms() - at_ms) / 1_000))
    if not late_s:
        raise SystemExit("No window was judged: the machine is too busy to say anything.")
    return {
        "tick_active_ms": rig.middle(ticks),
        "step_active_ms": rig.middle(steps),
        "verdicts_active": len(late_s),
        "delay_p50_s": round(float(np.quantile(late_s, 0.5)), 3),
        "delay_p99_s": round(float(np.quantile(late_s, 0.99)), 3),
    }


def refreshes(fleet: Fleet) -> dict[str, Any]:
    """CPU of looking for changed contracts, by the ingest."""
    knowledge = fleet.ingest.knowledge
    same = [rig.cpu_ms(knowledge.refresh) for _ in range(5)]
    changed = []
    for number in range(5):
        one = msgspec.structs.replace(contract(number + ACTIVE), team=f"team-{number}")
        apply_contract(fleet.store, one, "", "bench", now_ms())
        changed.append(rig.cpu_ms(knowledge.refresh))
    return {"refresh_ms": rig.middle(same), "refresh_changed_ms": rig.middle(changed)}


def answers(store: Store, folder: Path) -> dict[str, Any]:
    """Wall-clock milliseconds of what people ask."""
    _, secret = create_key(store, "bench", Role.VIEWER, "*", now_ms())
    settings = load({"data_dir": str(folder)}, environ={}).settings
    headers = {"Authorization": f"Bearer {secret}"}

    result = {}
    with TestClient(create_app(store, settings)) as client:
        for name, path in (
            ("models_list_ms", "/v1/models?limit=100"),
            ("model_status_ms", "/v1/models/model-0000/status"),
            ("fleet_page_ms", "/"),
            ("metrics_ms", "/metrics"),
        ):

            def ask(path: str = path) -> None:
                answer = client.get(path, headers=headers)
                if answer.status_code != 200:
                    raise SystemExit(f"{path} answered {answer.status_code}.")

            ask()
            result[name] = rig.middle([rig.wall_ms(ask) for _ in range(5)])
    result["status_command_ms"] = rig.middle(
        [rig.wall_ms(lambda: overview.fleet(store, limit=overview.PAGE_MAX)) for _ in range(5)]
    )
    result["fleet_counts_ms"] = rig.middle(
        [rig.wall_ms(lambda: overview.fleet_counts(store)) for _ in range(5)]
    )
    return result


def measure(folder: Path, models: int, seconds: float) -> dict[str, Any]:
    """Set the fleet up and measure it."""
    store = rig.made_store(folder)
    before_mib = rig.rss_mib()
    fleet = Fleet(store, models)
    an_hour_ago_ms = now_ms() - HOUR_MS
    for number in range(models):
        fleet.send(number, FIRST_ROWS, an_hour_ago_ms + number)
        fleet.send(number, FIRST_ROWS, an_hour_ago_ms + 60_000 + number)
    fleet.settle()
    fleet.log.drop_before(IN, fleet.log.ends[IN])
    time.sleep(0.5)  # a moment for the clock: the next ticks are idle ones
    fleet.settle()
    idle = [rig.cpu_ms(lambda: fleet.evaluator.tick(now_ms())) for _ in range(TICKS)]
    joins = [rig.cpu_ms(lambda: fleet.joiner.tick(now_ms())) for _ in range(TICKS)]
    reads = [rig.cpu_ms(lambda: fleet.ingest.step(0)) for _ in range(TICKS)]
    fleet.evaluator.close()
    looks = Evaluator(store, "bench", skip_quiet=False)
    looks.tick(now_ms())
    every = [rig.cpu_ms(lambda: looks.tick(now_ms())) for _ in range(2)]
    looks.close()
    result: dict[str, Any] = {
        "models": models,
        "active": min(ACTIVE, models),
        "rss_before_mib": round(before_mib, 1),
        "rss_mib": round(rig.rss_mib(), 1),
        "tick_idle_ms": rig.middle(idle),
        "tick_idle_all_ms": rig.middle(every),
        "joiner_idle_ms": rig.middle(joins),
        "step_idle_ms": rig.middle(reads),
    }
    fleet.settle()
    result |= delays(fleet, seconds)
    result |= refreshes(fleet)
    result |= housekeeping_ms(store)
    result |= answers(store, folder)
    fleet.ingest.stop()
    store.close()
    return result


def main() -> None:
    """Measure and print."""
    asked = rig.options(__doc__, f"{QUICK_MODELS} models").parse_args()
    models, seconds = (QUICK_MODELS, 8.0) if asked.quick else (MODELS, 60.0)
    with tempfile.TemporaryDirectory() as folder:
        rig.show(measure(Path(folder), models, seconds), as_json=asked.json)


if __name__ == "__main__":
    main()
