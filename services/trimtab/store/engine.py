"""Opening the store, and its transactions.

SQLite runs in WAL mode with `synchronous=NORMAL`; every write transaction is `BEGIN IMMEDIATE`,
because a read-then-write transaction begun as deferred fails with `database is locked` whatever the
timeout (measured: 336 of 600 with two writers). PostgreSQL runs READ COMMITTED; what needs more takes
row locks or fences.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url

BUSY_TIMEOUT_S = 30
"""How long a transaction waits for a lock before it fails and is tried again."""
ABANDONED_S = 60
"""PostgreSQL ends a write transaction that sends nothing for this long and frees what it has locked: its
process was stopped, or its machine is gone, and nobody else could take over its partitions."""
_WRITES = "trimtab_writes"


class Store:
    """A database of trimtab: transactions to read and to write. Safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def dialect(self) -> str:
        """Name of the SQL dialect: "sqlite" or "postgresql"."""
        return self.engine.dialect.name

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One write transaction: commits at the end of the block, rolls back on any exception."""
        with self.engine.connect().execution_options(**{_WRITES: True}) as connection:
            with connection.begin():
                yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent snapshot to read from. Nothing may be written in it."""
        options = {"isolation_level": "REPEATABLE READ"} if self.dialect == "postgresql" else {}
        with self.engine.connect().execution_options(**options) as connection:
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says, nowhere else
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")


def _set_up_postgresql(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{BUSY_TIMEOUT_S}s'")
    connection.commit()


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get(_WRITES):
        connection.exec_driver_sql(
            f"SET LOCAL idle_in_transaction_session_timeout = '{ABANDONED_S}s'"
        )


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def open_store(url: str) -> Store:
    """Open the database at `url` (`sqlite:///path` or `postgresql://…`).

    Connects lazily and leaves the schema as it is; see `migrate.upgrade`.
    """
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    options: dict[str, Any] = {}
    if parsed.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}
    else:
        options["pool_pre_ping"] = True
    engine = create_engine(parsed, **options)
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "connect", _set_up_postgresql)
        event.listen(engine, "begin", _begin_postgresql)
    return Store(engine)
