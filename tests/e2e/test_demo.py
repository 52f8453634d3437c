"""The whole loop as a user starts it: both endings, one of them with processes killed on the way."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from trimtab.processes import trimtab_command
from trimtab.store.agent import list_rollouts, list_runs
from trimtab.store.engine import open_store

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow, pytest.mark.timeout(900)]

LIMIT_S = 840


class Play:
    """A running demo."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self.out, self.err = directory.parent / "out.json", directory.parent / "err.txt"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                trimtab_command("demo", "--json", "--directory", str(directory), *arguments),
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
            )

    def states(self) -> tuple[str, str]:
        """State of the newest run and rollout; empty before there is one."""
        if not (self.directory / "pids.json").exists():
            return "", ""
        store = open_store(f"sqlite:///{self.directory / 'trimtab.db'}")
        try:
            runs, rollouts = (
                list_runs(store, "digits", limit=1),
                list_rollouts(store, "digits", limit=1),
            )
        finally:
            store.close()
        return (
            str(runs[0].state) if runs else "",
            str(rollouts[0].state) if rollouts else "",
        )

    def kill(self, name: str) -> None:
        """kill -9 one of its processes."""
        os.kill(json.loads((self.directory / "pids.json").read_text())[name], signal.SIGKILL)

    def wait_for(self, condition) -> None:
        """Wait until the condition holds; fail when the demo ends first."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert self.process.poll() is None, self.err.read_text()[-4_000:]
            assert time.monotonic() < deadline, "never seen"
            time.sleep(0.25)

    def summary(self) -> dict:
        """What it printed at its end."""
        code = self.process.wait(LIMIT_S)
        assert code == 0, self.err.read_text()[-4_000:]
        return json.loads(self.out.read_text())

    def stop(self) -> None:
        """End it and everything it started."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


@pytest.fixture
def play(tmp_path):
    started = []

    def begin(*arguments):
        started.append(Play(tmp_path / "demo", *arguments))
        return started[-1]

    yield begin
    for each in started:
        each.stop()


def steps(summary: dict, record: str) -> list[str]:
    return [step["to"] for step in summary["transitions"] if step["record"] == record]


def assert_alerts(summary: dict) -> None:
    """The detector tells of the inputs first, the rule of accuracy when it falls; each once."""
    told = summary["alerts"]
    assert len(told) == len(set(told)) == summary["alerts_opened"]
    about_accuracy = next(name for name in told if name.startswith("accuracy < 0.90"))
    assert told.index("detector:input") < told.index(about_accuracy)
    # What the model answers moves with it, and a busy machine is slow.
    others = {"detector:prediction", "detector:resources", "detector:volume"}
    assert set(told) - others == {"detector:input", about_accuracy}


def test_the_loop_closes_though_monitor_and_agent_are_killed(play):
    demo = play()
    demo.wait_for(lambda: demo.states()[0] == "searching")
    demo.kill("agent")
    demo.wait_for(lambda: demo.states()[1] == "step")
    demo.kill("monitor")
    demo.kill("agent")

    summary = demo.summary()

    assert summary["ending"] == "promoted"
    assert summary["accuracy_before_drift"] > 0.94
    assert summary["accuracy_at_alert"] < 0.92
    assert summary["accuracy_after"] > 0.85
    assert_alerts(summary)
    assert sorted(set(summary["restarts"])) == ["agent", "monitor"]
    assert summary["ledger_balances"]
    assert summary["messages_lost"] == 0
    assert summary["rows_streamed"] == summary["requests"]["answered"]
    assert steps(summary, "run") == [
        "planned",
        "searching",
        "fitting",
        "registering",
        "gating",
        "blessed",
    ]
    assert steps(summary, "rollout") == [
        "pending",
        "step",
        "step",
        "step",
        "promoting",
        "watching",
        "done",
    ]
    assert steps(summary, "incident")[-1] == "resolved"
    assert Path(summary["addresses"]["report"]).stat().st_size > 10_000


def test_a_challenger_that_is_worse_on_live_traffic_is_rolled_back(play):
    summary = play("--bad-challenger").summary()

    assert summary["ending"] == "rolled back"
    assert steps(summary, "run")[-1] == "blessed", "the gate was passed honestly"
    assert steps(summary, "rollout")[-1] == "rolled_back"
    assert 0 < summary["challenger_share_max"] < 0.6
    assert summary["accuracy_after"] > 0.94
    assert_alerts(summary)
    assert summary["ledger_balances"]
