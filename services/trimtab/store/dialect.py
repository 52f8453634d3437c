"""Where SQLite and PostgreSQL differ, and nowhere else."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, String, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

_LOST_RACES = frozenset(("40001", "40P01"))  # serialization failure, deadlock


def insert_for(connection: Connection, table: Table) -> Any:
    """An INSERT that knows `on_conflict_do_nothing` and `on_conflict_do_update`."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def in_code_order(
    connection: Connection, columns: Iterable[ColumnElement[Any]]
) -> list[ColumnElement[Any]]:
    """The columns to order by as Python sorts: text by its code points, whatever the database's collation.

    Who locks several rows of a table locks them in one order, or two may wait for each other.
    """
    if connection.dialect.name != "postgresql":  # SQLite's order is that of bytes already
        return list(columns)
    return [c.collate("C") if isinstance(c.type, String) else c for c in columns]


def lost_a_race(error: Exception) -> bool:
    """Whether PostgreSQL has ended the transaction in favour of another's: the same again may well work."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in _LOST_RACES
