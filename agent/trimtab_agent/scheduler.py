"""The clock of the agent: one APScheduler job, `tick`, under a SQL lease.

The job store is in memory (APScheduler's guide forbids sharing a SQL one); what must outlive the
process lies in our rows. Ticks never overlap: missed ones are made up for by one. Only the holder of
the lease reconciles; the others stand by and take over when it expires.
"""

import threading
from collections.abc import Callable

from trimtab import logs
from trimtab.clock import now_ms
from trimtab.errors import ConflictError
from trimtab.store.engine import Store
from trimtab.store.leases import Lease, acquire, release
from trimtab_agent.context import Deps
from trimtab_agent.reconcile import Tick, reconcile

LEASE = "agent"

log = logs.get("agent")


class Agent:
    """The leased tick. `clock` gives the wall time in milliseconds."""

    def __init__(
        self,
        store: Store,
        deps: Deps,
        owner: str,
        lease_ms: int,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._store = store
        self._deps = deps
        self._owner = owner
        self._lease_ms = lease_ms
        self._clock = clock
        self._lease: Lease | None = None
        self.last: Tick | None = None
        """What the last tick did; None while standing by."""

    @property
    def active(self) -> bool:
        """Whether this process held the lease at its last tick."""
        return self._lease is not None

    def tick(self) -> None:
        """Take or renew the lease and reconcile; stand by while another process holds it."""
        now_ms = self._clock()
        lease = acquire(self._store, LEASE, self._owner, now_ms, self._lease_ms)
        if (lease is None) != (self._lease is None):
            log.info("the lease changed", action="agent_lease", active=lease is not None)
        self._lease = lease
        self.last = None
        if lease is None:
            return
        try:
            self.last = reconcile(self._store, lease, self._deps, now_ms)
        except ConflictError as error:
            log.warning(str(error), action="agent_conflict")
            self._lease = None

    def release(self) -> None:
        """Give the lease back, so that a standby need not wait for it to expire."""
        if self._lease is not None:
            release(self._store, self._lease)
            self._lease = None


def run_ticks(agent: Agent, tick_s: float, stop: threading.Event) -> None:
    """Tick every `tick_s` seconds until `stop`; the tick under way is finished first.

    A tick that raises (the store is away) is logged and tried again at the next.
    """
    from apscheduler.executors.pool import ThreadPoolExecutor
    from apscheduler.schedulers.background import BackgroundScheduler

    def tick() -> None:
        try:
            agent.tick()
        except Exception:
            log.exception("a tick failed; the next one tries again", action="tick_failed")

    scheduler = BackgroundScheduler(
        executors={"default": ThreadPoolExecutor(1)},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        timezone="UTC",
    )
    scheduler.add_job(tick, "interval", seconds=tick_s, id="tick")
    tick()
    scheduler.start()
    try:
        stop.wait()
    finally:
        scheduler.shutdown(wait=True)
        agent.release()
