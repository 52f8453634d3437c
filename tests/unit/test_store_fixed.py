"""Settings that stored data depends on."""

import pytest

from trimtab.errors import ConflictError
from trimtab.store.engine import open_store
from trimtab.store.fixed import MONITOR_SEEN_MS, fix_shards
from trimtab.store.joiners import claim_joiner
from trimtab.store.ledger import claim
from trimtab.store.tables import metadata

NOW = 1_000_000


@pytest.fixture
def store(store_url):
    opened = open_store(store_url)
    metadata.create_all(opened.engine)
    yield opened
    opened.close()


def test_another_number_of_shards_is_refused_once_rows_have_come(store):
    fix_shards(store, 1, NOW)
    fix_shards(store, 4, NOW)  # nothing depends on it yet
    assert claim_joiner(store, "m", 0, "me", NOW, hold_ms=1_000) is not None
    fix_shards(store, 4, NOW)
    with pytest.raises(ConflictError, match=r"begun with 4.*Set monitor\.shards to 4"):
        fix_shards(store, 2, NOW)


def test_another_number_is_refused_while_a_monitor_may_still_write_by_the_first(store):
    fix_shards(store, 1, NOW)
    claim(
        store,
        consumer="monitor",
        cluster_id="c",
        topic="t",
        topic_id="",
        partition=0,
        owner="one",
        beginning_offset=0,
        now_ms=NOW,
    )
    with pytest.raises(ConflictError):
        fix_shards(store, 2, NOW + 1)
    fix_shards(store, 2, NOW + MONITOR_SEEN_MS)
