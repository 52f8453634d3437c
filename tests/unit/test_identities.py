"""Whether what was read is of the log that was claimed: what is asked, when, and what follows from it."""

import pytest

from trimtab.identities import AGAIN_S, WAIT_SHARE, Identities
from trimtab.source import Partition, SourceAwayError
from trimtab.testing.log import MemoryLog, MemorySource

A0, A1, B0 = Partition("a", 0), Partition("a", 1), Partition("b", 0)


class Clock:
    """Time that only tests move; a question takes `asking_s`."""

    def __init__(self):
        self.s = self.asking_s = 0.0


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def source(clock, monkeypatch):
    source = MemorySource(MemoryLog())
    real = source.identities

    def slow(partitions):
        clock.s += clock.asking_s
        return real(partitions)

    monkeypatch.setattr(source, "identities", slow)
    return source


@pytest.fixture
def identities(source, clock):
    identities = Identities(source, lambda: clock.s)
    for partition in (A0, A1, B0):
        identities.claim(partition)
    return identities


def test_one_question_for_all_tells_what_stayed_and_what_was_made_again(source, identities):
    confirmed = identities.confirm([A0, A1, B0])
    assert (confirmed.same, confirmed.other) == ({A0, A1, B0}, frozenset())
    source.log.make_again("a")
    confirmed = identities.confirm([A0, A1, B0])
    assert (confirmed.same, confirmed.other) == ({B0}, {A0, A1})
    assert len(source.asked) == 2
    identities.claim(A0)
    assert identities.confirm([A0]).same == {A0}
    assert identities.confirm([A1]).other == {A1}


def test_what_is_known_of_one_partition_holds_for_all_of_its_topic(source, identities):
    """Else those that bring nothing stand at old positions until they are asked for, too."""
    source.log.make_again("a")
    confirmed = identities.confirm([A1, B0])
    assert (confirmed.same, confirmed.other) == ({B0}, {A0, A1})
    assert source.asked == [[A1, B0]]


def test_an_answer_is_never_used_twice(source, identities):
    """What comes after a question is not covered by its answer."""
    for number in range(1, 4):
        identities.confirm([A0])
        assert len(source.asked) == number


def test_who_does_not_answer_is_neither_and_holds_up_nobody(source, identities, clock):
    source.silent.add("a")
    confirmed = identities.confirm([A0, A1, B0])
    assert (confirmed.same, confirmed.other) == ({B0}, frozenset())
    identities.confirm([A0, B0])
    assert source.asked[-1] == [B0], "not asked again at once"
    assert identities.confirm([A0]).same == frozenset()
    assert len(source.asked) == 2, "nothing to ask"
    clock.s += AGAIN_S
    source.silent.clear()
    assert identities.confirm([A0, A1]).same == {A0, A1}


def test_a_broker_that_hangs_takes_a_bounded_share_of_the_time(source, identities, clock):
    source.silent.add("a")
    clock.asking_s, steps = 1.0, 0
    while clock.s < 1_000:
        before = clock.s
        identities.confirm([A0])
        steps += 1
        if clock.s == before:
            clock.s += 0.1  # the loop goes on
    assert len(source.asked) * clock.asking_s <= 1_000 / (1 + WAIT_SHARE) + 1
    assert steps > 5 * len(source.asked)


def test_a_claim_asked_in_vain_is_no_claim(source, identities):
    source.silent.add("b")
    with pytest.raises(SourceAwayError):
        identities.claim(B0)


def test_a_dropped_claim_is_asked_for_at_once_when_claimed_again(source, identities):
    source.silent.add("a")
    identities.confirm([A0])
    source.silent.clear()
    identities.drop(A0)
    identities.claim(A0)
    assert identities.confirm([A0]).same == {A0}
