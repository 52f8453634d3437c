"""Workers: they take JSON, exit at the end of their input, and fail one task at a time."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from trimtab.artifacts import FeatureSpec, verify_artifact
from trimtab.serve.predictor import load_predictor
from trimtab_agent.recipes.data import make_data, save_data, with_validation
from trimtab_agent.search import protocol
from trimtab_agent.search.protocol import RecipeRef
from trimtab_agent.search.runner import (
    SearchPlan,
    evaluate,
    read_answers,
    refit,
    run_search,
)
from trimtab_agent.search.space import DataSpace, data_space_for
from trimtab_agent.search.study import SearchSpec, sqlite_url
from trimtab_agent.search.workers import (
    WorkerError,
    WorkerPool,
    WorkerProcess,
    WorkerStoppedError,
    WorkerTimeoutError,
)

TABULAR = RecipeRef("tabular", {"max_epochs": 6})
PARAMS = {
    "hyperparameters": {"learning_rate": 0.01, "batch_size": 64, "dropout": 0.0},
    "architecture": {"layers": 1, "units": 32},
    "seed": 3,
}


def data(n: int = 400):
    rng = np.random.default_rng(0)
    features = np.stack([rng.normal(size=n), rng.integers(-1, 3, n)], axis=1)
    labels = (features[:, 0] + (features[:, 1] == 1) > 0).astype(int)
    specs = (FeatureSpec("amount"), FeatureSpec("channel", "category", ("web", "app", "branch")))
    return with_validation(
        make_data(features, labels, specs=specs, classes=("no", "yes"), task="binary"), 0.25
    )


def until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """A process is gone when it does not exist or only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def worker() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "trimtab_agent.search.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def test_a_worker_exits_when_its_input_ends():
    process = worker()
    process.stdin.close()
    assert process.wait(30) == 3
    process.stdout.close()


def test_an_unknown_recipe_fails_the_task_and_the_worker_lives_on(tmp_path):
    ref = save_data(data(), tmp_path / "data.npz")
    process = WorkerProcess()
    task = protocol.Fit(recipe=RecipeRef("no-such"), params=PARAMS, data=ref)
    for _ in range(2):
        with pytest.raises(WorkerError, match="no recipe 'no-such'"):
            process.run(task, timeout_s=60)
        assert process.is_alive()
    process.close()


def test_an_altered_data_file_is_refused_by_the_worker(tmp_path):
    ref = save_data(data(), tmp_path / "data.npz")
    Path(ref.path).write_bytes(b"something else")
    process = WorkerProcess()
    with pytest.raises(WorkerError, match="the record says"):
        process.run(protocol.Fit(recipe=TABULAR, params=PARAMS, data=ref), timeout_s=60)
    process.close()


def test_a_worker_sees_no_setting_of_trimtab_and_has_one_thread(monkeypatch):
    monkeypatch.setenv("TRIMTAB_STORE__URL", "postgresql://user:secret@host/db")
    process = WorkerProcess()
    environment = Path(f"/proc/{process.pid}/environ").read_bytes().decode().split("\0")
    process.close()
    assert not [line for line in environment if line.startswith("TRIMTAB_")]
    assert "OMP_NUM_THREADS=1" in environment
    assert "TF_NUM_INTRAOP_THREADS=1" in environment


USER_RECIPE = """
class Recipe:
    name, framework = "sleeper", "keras"
    def __init__(self, options):
        self.options = options
    def space(self, trial):
        return {"hyperparameters": {
            "rate": trial.suggest_float("rate", 0.1, 1.0, log=True),
            "kind": trial.suggest_categorical("kind", ["a", "b"]),
            "count": trial.suggest_int("count", 1, 3)}}
    def fit(self, params, data, out_dir, report):
        import os, sys, time
        print("noise on standard output")
        if self.options["do"] == "crash":
            print("about to crash", file=sys.stderr, flush=True)
            os._exit(9)
        if self.options["do"] == "sleep":
            report(1, 0.5)
            time.sleep(600)
        for step in range(1, 10):
            if report(step, step / 10):
                return
    def load(self, directory, features):
        raise NotImplementedError(directory)
"""


@pytest.fixture
def sleeper(tmp_path, monkeypatch):
    """A user's package with an entry point, on the workers' path."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "sleeper_recipe.py").write_text(USER_RECIPE)
    info = package / "sleeper-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sleeper\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[trimtab.recipes]\nsleeper = sleeper_recipe:Recipe\n")
    monkeypatch.setenv("PYTHONPATH", str(package))
    return lambda do: RecipeRef("sleeper", {"do": do})


def test_a_users_space_is_asked_through_the_pipe(sleeper):
    class Trial:
        def suggest_float(self, name, low, high, *, log=False):
            return {"rate": high if log else low}[name]

        def suggest_int(self, _name, _low, high, *, log=False):
            return high

        def suggest_categorical(self, _name, choices):
            return choices[1]

    process = WorkerProcess()
    params = process.run(protocol.AskSpace(sleeper("go")), timeout_s=60, trial=Trial())
    process.close()
    assert params == {"hyperparameters": {"rate": 1.0, "kind": "b", "count": 3}}


def test_reports_are_answered_and_a_pruned_fit_returns_at_once(sleeper, tmp_path):
    ref = save_data(data(), tmp_path / "data.npz")
    reports = []
    process = WorkerProcess()
    result = process.run(
        protocol.Fit(recipe=sleeper("go"), params=PARAMS, data=ref),
        timeout_s=60,
        on_report=lambda step, value: reports.append((step, value)) or step == 3,
    )
    process.close()
    assert reports == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert (result["pruned"], result["value"], result["best_step"]) == (True, 0.3, 3)


def test_a_crash_tells_the_code_and_what_the_worker_wrote_last(sleeper, tmp_path):
    ref = save_data(data(), tmp_path / "data.npz")
    process = WorkerProcess()
    with pytest.raises(WorkerError, match=r"code 9(.|\n)*about to crash"):
        process.run(protocol.Fit(recipe=sleeper("crash"), params=PARAMS, data=ref), timeout_s=60)
    assert not process.is_alive()
    process.close()


def test_a_task_over_its_time_is_ended(sleeper, tmp_path):
    ref = save_data(data(), tmp_path / "data.npz")
    process = WorkerProcess()
    with pytest.raises(WorkerTimeoutError, match="longer than 5 s"):
        process.run(protocol.Fit(recipe=sleeper("sleep"), params=PARAMS, data=ref), timeout_s=5)
    until(lambda: not process.is_alive())
    process.close()


def test_a_worker_in_the_middle_of_a_fit_exits_when_its_agent_is_killed(sleeper, tmp_path):
    ref = save_data(data(), tmp_path / "data.npz")
    agent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            """
