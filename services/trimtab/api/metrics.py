"""`/metrics`: the fleet as Prometheus sees it, read from the store at each scrape."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from trimtab.records import Outcome
from trimtab.store import overview
from trimtab.store.engine import Store


class FleetCollector(Collector):
    """One scrape's figures, inside a key's scope; the ledger only for a key of every model."""

    def __init__(self, store: Store, scope: str) -> None:
        self._store = store
        self._scope = scope

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family."""
        yield from self._models()
        if self._scope == "*":
            yield from self._ledger()

    def _models(self) -> Iterator[Metric]:
        outcome = GaugeMetricFamily(
            "trimtab_model_outcome",
            "1 for the outcome of the latest verdict.",
            labels=["model", "outcome"],
        )
        alerts = GaugeMetricFamily("trimtab_open_alerts", "Alerts not resolved.", labels=["model"])
        window = GaugeMetricFamily(
            "trimtab_window_end_seconds", "End of the latest closed window.", labels=["model"]
        )
        rows = GaugeMetricFamily(
            "trimtab_window_rows", "Rows of the latest closed window.", labels=["model"]
        )
        share = GaugeMetricFamily(
            "trimtab_challenger_share", "Share of traffic given to a challenger.", labels=["model"]
        )
        after = ""
        while page := overview.fleet(
            self._store, after=after, limit=overview.PAGE_MAX, scope=self._scope
        ):
            for status in page:
                name = [status.model]
                for known in Outcome:
                    outcome.add_metric([*name, known.value], float(status.outcome == known))
                alerts.add_metric(name, status.open_alerts)
                share.add_metric(name, status.challenger_share or 0.0)
                if status.window_end_ms is not None:
                    window.add_metric(name, status.window_end_ms / 1000)
                    rows.add_metric(name, status.rows or 0)
            after = page[-1].model
        yield from (outcome, alerts, window, rows, share)

    def _ledger(self) -> Iterator[Metric]:
        where = ["consumer", "topic", "partition"]
        messages = CounterMetricFamily("trimtab_messages", "Messages read.", labels=where)
        lost = CounterMetricFamily("trimtab_lost_messages", "Offsets lost.", labels=where)
        lag = GaugeMetricFamily("trimtab_lag_messages", "Messages not yet flushed.", labels=where)
        rows = CounterMetricFamily(
            "trimtab_rows", "Rows by what became of them.", labels=[*where, "class"]
        )
        balance = GaugeMetricFamily("trimtab_ledger_balances", "1 when both ledgers balance.")
        problems = GaugeMetricFamily(
            "trimtab_ledger_problems", "Ledger equations that do not hold; 0 is right."
        )
        lines = overview.ledger_lines(self._store)
        for line in lines:
            labels = [line.consumer, line.topic, str(line.partition)]
            messages.add_metric(labels, line.messages)
            lost.add_metric(labels, line.lost)
            if line.end_offset is not None:
                lag.add_metric(labels, max(0, line.end_offset - line.next_offset))
            for name, count in line.row_classes.items():
                rows.add_metric([*labels, name], count)
        balance.add_metric([], float(not any(line.problems for line in lines)))
        problems.add_metric([], float(sum(len(line.problems) for line in lines)))
        yield from (messages, lost, lag, rows, balance, problems)


def scrape(store: Store, scope: str) -> bytes:
    """Return the metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(FleetCollector(store, scope))
    return generate_latest(registry)
