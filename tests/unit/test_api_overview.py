"""Many models at a glance, on both databases: pages, scopes, alerts as they change."""

from collections.abc import Iterator

import msgspec
import pytest
from sqlalchemy import insert

from trimtab.errors import TrimtabError
from trimtab.store import migrate, overview
from trimtab.store.alerts import acknowledge, get_alert, save_alert
from trimtab.store.engine import Store, open_store
from trimtab.store.tables import models, verdicts
from trimtab.testing import example

NOW_MS = 1_800_000_000_000


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


def test_two_thousand_models_are_read_a_page_at_a_time(store: Store) -> None:
    names = [f"m{number:04}" for number in range(2_000)]
    with store.write() as connection:
        connection.execute(
            insert(models),
            [
                {
                    "name": name,
                    "team": "risk" if number % 2 else "fraud",
                    "contract_revision": 1,
                    "created_ms": 0,
                }
                for number, name in enumerate(names)
            ],
        )
    seen: list[str] = []
    after = ""
    while page := overview.fleet(store, after=after, limit=500):
        seen += [status.model for status in page]
        after = page[-1].model
    assert seen == names
    assert len(overview.fleet(store, limit=10)) == 10
    assert {s.team for s in overview.fleet(store, scope="team:risk", limit=50)} == {"risk"}
    assert [s.model for s in overview.fleet(store, scope="model:m0007")] == ["m0007"]
    assert [s.model for s in overview.fleet(store, search="0999")] == ["m0999"]
    assert overview.fleet(store, search="%") == []


def test_models_show_the_outcome_of_their_newest_window(store: Store) -> None:
    judged = {"a": ["alarm", "ok"], "b": ["ok", "alarm"], "c": ["ok"], "d": [], "gone": ["alarm"]}
    with store.write() as connection:
        for name, outcomes in judged.items():
            connection.execute(
                insert(models).values(
                    name=name,
                    team="risk" if name in "ab" else "fraud",
                    contract_revision=1,
                    created_ms=0,
                    retired_ms=1 if name == "gone" else None,
                )
            )
            for window, outcome in enumerate(outcomes):
                # The newest window's first revision was another: only its latest counts.
                for revision, said in ((1, "warning"), (2, outcome)):
                    connection.execute(
                        insert(verdicts).values(
                            model=name,
                            window_start_ms=window * 1_000,
                            window_end_ms=(window + 1) * 1_000,
                            revision=revision,
                            latest=revision == 2,
                            outcome=said,
                            reason="within_limits",
                            rows=7,
                            input_digest=f"{revision}",
                            body=f'{{"figures": {{"summary": 3}}, "summary": "{name}{window}"}}',
                            created_ms=0,
                        )
                    )
    shown = {s.model: (s.outcome, s.window_start_ms, s.summary) for s in overview.fleet(store)}
    assert shown == {
        "a": ("ok", 1_000, "a1"),
        "b": ("alarm", 1_000, "b1"),
        "c": ("ok", 0, "c0"),
        "d": (None, None, "No window has closed yet."),
    }


def test_a_model_at_a_glance_tells_its_story(store: Store) -> None:
    last = example.fill(store, NOW_MS, windows=60)
    status = overview.model_status(store, "digits")
    assert status.outcome == "ok"
    assert status.window_start_ms == last
    assert (status.open_alerts, status.incident, status.rollout) == (1, "acting", "watching")
    assert (status.champion, status.challenger) == ("2", None)
    assert overview.fleet(store) == [status]


def test_alerts_of_the_same_moment_are_all_reached_by_cursors(store: Store) -> None:
    example.fill(store, NOW_MS, windows=30)
    alert = get_alert(store, "a1")
    for number in range(7):
        with store.write() as connection:
            save_alert(
                connection, msgspec.structs.replace(alert, id=f"b{number}", condition=f"c{number}")
            )
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = overview.alerts_page(store, cursor=cursor, limit=3)
        seen += [entry.id for entry in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert sorted(seen) == ["a1", *(f"b{number}" for number in range(7))]
    assert overview.alerts_page(store, scope="team:elsewhere").items == []
    with pytest.raises(TrimtabError, match="no cursor"):
        overview.alerts_page(store, cursor="nonsense")


def test_changes_of_alerts_are_found_by_when_they_changed(store: Store) -> None:
    example.fill(store, NOW_MS, windows=30)
    assert overview.alerts_since(store, "*", NOW_MS + 1) == []
    acknowledge(store, "a1", "me", NOW_MS + 5)
    changed = overview.alerts_since(store, "team:vision", NOW_MS + 1)
    assert [(entry.id, entry.state) for entry in changed] == [("a1", "acknowledged")]
    assert overview.alerts_since(store, "team:risk", 0) == []
