"""A search killed with SIGKILL goes on where it stood: no trial lost, none doubled."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab_agent.recipes.data import DataRef
from trimtab_agent.search.protocol import FitResult, RecipeRef
from trimtab_agent.search.runner import Search, SearchPlan
from trimtab_agent.search.space import DataSpace
from trimtab_agent.search.study import SearchSpec, sqlite_url
from trimtab_agent.search.workers import WorkerError, WorkerStoppedError

TRIALS = 6

# The child runs the same search and says when a trial begins, reports and ends.
CHILD = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import test_search_resume as here

def fitter(params, report):
    print("begin", flush=True)
    report(1, 0.1)
    print("report", flush=True)
    time.sleep(float(sys.argv[3]))
    return here.judge(params)

search = here.search_in(Path(sys.argv[1]), fitter)
search.advance(0)
search.wait(60)
print("end", flush=True)
"""


class NoPool:
    """Stands where a pool would; the fitter replaces its work."""

    workers = 1

    def warm(self) -> None:
        """There is nothing to warm."""


def judge(params) -> FitResult:
    value = 1.0 - abs(params["hyperparameters"]["dropout"] - 0.2)
    return FitResult(value=value, best_step=1, pruned=False, seconds=0.0, rows=1)


def search_in(folder: Path, fitter) -> Search:
    plan = SearchPlan(
        run_id="run-7",
        storage_url=sqlite_url(folder / "study.db"),
        recipe=RecipeRef("image-cnn", {"shape": [8, 8, 1]}),
        data=DataRef("", "", 0),
        data_space=DataSpace(class_balance=("none",)),
        spec=SearchSpec(trials=TRIALS, seconds=1e6, pruner="none"),
    )
    return Search(plan, NoPool(), fitter=fitter)


def finish(folder: Path):
    search = search_in(folder, lambda params, _report: judge(params))
    search.advance(0)
    search.wait(60)
    return search


def kept(search: Search):
    return [(r.params, r.value) for r in search._records if r.state == "complete"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return kept(finish(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("line", [1, 2, 5, 8])
def test_a_killed_search_ends_as_an_uninterrupted_one(tmp_path, uninterrupted, line):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), str(Path(__file__).parent), "0.05"],
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(line):
        assert child.stdout.readline() != "end\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()

    search = finish(tmp_path)
    progress = search.advance(0)
    assert (progress.state, progress.trials) == ("done", TRIALS)
    assert kept(search) == uninterrupted
    failed = [r for r in search._records if r.state == "failed"]
    assert len(failed) == len([r for r in search._records if r.origin.startswith("retry:")]) <= 1


def test_a_stopped_search_leaves_its_trial_to_the_next_owner(tmp_path, uninterrupted):
    begun = []

    def fitter(params, report):
        begun.append(params)
        if len(begun) == 3:
            search.stop()
            assert report(1, 0.5)
            return FitResult(value=0.5, best_step=1, pruned=True, seconds=0, rows=1)
        return judge(params)

    search = search_in(tmp_path, fitter)
    search.advance(0)
    search.wait(60)
    assert search.advance(0).state == "searching"
    assert len(begun) == 3
    assert kept(finish(tmp_path)) == uninterrupted


def test_a_failing_trial_costs_the_study_one_trial(tmp_path):
    calls = []

    def fitter(params, _report):
        calls.append(params)
        if len(calls) == 2:
            raise WorkerError("the worker process ended with code -9")
        return judge(params)

    search = search_in(tmp_path, fitter)
    search.advance(0)
    search.wait(60)
    progress = search.advance(0)
    assert (progress.state, progress.trials, len(calls)) == ("done", TRIALS, TRIALS)
    assert [r.reason for r in search._records if r.state == "failed"] == [
        "the worker process ended with code -9"
    ]


def test_three_failures_in_a_row_end_the_search_with_the_reason(tmp_path):
    def fitter(_params, _report):
        raise WorkerError("the data has one class")

    search = search_in(tmp_path, fitter)
    search.advance(0)
    search.wait(60)
    progress = search.advance(0)
    assert (progress.state, progress.trials) == ("failed", 3)
    assert "the data has one class" in progress.reason


def test_a_closed_pool_is_no_failure_of_a_trial(tmp_path, uninterrupted):
    calls = []

    def fitter(params, _report):
        calls.append(params)
        if len(calls) == 4:
            raise WorkerStoppedError("the pool was closed")
        return judge(params)

    search = search_in(tmp_path, fitter)
    search.advance(0)
    search.wait(60)
    assert search.advance(0).state == "searching"
    assert kept(finish(tmp_path)) == uninterrupted


def test_the_first_tick_does_not_wait_and_progress_is_told_while_a_trial_runs(tmp_path):
    import threading

    reported, go_on = threading.Event(), threading.Event()

    def fitter(params, report):
        report(4, 0.75)
        reported.set()
        assert go_on.wait(30)
        return judge(params)

    search = search_in(tmp_path, fitter)
    assert search.advance(0).trials == 0
    assert reported.wait(30)
    progress = search.advance(0)
    assert (progress.state, progress.running) == ("searching", {0: (4, 0.75)})
    go_on.set()
    search.wait(60)
    assert search.advance(0).state == "done"
