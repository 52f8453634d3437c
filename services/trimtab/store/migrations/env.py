"""Alembic's entry: runs the migrations on the connection that `migrate.upgrade` holds."""

from alembic import context

from trimtab.store.migrate import VERSION_TABLE
from trimtab.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
context.run_migrations()
