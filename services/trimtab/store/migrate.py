"""The schema's migrations: Alembic inside the package, run at start or by hand.

Two processes that start together do not collide: one holds PostgreSQL's advisory lock (SQLite: an
immediate transaction) while it migrates, the other waits and then finds nothing to do. The schema's
revision is a number such as "0001"; a database newer than the code refuses to start.
"""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Table, text

from trimtab.errors import TrimtabError
from trimtab.store.engine import Store
from trimtab.store.tables import metadata

FOLDER = Path(__file__).parent / "migrations"
VERSION_TABLE = "trimtab_schema"
_LOCK_KEY = 0x7472696D  # "trim", an advisory lock's number


class SchemaError(TrimtabError):
    """The database's schema does not fit this release."""


def upgrade(store: Store) -> None:
    """Bring the schema up to this release; does nothing where it already is.

    Raises SchemaError when the database is newer than the code.
    """
    database = store.engine.url.database
    if store.dialect == "sqlite" and database and database != ":memory:":
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    if _revision_for_reading(store) == head():
        return
    with store.write() as connection:
        if store.dialect == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
        _refuse_unknown(revision(connection))
        command.upgrade(_config(connection), "head")


def check(store: Store) -> None:
    """Raise SchemaError unless the schema is this release's; the text says what to do."""
    found = _revision_for_reading(store)
    _refuse_unknown(found)
    if found is None:
        raise SchemaError(
            "The database has no trimtab schema yet. Any trimtab process makes it when it starts; "
            "check that store.url names the database you mean (`trimtab config show`)."
        )
    if found != head():
        raise SchemaError(
            f"The database has schema {found}, this release needs {head()}. "
            "Restart a trimtab process of this release: it migrates when it starts."
        )


def head() -> str:
    """Return the schema revision of this release."""
    newest = ScriptDirectory(str(FOLDER)).get_current_head()
    if newest is None:
        raise SchemaError(f"{FOLDER} holds no migration. Install trimtab again.")
    return newest


def revision(connection: Connection) -> str | None:
    """Return the schema revision of the database; None where there is no schema."""
    return _context(connection).get_current_revision()


def differences(connection: Connection) -> list[Any]:
    """Return what differs between the database and the declared tables; empty when equal."""
    found: list[Any] = compare_metadata(_context(connection), metadata)
    return found


def _revision_for_reading(store: Store) -> str | None:
    with store.read() as connection:
        return revision(connection)


def _refuse_unknown(found: str | None) -> None:
    known = {script.revision for script in ScriptDirectory(str(FOLDER)).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaError(
            f"The database has schema {found}, which is newer than this release's {head()}. "
            "Upgrade trimtab here, or point store.url to another database."
        )


def _context(connection: Connection) -> MigrationContext:
    return MigrationContext.configure(
        connection,
        opts={
            "version_table": VERSION_TABLE,
            "compare_type": True,
            "compare_server_default": True,
            "target_metadata": metadata,
            "include_object": _ours,
        },
    )


def _ours(thing: Any, name: str | None, kind: str, _reflected: bool, _to: object) -> bool:
    """Leave other software's tables in the same database alone."""
    if kind == "table":
        return name in metadata.tables
    table = getattr(thing, "table", None)
    return not isinstance(table, Table) or table.name in metadata.tables


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.attributes["connection"] = connection
    return config
