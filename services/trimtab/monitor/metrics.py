"""The monitor's own Prometheus figures, served where `monitor.metrics_port` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

if TYPE_CHECKING:
    from trimtab.monitor.partition import Flush
    from trimtab.source import Partition


class Metrics:
    """Counters and gauges of one monitor process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        place = ["topic", "partition"]
        self._messages = Counter(
            "trimtab_messages", "Messages stored.", place, registry=self.registry
        )
        self._units = Counter(
            "trimtab_rows",
            "Rows, labels and resources by what became of them.",
            ["unit", "class", "reason"],
            registry=self.registry,
        )
        self._lost = Counter(
            "trimtab_lost", "Offsets the log dropped unread.", place, registry=self.registry
        )
        self._lag = Gauge(
            "trimtab_lag", "Messages known to exist and not stored.", place, registry=self.registry
        )
        self._restarts = Counter(
            "trimtab_worker_restarts",
            "Restarts of a background worker after an error.",
            ["worker"],
            registry=self.registry,
        )

    def flushed(self, partition: Partition, flush: Flush) -> None:
        """Count what a flush stored."""
        self._messages.labels(partition.topic, str(partition.partition)).inc(flush.messages)
        for key, count in flush.classes.items():
            if count > 0:
                self._units.labels(key.unit, key.cls, key.reason).inc(count)

    def lost(self, partition: Partition, offsets: int) -> None:
        """Count lost offsets."""
        self._lost.labels(partition.topic, str(partition.partition)).inc(offsets)

    def lag(self, partition: Partition, messages: int | None) -> None:
        """Show how far behind the log's end a partition is."""
        if messages is not None:
            self._lag.labels(partition.topic, str(partition.partition)).set(messages)

    def restarted(self, worker: str) -> None:
        """Count a background worker's restart."""
        self._restarts.labels(worker).inc()

    def serve(self, port: int) -> None:
        """Serve the figures on 127.0.0.1."""
        start_http_server(port, addr="127.0.0.1", registry=self.registry)


METRICS = Metrics()
"""One per process."""
