"""The monitor process: the ingest loop in the main thread, joiner, evaluator and housekeeping beside it.

Each worker holds its own lease or fence, so any number of replicas run the same code. A worker that
fails is logged, counted and started again with a growing pause; none ever ends in silence.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from contextlib import closing

from trimtab import logs, structs
from trimtab.alerts.delivery import KafkaPublisher, Relay, WebhookTarget
from trimtab.clock import now_ms
from trimtab.events.cloudevents import Role
from trimtab.monitor.evaluator import Evaluator
from trimtab.monitor.housekeeping import Housekeeping, Retention
from trimtab.monitor.ingest import Ingest
from trimtab.monitor.joiner import Joiner
from trimtab.monitor.metrics import METRICS
from trimtab.settings import Settings
from trimtab.sources import open_source
from trimtab.store.engine import Store, open_store
from trimtab.store.fixed import fix_shards
from trimtab.store.leases import owner_name
from trimtab.windows.rollup import DAY_MS, HOUR_MS

log = logs.get("monitor")

BUSY_PAUSE_S = 0.05
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 1.0
FIRST_RESTART_S, LONGEST_RESTART_S = 0.5, 30.0
STOP_LIMIT_S = 20.0


class Worker(threading.Thread):
    """Calls a `tick` again and again until `stop`: soon while it finds work, up to 1 s apart when not."""

    def __init__(
        self,
        name: str,
        make: Callable[[], tuple[Callable[[int], int], Callable[[], None]]],
        stop: threading.Event,
        now_ms: Callable[[], int] = now_ms,
    ) -> None:
        """`make` returns (tick, close); it is called again after every failure."""
        super().__init__(name=f"trimtab-{name}", daemon=True)
        self._worker, self._make, self._stop_asked, self._now_ms = name, make, stop, now_ms
        self.failures = 0

    def run(self) -> None:
        """Work until asked to stop."""
        restart_s = FIRST_RESTART_S
        while not self._stop_asked.is_set():
            began = time.monotonic()
            try:
                self._work()
            except Exception as error:
                self.failures += 1
                METRICS.restarted(self._worker)
                if time.monotonic() - began > LONGEST_RESTART_S:
                    restart_s = FIRST_RESTART_S
                log.exception(
                    "a worker failed and starts again",
                    action="worker_failed",
                    again_s=restart_s,
                    worker=self._worker,
                    error=str(error),
                )
                self._stop_asked.wait(restart_s)
                restart_s = min(2 * restart_s, LONGEST_RESTART_S)

    def _work(self) -> None:
        tick, close = self._make()
        try:
            pause_s = FIRST_PAUSE_S
            while not self._stop_asked.is_set():
                worked = tick(self._now_ms())
                pause_s = BUSY_PAUSE_S if worked else min(LONGEST_PAUSE_S, 2 * pause_s)
                self._stop_asked.wait(max(pause_s, FIRST_PAUSE_S))
        finally:
            close()


def roles_of(settings: Settings) -> dict[str, Role]:
    """Return the topics to read, with what each carries.

    A topic that a contract binds beyond these belongs into `kafka.inference_topics`, too.
    """
    kafka = settings.kafka
    roles: dict[str, Role] = dict.fromkeys(kafka.inference_topics, "inference")
    roles |= dict.fromkeys(kafka.label_topics, "labels")
    roles |= dict.fromkeys(kafka.resource_topics, "resources")
    return roles


def workers_of(settings: Settings, store: Store, owner: str, stop: threading.Event) -> list[Worker]:
    """Return the background workers, not yet started."""
    lease_s = settings.monitor.lease_s

    def joiner() -> tuple[Callable[[int], int], Callable[[], None]]:
        made = Joiner(store, owner)
        return made.tick, made.stop

    def evaluator() -> tuple[Callable[[int], int], Callable[[], None]]:
        made = Evaluator(store, owner, lease_s=lease_s, fleet=settings.alarms.false_alarms)
        return lambda now_ms: made.tick(now_ms) or made.behind, made.close

    def housekeeping() -> tuple[Callable[[int], int], Callable[[], None]]:
        made = Housekeeping(
            store,
            owner,
            relay_of(settings, store),
            retention_of(settings),
            lease_s=lease_s,
            operator_webhooks=[name for name, hook in settings.webhooks.items() if hook.operator],
        )
        return lambda now_ms: made.tick(now_ms) or made.behind, made.close

    return [
        Worker("joiner", joiner, stop),
        Worker("evaluator", evaluator, stop),
        Worker("housekeeping", housekeeping, stop),
    ]


def relay_of(settings: Settings, store: Store) -> Relay:
    """Return the outbox relay with the configured receivers."""
    kafka = settings.kafka
    webhooks = {
        name: WebhookTarget(hook.url, hook.secret.get_secret_value() if hook.secret else None)
        for name, hook in settings.webhooks.items()
    }
    publisher = KafkaPublisher(kafka.bootstrap, kafka.version, kafka.options)
    return Relay(store, publisher, kafka.prefix, webhooks)


def retention_of(settings: Settings) -> Retention:
    """Return the configured retention."""
    keep = settings.retention
    return Retention(
        panes_ms=keep.panes_hours * HOUR_MS,
        hours_ms=keep.hours_days * DAY_MS,
        days_ms=keep.days_years * 365 * DAY_MS,
        labels_ms=keep.labels_days * DAY_MS,
        samples_ms=keep.samples_days * DAY_MS,
        rejected_ms=keep.rejected_days * DAY_MS,
        outbox_ms=keep.outbox_days * DAY_MS,
    )


def run_monitor(settings: Settings, stop: threading.Event, ready: Callable[[], object]) -> None:
    """Run a monitor until `stop` is set; `ready` is called once it reads. Flushes before it returns.

    Raises SourceError for what no retry mends, such as a missing codec, and ConflictError when
    `monitor.shards` is not the number that the stored labels were sharded by.
    """
    structs.prepare()
    store = open_store(settings.store.url)
    with closing(store):
        fix_shards(store, settings.monitor.shards, now_ms())
        owner = owner_name()
        ingest = Ingest(
            store,
            open_source(settings.kafka, settings.kafka.group, settings.monitor.poll_records),
            roles_of(settings),
            owner,
            flush_rows=settings.monitor.flush_rows,
            flush_s=settings.monitor.flush_s,
            shards=settings.monitor.shards,
        )
        if settings.monitor.metrics_port:
            METRICS.serve(settings.monitor.metrics_port)
        collect_rarely()
        ingest.start()
        workers_stop = threading.Event()
        workers = workers_of(settings, store, owner, workers_stop)
        for worker in workers:
            worker.start()
        try:
            _read(ingest, stop, ready)
        finally:
            ingest.stop()
            workers_stop.set()
            for worker in workers:
                worker.join(STOP_LIMIT_S)


def collect_rarely() -> None:
    """Let Python's collector look for cycles after 50,000 new objects, not 700, and never at what is loaded.

    A message makes a few objects that hold others and are gone a moment later: looking at each of them costs
    as much as decoding (docs/performance.md). What really is cyclic here is little.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


def _read(ingest: Ingest, stop: threading.Event, ready: Callable[[], object]) -> None:
    told = False
    while not stop.is_set():
        ingest.step()
        if not told and ingest.owned:
            told = True
            log.info(
                "reading",
                action="monitor_reading",
                partitions=[f"{p.topic}[{p.partition}]" for p in sorted(ingest.owned)],
            )
            ready()
