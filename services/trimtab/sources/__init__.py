"""The clients behind the `Source` seam, and the choice between them (`kafka.client`)."""

from trimtab.settings import KafkaSettings
from trimtab.source import Source, SourceError


def open_source(kafka: KafkaSettings, group: str, poll_records: int) -> Source:
    """Connect to Kafka with the client that the settings name. Raises SourceError.

    confluent-kafka looks for the broker when the source starts.
    """
    if kafka.client == "confluent-kafka":
        from trimtab.sources.confluent import ConfluentSource

        return ConfluentSource(kafka.consumer_options(), group, poll_records, kafka.identity)

    from kafka.errors import KafkaError

    from trimtab.sources.kafka_python import KafkaPythonSource

    try:
        return KafkaPythonSource(kafka.consumer_options(), group, poll_records, kafka.identity)
    except (KafkaError, ValueError, AssertionError) as error:
        raise SourceError(
            f"No Kafka broker answers at {kafka.bootstrap} ({error!r}). Check kafka.bootstrap "
            "(`trimtab config show`) and that the broker runs."
        ) from error
