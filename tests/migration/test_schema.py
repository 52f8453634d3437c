"""The migrations and the declared tables are one schema, and starting together is safe."""

import threading

import pytest
from sqlalchemy import text

from trimtab.store import migrate
from trimtab.store.engine import open_store
from trimtab.store.migrations import make_initial


def test_the_migrated_schema_equals_the_declared_tables(store_url: str) -> None:
    store = open_store(store_url)
    migrate.upgrade(store)
    with store.read() as connection:
        assert migrate.differences(connection) == []
    store.close()


def test_a_missing_column_is_a_difference(sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    migrate.upgrade(store)
    with store.write() as connection:
        connection.execute(text("ALTER TABLE api_keys DROP COLUMN scope"))
    with store.read() as connection:
        assert migrate.differences(connection) != []
    store.close()


def test_the_initial_migration_is_what_the_generator_writes() -> None:
    assert make_initial.TARGET.read_text(encoding="utf-8") == make_initial.source()


def test_processes_that_start_together_migrate_once(store_url: str) -> None:
    failures: list[BaseException] = []

    def start() -> None:
        store = open_store(store_url)
        try:
            migrate.upgrade(store)
            migrate.check(store)
        except BaseException as error:  # noqa: BLE001 - carried to the test's thread
            failures.append(error)
        finally:
            store.close()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []


def test_a_newer_schema_refuses_to_start_and_says_what_to_do(store_url: str) -> None:
    store = open_store(store_url)
    migrate.upgrade(store)
    with store.write() as connection:
        connection.execute(text(f"UPDATE {migrate.VERSION_TABLE} SET version_num = '9999'"))
    for start in (migrate.check, migrate.upgrade):
        with pytest.raises(migrate.SchemaError, match=r"schema 9999.*newer.*Upgrade trimtab"):
            start(store)
    store.close()


def test_an_empty_database_names_the_setting_to_look_at(sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    with pytest.raises(migrate.SchemaError, match=r"store\.url"):
        migrate.check(store)
    store.close()
