"""Alembic migrations of the store, in `versions/`."""