import json, sys, msgspec
from trimtab_agent.search import protocol
from trimtab_agent.search.workers import WorkerProcess
process = WorkerProcess()
task = msgspec.convert(json.loads(sys.argv[1]), protocol.Fit)
def told(step, value):
    print(process.pid, flush=True)
    return False
process.run(task, timeout_s=600, on_report=told)
""",
            json.dumps(
                {
                    "type": "Fit",
                    "recipe": {"name": "sleeper", "options": {"do": "sleep"}},
                    "params": PARAMS,
                    "data": {"path": ref.path, "sha256": ref.sha256, "rows": ref.rows},
                }
            ),
        ],
        stdout=subprocess.PIPE,
    )
    pid = int(agent.stdout.readline())
    assert not gone(pid)
    os.kill(agent.pid, signal.SIGKILL)
    agent.wait()
    agent.stdout.close()
    until(lambda: gone(pid))


@pytest.mark.tensorflow
@pytest.mark.slow
def test_a_crashed_worker_is_replaced_for_the_next_task(sleeper, tmp_path):
    ref = save_data(data(), tmp_path / "data.npz")
    pool = WorkerPool(1)
    try:
        crash = pool.submit(
            protocol.Fit(recipe=sleeper("crash"), params=PARAMS, data=ref), timeout_s=120
        )
        with pytest.raises(WorkerError, match="code 9"):
            crash.result(200)
        fine = pool.fit(
            sleeper("go"), PARAMS, ref, timeout_s=120, on_report=lambda _step, _value: False
        )
        assert fine.value == 0.9
        assert len(pool.pids) == 1
    finally:
        pool.close()
    assert pool.pids == []


@pytest.mark.tensorflow
@pytest.mark.slow
def test_closing_the_pool_ends_what_runs_and_what_waits(sleeper, tmp_path):
    ref = save_data(data(), tmp_path / "data.npz")
    pool = WorkerPool(1)
    task = protocol.Fit(recipe=sleeper("sleep"), params=PARAMS, data=ref)
    reports = []
    running = pool.submit(
        task, timeout_s=600, on_report=lambda step, _value: bool(reports.append(step))
    )
    waiting = pool.submit(task, timeout_s=600)
    until(lambda: reports, 120)
    pool.close()
    for future in (running, waiting):
        with pytest.raises(WorkerStoppedError):
            future.result(10)


@pytest.mark.tensorflow
@pytest.mark.slow
def test_a_search_through_a_worker_ends_in_an_artifact_that_serve_can_load(tmp_path):
    pool = WorkerPool(1)
    pool.warm()
    try:
        rows = data()
        ref = save_data(rows, tmp_path / "data.npz")
        plan = SearchPlan(
            run_id="run-1",
            storage_url=sqlite_url(tmp_path / "study.db"),
            recipe=TABULAR,
            data=ref,
            data_space=data_space_for(rows, DataSpace()),
            spec=SearchSpec(trials=3, warm_start=(PARAMS,)),
        )
        search = run_search(plan, pool)
        until(lambda: search.advance(0).state != "searching", 200)
        progress = search.advance(0)
        assert (progress.state, progress.trials) == ("done", 3)
        assert progress.best.value > 0.8

        def fit_again():
            return refit(
                pool,
                recipe_ref=TABULAR,
                winner=progress.best,
                data=ref,
                out_dir=tmp_path / "artifact",
                created_ms=5,
            ).result(120)

        made = fit_again()
        assert fit_again().sha256 == made.sha256
        window = progress.best.params["data"]["window"]
        assert made.rows == math.ceil(window * len(rows))
        manifest = verify_artifact(Path(made.path), made.sha256)
        assert manifest.params["steps"] == progress.best.best_step
        assert manifest.signature == rows.signature

        told = evaluate(
            pool,
            recipe_ref=TABULAR,
            artifact_dir=Path(made.path),
            sha256=made.sha256,
            data=ref,
            out_file=tmp_path / "answers.npz",
        ).result(120)
        answers = read_answers(told)
        assert told.value == np.mean(answers.predicted == rows.labels) > 0.85
        assert told.one_row_median_ms > 0

        predictor = load_predictor(Path(made.path), made.sha256)
        predictor.warm_up()
        prediction = predictor.predict(rows.features)
        assert [rows.classes[code] for code in answers.predicted] == prediction.labels
        np.testing.assert_allclose(prediction.scores, answers.scores, atol=1e-5)
        one = predictor.predict([{"amount": 0.5, "channel": "app"}])
        np.testing.assert_allclose(
            one.scores, predictor.predict(np.array([[0.5, 1]], dtype=np.float32)).scores
        )
    finally:
        pool.close()
