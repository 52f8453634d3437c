"""The fixtures other tests stand on: each store is fresh and real, the browser is one."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.store.engine import open_store


def test_a_store_url_names_a_fresh_database(store_url: str) -> None:
    store = open_store(store_url)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("create table once (n integer)")
        connection.exec_driver_sql("insert into once values (1)")
        assert connection.exec_driver_sql("select n from once").scalar_one() == 1
    store.close()


def test_two_databases_of_one_server_do_not_meet(postgres_url: str, postgres_server: Any) -> None:
    assert postgres_url != postgres_server.get_uri()
    store = open_store(postgres_url)
    with store.engine.begin() as connection:
        tables = connection.exec_driver_sql(
            "select count(*) from information_schema.tables where table_schema = 'public'"
        ).scalar_one()
    store.close()
    assert tables == 0


def test_the_page_runs_scripts(browser_page: Any) -> None:
    browser_page.set_content("<p id=a>before</p><script>a.textContent = 6 * 7</script>")
    assert browser_page.text_content("#a") == "42"


@pytest.mark.parametrize(("required", "outcome"), [("1", "Failed"), ("", "Skipped")])
def test_a_missing_part_skips_here_and_fails_where_all_is_required(
    required: str, outcome: str, missing_part: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_REQUIRE_ALL", required)
    problem = missing_part("no tea: install a kettle")
    assert type(problem).__name__ == outcome
    assert "install a kettle" in str(problem)
