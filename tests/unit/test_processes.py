"""Child processes are restarted, stopped, and never outlive their parent."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trimtab.api.app import run_api
from trimtab.cli import main
from trimtab.errors import TrimtabError
from trimtab.ports import check_port
from trimtab.processes import ProcessFailedError, Supervisor
from trimtab.serve.app import run_serve
from trimtab.settings import load
from trimtab.up import check_ports

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


@pytest.fixture
def taken():
    """A port of 127.0.0.1 that somebody listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.mark.parametrize("section", ["api", "serve"])
def test_a_taken_port_is_said_before_anything_starts(section, taken, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["--set", f"{section}.port={taken}", "up"])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert f"Port {taken} is taken: set {section}.port" in said
    assert not (tmp_path / ".trimtab").exists(), "nothing was started"


@pytest.mark.parametrize(("section", "run"), [("api", run_api), ("serve", run_serve)])
def test_a_process_alone_says_so_too(section, run, taken, tmp_path):
    settings = load({"data_dir": str(tmp_path), f"{section}.port": taken}, environ={}).settings
    with pytest.raises(TrimtabError, match=rf"Port {taken} is taken: set {section}\.port"):
        run(settings, threading.Event())


def test_a_port_of_a_process_left_out_is_not_asked_for(taken):
    settings = load({"serve.port": taken, "api.port": 0}, environ={}).settings
    check_ports(settings, ["api", "monitor"])
    with pytest.raises(TrimtabError, match="is taken"):
        check_ports(settings, ["serve"])


def test_a_host_that_is_not_this_machine_s_is_said():
    with pytest.raises(TrimtabError, match=r"set api\.host"):
        check_port("api", "192.0.2.1", 8600)


def test_a_port_that_was_left_a_moment_ago_is_free():
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = server.accept()
            accepted.close()  # the server's side closes first, and its port lingers
            assert client.recv(1) == b""
    check_port("api", "127.0.0.1", port)
