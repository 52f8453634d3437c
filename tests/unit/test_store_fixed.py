"""Settings that stored data depends on."""

import pytest
from sqlalchemy import insert

from trimtab.errors import ConflictError
from trimtab.store.engine import open_store
from trimtab.store.fixed import MONITOR_SEEN_MS, fix_shards
from trimtab.store.ledger import claim
from trimtab.store.tables import joiners, metadata

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
    with store.write() as connection:
        connection.execute(
            insert(joiners).values(
                model="m", shard=0, epoch=1, expires_ms=0, position=0, positions="{}", updated_ms=0
            )
        )
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
