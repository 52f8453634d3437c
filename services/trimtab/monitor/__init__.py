"""The monitor: from Kafka to panes, SQL rows and verdicts."""
