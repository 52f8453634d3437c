"""`kill -9` of the agent at every write and every effect ends as if nothing had happened.

A child process runs the scripted loop (real reconcile, real store, real artifacts) and dies at one
failpoint; another child goes on from what is stored. A failpoint stands before and after each commit
and each effect outside the store.
"""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab.store.agent import set_champion
from trimtab.store.engine import open_store
from trimtab.store.models import apply_contract
from trimtab.store.tables import metadata
from trimtab_agent.testing import (
    KILLED,
    MODEL,
    START_MS,
    Failpoints,
    World,
    make_artifact,
    scripted_contract,
)

EXPECTED = {
    "promote": {
        "runs": [["planned", "searching", "fitting", "registering", "gating", "blessed"]],
        "rollouts": [["pending", "step", "step", "promoting", "watching", "done"]],
        "traffic": [("2", 1.0)],
        "revisions": 5,
        "incidents": ["resolved"],
    },
    "roll_back": {
        "runs": [["planned", "searching", "fitting", "registering", "gating", "blessed"]],
        "rollouts": [["pending", "step", "rolling_back", "rolled_back"]],
        "traffic": [("1", 1.0)],
        "revisions": 3,
        "incidents": ["diagnosing"],
    },
    "harm_later": {
        "runs": [["planned", "searching", "fitting", "registering", "gating", "blessed"]],
        "rollouts": [
            ["pending", "step", "step", "promoting", "watching", "rolling_back", "rolled_back"]
        ],
        "traffic": [("1", 1.0)],
        "revisions": 5,
        "incidents": ["diagnosing"],
    },
}


def prepare(folder: Path, url: str) -> None:
    """A model with a contract and a champion, version 1."""
    store = open_store(url)
    metadata.drop_all(store.engine)
    metadata.create_all(store.engine)
    apply_contract(store, scripted_contract(), "", "test", START_MS)
    champion = folder / "champion"
    champion.mkdir(parents=True, exist_ok=True)
    sha256 = make_artifact(champion, START_MS)
    set_champion(store, MODEL, "1", champion.as_uri(), sha256, "test", START_MS)
    store.close()


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; its exit status. What it raises is printed there."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - the child's end is its exit status
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def summary_of(folder: Path, url: str, ending: str) -> dict[str, Any]:
    world = World(folder, url, ending, Failpoints())
    try:
        return world.summary()
    finally:
        world.store.close()


def whole_run(folder: Path, url: str, ending: str) -> tuple[dict[str, Any], int]:
    """The uninterrupted run: its summary and how many failpoints it passed."""
    prepare(folder, url)
    failpoints = Failpoints()
    world = World(folder, url, ending, failpoints)
    world.run()
    summary = world.summary()
    world.store.close()
    return summary, failpoints.passed


@pytest.mark.parametrize("ending", list(EXPECTED))
def test_the_loop_closes_with_each_ending(ending: str, tmp_path: Path, store_url: str) -> None:
    summary, points = whole_run(tmp_path / "world", store_url, ending)
    assert {key: summary[key] for key in EXPECTED[ending]} == EXPECTED[ending]
    assert points > 50
    champions = {"promote": ["1", "2"], "roll_back": ["1"], "harm_later": ["1", "2", "1"]}
    assert summary["registry"] == {
        "versions": ["2"],
        "aliases": {"champion": champions[ending][-1]},
        "champions": champions[ending],
        "challengers": ["2", None],
    }
    assert summary["baselines"]["active"] == (2 if ending == "promote" else 1)


def kill_everywhere(tmp_path: Path, url_of: Callable[[int], str], ending: str, every: int) -> int:
    """Die at every `every`-th failpoint, go on, and compare with the uninterrupted run."""
    expected, points = whole_run(tmp_path / "whole", url_of(-1), ending)
    tried = 0
    for at in range(0, points, every):
        folder, url = tmp_path / f"at-{at}", url_of(at)
        prepare(folder, url)

        def dies(folder: Path = folder, url: str = url, at: int = at) -> None:
            World(folder, url, ending, Failpoints(at)).run()

        def goes_on(folder: Path = folder, url: str = url) -> None:
            World(folder, url, ending, Failpoints()).run()

        assert in_child(dies) == KILLED, f"failpoint {at} was not reached"
        assert in_child(goes_on) == 0, f"no end after a kill at failpoint {at}"
        assert summary_of(folder, url, ending) == expected, f"another end after a kill at {at}"
        tried += 1
    return tried


@pytest.mark.parametrize(("ending", "every"), [("promote", 5), ("roll_back", 5), ("harm_later", 5)])
def test_a_kill_ends_as_if_nothing_had_happened(ending: str, every: int, tmp_path: Path) -> None:
    def url_of(at: int) -> str:
        return f"sqlite:///{tmp_path / f'{at}.db'}"

    assert kill_everywhere(tmp_path, url_of, ending, every) > 10


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_at_every_single_point_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    # This ending passes through every state: it promotes, watches, and rolls back after all.
    def url_of(at: int) -> str:
        return f"sqlite:///{tmp_path / f'{at}.db'}"

    assert kill_everywhere(tmp_path, url_of, "harm_later", 1) > 50


@pytest.mark.parametrize("ending", ["promote", "harm_later"])
def test_a_kill_on_postgresql_ends_as_if_nothing_had_happened(
    ending: str, tmp_path: Path, postgres_url: str
) -> None:
    assert kill_everywhere(tmp_path, lambda _at: postgres_url, ending, 23) > 4
