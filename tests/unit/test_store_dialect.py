"""Where the databases differ: in which order rows are locked, and what is worth another try."""

import psycopg.errors
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from trimtab.stats.aggregate import ResourceState
from trimtab.store import tables as t
from trimtab.store.dialect import in_code_order, lost_a_race
from trimtab.store.engine import open_store
from trimtab.store.resources import write_resources
from trimtab.store.rollups import fold_gauge_panes
from trimtab.windows.rollup import HOUR_MS


@pytest.fixture
def store(store_url):
    store = open_store(store_url)
    t.metadata.create_all(store.engine)
    yield store
    store.close()


def test_a_fold_of_gauges_locks_in_the_order_of_a_flush(store):
    """A flush sorts in Python; a database orders text by its collation, unless it is told otherwise."""
    said = []

    @event.listens_for(store.engine, "before_cursor_execute")
    def hear(_connection, _cursor, statement, *_rest):
        said.append(statement)

    instances = ["b", "B", "a", "_", "ä", "Z", "10", "9", "a b", "a-b"]
    states = {
        ("m", 0, version, instance): ResourceState.observe({"cpu": [1.0]})
        for version in ("v", "V", "_")
        for instance in instances
    }
    with store.write() as connection:
        write_resources(connection, 1, 1, states)
        assert fold_gauge_panes(connection, "m", None, HOUR_MS, 100) == len(states)
    if store.dialect == "postgresql":
        (locking,) = (one for one in said if "FOR UPDATE" in one and "ORDER BY" in one)
        ordered = locking[locking.index("ORDER BY") :]
        for name in ("model", "version", "instance"):
            assert f'resource_panes.{name} COLLATE "C"' in ordered


def test_code_order_is_the_order_of_python(store):
    texts = ["b", "B", "a", "_", "ä", "Z", "10", "9", "a b", "a-b", "é", "\U0001f600", "\uffee"]
    with store.write() as connection:
        connection.execute(
            t.versions.insert(),
            [{"model": x, "version": "1", "created_ms": 0, "source": "user"} for x in texts],
        )
        columns = in_code_order(connection, [t.versions.c.model, t.versions.c.created_ms])
        query = t.versions.select().order_by(*columns)
        assert [row.model for row in connection.execute(query)] == sorted(texts)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (psycopg.errors.DeadlockDetected(), True),
        (psycopg.errors.SerializationFailure(), True),
        (psycopg.errors.AdminShutdown(), False),
        (Exception("database is locked"), False),
    ],
)
def test_only_what_lost_to_another_transaction_is_tried_again_alone(error, lost):
    assert lost_a_race(OperationalError("update", {}, error)) is lost


def test_what_is_no_error_of_a_database_lost_no_race():
    assert not lost_a_race(ValueError("40P01"))
