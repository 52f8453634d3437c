"""`trimtab monitor --workers N`: N monitors on one machine, members of one consumer group.

Each is a process of its own, so that decoding uses all cores; the parent only starts again what
dies. Joiner, evaluator and housekeeping run in every one, and leases let one of them work.
"""

import threading
from collections.abc import Callable

from trimtab import logs
from trimtab.errors import TrimtabError
from trimtab.processes import Supervisor, trimtab_command
from trimtab.settings import Settings, as_environment

log = logs.get("monitor")

_CHECK_S = 0.5


def run_replicas(
    settings: Settings, stop: threading.Event, ready: Callable[[], object] | None = None
) -> None:
    """Keep `monitor.workers` monitors running until `stop` is set; their logs are in data_dir/logs.

    Raises:
        TrimtabError: the broker is the embedded one, which takes one member per group; or a monitor
            keeps dying right after its start.

    """
    if settings.kafka.identity is not None:
        raise TrimtabError(
            "The embedded broker takes one monitor only (one member per group). Set "
            "monitor.workers to 1, or point kafka.bootstrap at Apache Kafka."
        )
    environment = as_environment(settings) | {"TRIMTAB_MONITOR__WORKERS": "1"}
    with Supervisor(settings.data_dir / "logs") as supervisor:
        for number in range(1, settings.monitor.workers + 1):
            supervisor.start(f"monitor-{number}", trimtab_command("monitor"), environment)
        if ready:
            ready()
        while not stop.wait(_CHECK_S):
            for restart in supervisor.check():
                log.warning(
                    "a monitor died and was started again",
                    action="replica_restarted",
                    replica=restart.name,
                    exit_code=restart.exit_code,
                )
