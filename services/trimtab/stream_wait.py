"""What `trimtab stream` does besides sending: pace the embedded broker, and wait for the monitor."""

import time
from collections.abc import Callable

from trimtab.errors import TrimtabError
from trimtab.settings import KafkaSettings
from trimtab.store.engine import Store
from trimtab.store.ledger import ledger

AHEAD_EVENTS = 4_000
"""Events sent but not read on the embedded broker; it drops a partition's oldest past 5 MB."""
_POLL_S = 0.25
_STILL_S = 60.0

Ends = dict[tuple[str, int], int]


def end_offsets(kafka: KafkaSettings) -> Ends:
    """Return where the inference and label topics that `stream` writes to end now, by partition.

    Raises TrimtabError when the broker does not answer.
    """
    from kafka import KafkaConsumer, TopicPartition
    from kafka.errors import KafkaError

    try:
        consumer = KafkaConsumer(**kafka.client_options())
        try:
            places = [
                TopicPartition(topic, partition)
                for topic in (kafka.topic("inference"), kafka.topic("labels"))
                for partition in sorted(consumer.partitions_for_topic(topic) or ())
            ]
            ends = consumer.end_offsets(places)
        finally:
            consumer.close()
    except KafkaError as error:
        raise TrimtabError(
            f"Kafka at {kafka.bootstrap} does not say where the topics end ({error}). "
            "Check kafka.bootstrap."
        ) from error
    return {(place.topic, place.partition): int(end) for place, end in ends.items()}


class Pacer:
    """Keeps a stream at most `ahead` events before the slower of monitor and archive.

    The archive counts once it has read from these topics. Called with the events sent so far.
    """

    def __init__(self, store: Store, ends: Ends, ahead: int = AHEAD_EVENTS) -> None:
        self._store, self._topics, self._ahead = store, {topic for topic, _ in ends}, ahead
        self._before = sum(ends.values())

    def __call__(self, sent: int) -> None:
        """Wait until few enough events are unread. Raises TrimtabError when nobody reads."""
        wanted = self._before + sent - self._ahead
        if wanted <= 0:
            return
        read, since_s = self._read(), time.monotonic()
        while read < wanted:
            time.sleep(_POLL_S / 5)
            now_read = self._read()
            if now_read > read:
                read, since_s = now_read, time.monotonic()
            if time.monotonic() - since_s > _STILL_S:
                raise TrimtabError(
                    f"Nobody has read from the embedded broker for {_STILL_S:.0f} s, and it would "
                    "drop what is not read. Start `trimtab monitor` on the same store."
                )

    def _read(self) -> int:
        stands: dict[str, dict[tuple[str, int], int]] = {"monitor": {}}
        for entry in ledger(self._store, None):  # of a partition the newest entry comes last
            if entry.topic in self._topics:
                place = (entry.topic, entry.partition)
                stands.setdefault(entry.consumer, {})[place] = entry.next_offset
        return min(sum(offsets.values()) for offsets in stands.values())


def wait_until_judged(
    store: Store,
    model: str,
    ends: Ends,
    limit_s: float,
    tell: Callable[[str], None],
    now_ms: Callable[[], int],
) -> None:
    """Wait until the monitor has read up to `ends`, joined and judged; `tell` hears what is left.

    Raises TrimtabError when that takes longer than `limit_s`.
    """
    deadline_s = time.monotonic() + limit_s
    from trimtab.store.settled import under_way  # SciPy, which `--help` need not wait for

    while left := under_way(store, model, ends, now_ms()):
        if time.monotonic() > deadline_s:
            raise TrimtabError(
                f"Everything is sent, but after {limit_s:.0f} s the monitor is not done: "
                f"{'; '.join(left)}. A late row's window is judged again at most once in its length "
                "(60 s at most): wait longer with --wait-limit. Else, is `trimtab monitor` running "
                "on this store and broker?"
            )
        tell(left[0])
        time.sleep(_POLL_S)
