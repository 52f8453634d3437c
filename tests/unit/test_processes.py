"""Child processes are restarted, stopped, and never outlive their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trimtab.processes import ProcessFailedError, Supervisor

CHILD = "import sys; from trimtab.processes import exit_with_parent; exit_with_parent(); import time; print('up', flush=True); time.sleep(60)"


def wait_until(condition, limit_s=20.0):
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError("the condition never held")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_a_killed_child_is_started_again(tmp_path):
    with Supervisor(tmp_path) as supervisor:
        first = supervisor.start("child", [sys.executable, "-c", CHILD])
        os.kill(first, signal.SIGKILL)

        restarts = wait_until(supervisor.check)

        assert [restart.name for restart in restarts] == ["child"]
        assert supervisor.pids()["child"] != first


def test_a_child_that_keeps_dying_is_reported_with_its_log(tmp_path):
    with Supervisor(tmp_path, give_up_after=1) as supervisor:
        supervisor.start("child", [sys.executable, "-c", "raise SystemExit('no such thing')"])

        def never():
            supervisor.check()

        with pytest.raises(ProcessFailedError, match="no such thing"):
            wait_until(never)


def test_children_end_when_their_parent_is_killed(tmp_path):
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import sys, time; from pathlib import Path; from trimtab.processes import Supervisor\n"
                f"s = Supervisor(Path({str(tmp_path)!r})); print(s.start('c', [sys.executable, '-c', {CHILD!r}]), flush=True); time.sleep(60)"
            ),
        ],
        stdout=subprocess.PIPE,
    )
    child = int(parent.stdout.readline())
    wait_until(lambda: "up" in (tmp_path / "c.log").read_text())

    parent.kill()
    parent.wait()
    parent.stdout.close()

    wait_until(lambda: not alive(child))
