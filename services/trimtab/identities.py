"""Whether what was read is of the log that was claimed, for whoever keeps a ledger of a source.

Clients read by a topic's name. When it is deleted and made again they go on at the old position in the
new log, without a word. But a topic's id never comes back: if a broker that is asked after a record came
still has the claimed id, the record is of the claimed log, and so is every one before it. So what moves a
ledger is confirmed first, by one question for all that is due.
"""

from collections.abc import Callable, Collection

from msgspec import Struct

from trimtab.source import Identity, Partition, Source

AGAIN_S = 0.5
"""After a question without an answer, ask no sooner than this, …"""
WAIT_SHARE = 4
"""… and wait for so many times as long as the question took: at most a fifth of the time is spent on asking."""


class Confirmed(Struct, frozen=True):
    """What asking has shown; of partitions in neither set nobody knows yet."""

    same: frozenset[Partition] = frozenset()
    """Still the claimed log: all that was read from it may be committed."""
    other: frozenset[Partition] = frozenset()
    """Made again, with all claimed partitions of the topic, asked for or not: what was read since the last
    commit may be of either log."""


class Identities:
    """The claimed identity of each partition of one source, and whether it still holds."""

    def __init__(self, source: Source, monotonic: Callable[[], float]) -> None:
        self._source, self._monotonic = source, monotonic
        self._claimed: dict[Partition, Identity] = {}
        self._again_s: dict[Partition, float] = {}

    def claim(self, partition: Partition) -> Identity:
        """Ask for the identity to claim, and remember it. Raises SourceAwayError."""
        identity = self._source.identity(partition.topic)
        self._claimed[partition] = identity
        return identity

    def drop(self, partition: Partition) -> None:
        """Forget a claim."""
        self._claimed.pop(partition, None)
        self._again_s.pop(partition, None)

    def confirm(self, partitions: Collection[Partition]) -> Confirmed:
        """Ask whether these claimed partitions are what they were, those apart that did not answer just now."""
        began_s = self._monotonic()
        due = [p for p in partitions if self._again_s.get(p, began_s) <= began_s]
        if not due:
            return Confirmed()
        answers = self._source.identities(due)
        ended_s = self._monotonic()
        again_s = ended_s + max(AGAIN_S, WAIT_SHARE * (ended_s - began_s))
        for partition in due:
            if partition in answers:
                self._again_s.pop(partition, None)
            else:
                self._again_s[partition] = again_s
        again = {p.topic: said for p, said in answers.items() if said != self._claimed[p]}
        other = frozenset(
            p for p, claimed in self._claimed.items() if again.get(p.topic, claimed) != claimed
        )
        return Confirmed(frozenset(answers) - other, other)
