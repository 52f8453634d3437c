#!/usr/bin/env python3
"""Install trimtab and everything locked in requirements.lock into .venv. Called by the Makefile.

Runs on any Python 3 (so that a wrong one gets a clear answer), needs only the standard library,
checks the hash of every package, and installs the project itself as editable. Whoever calls it
decides whether it is needed; it is harmless when everything is there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements.lock"
OLDEST, NEWEST = (3, 11), (3, 13)
HEARTBEAT_S = 15.0


class Unable(Exception):  # noqa: N818 - reads as a sentence where it is raised
    """The environment cannot be made; the text says what to do."""


def say(text: str) -> None:
    """Print one line at once."""
    print(f"trimtab: {text}", flush=True)


def version_of(python: str) -> tuple[int, int] | None:
    """Major and minor version of a Python command, or None if it does not run."""
    asked = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
        return int(answer[0]), int(answer[1])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return None


def choose_python() -> str:
    """Choose the calling Python if its version fits, else a python3.13, 3.12 or 3.11 on PATH."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found and version_of(found) == (3, minor):
            return found
    have = ".".join(str(part) for part in sys.version_info[:3])
    raise Unable(
        f"Python 3.11, 3.12 or 3.13 is needed (TensorFlow's range), this is {have} "
        f"({sys.executable}). Install one and run make PYTHON=/path/to/python3.12"
    )


def make_venv() -> None:
    """Make .venv, unless a fitting one is there; a wrong or broken one is refused, not deleted."""
    if PYTHON.exists():
        have = version_of(str(PYTHON))
        if have is not None and OLDEST <= have <= NEWEST:
            return
        raise Unable(f"{VENV} holds no working Python 3.11 to 3.13. Remove it (make clean-venv).")
    python = choose_python()
    ready = subprocess.run(
        [python, "-c", "import ensurepip, venv"], capture_output=True, check=False
    )
    if ready.returncode != 0:
        major, minor = version_of(python) or sys.version_info[:2]
        raise Unable(
            f"{python} cannot make virtual environments. Debian and Ubuntu keep that part in a "
            f"package of its own: apt-get install python{major}.{minor}-venv (or python3-venv)."
        )
    say(f"making .venv with {python}")
    run([python, "-m", "venv", str(VENV)])


def run(command: list[str]) -> None:
    """Run a quiet command; on failure raise Unable with the last lines it printed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env.update(VIRTUAL_ENV=str(VENV), PIP_DISABLE_PIP_VERSION_CHECK="1")

    def attempt() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )

    done = attempt()
    if done.returncode != 0 and "UnknownIssuer" in done.stderr:
        # uv brings its own list of authorities; a company's proxy is known to the system alone.
        env["UV_SYSTEM_CERTS"] = "true"
        done = attempt()
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise Unable(f"this failed: {' '.join(command)}\n{tail}")


def install_uv() -> list[str]:
    """Return the command that installs: the locked uv (fetched by pip, hash-checked), else pip."""
    uv = VENV / "bin" / "uv"
    pip = [str(PYTHON), "-m", "pip"]
    if not uv.exists():
        pin = re.search(r"^uv==.*?[^\\]$", LOCK.read_text(), flags=re.MULTILINE | re.DOTALL)
        if pin is None:
            raise Unable("requirements.lock names no uv. Lock again: make lock")
        if subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode != 0:
            run([str(PYTHON), "-m", "ensurepip", "--default-pip"])
        wanted = VENV / "uv.txt"
        wanted.write_text(pin.group() + "\n")
        try:
            run([*pip, "install", "-q", "--no-deps", "--require-hashes", "-r", str(wanted)])
        except Unable:
            say("no uv for this machine; pip installs instead, more slowly")
            return [*pip, "install", "-q"]
    return [str(uv), "pip", "install", "-q", "--python", str(PYTHON)]


def install_lock(installer: list[str]) -> None:
    """Install the lock with every hash checked, and say every 15 s that it still goes on."""
    count = len(re.findall(r"^[A-Za-z0-9].*==", LOCK.read_text(), flags=re.MULTILINE))
    say(f"installing up to {count} locked packages (the first time 1 GB to download) ...")
    started = time.monotonic()
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            say(f"still installing, {time.monotonic() - started:.0f} s")

    threading.Thread(target=beat, daemon=True).start()
    try:
        run([*installer, "--require-hashes", "-r", str(LOCK)])
    finally:
        done.set()
    # hatchling is in the lock, so the build needs no environment of its own and no download.
    run([*installer, "--no-deps", "--no-build-isolation", "-e", str(ROOT)])
    say(f"installed in {time.monotonic() - started:.0f} s")


def main() -> int:
    """Make the environment; return the exit status."""
    try:
        make_venv()
        install_lock(install_uv())
    except Unable as problem:
        print(f"trimtab: {problem}", file=sys.stderr)
        return 1
    (VENV / ".installed").touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
