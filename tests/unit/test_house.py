"""The house rules that a machine can hold: style, types, directions of import, the lock."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", "."], id="ruff finds nothing"),
        pytest.param(["ruff", "format", "--check", "."], id="the code is formatted"),
        pytest.param(["mypy"], id="mypy strict finds nothing"),
        pytest.param(["lint-imports"], id="imports go one way"),
    ],
)
def test_a_static_check_passes(command: list[str]) -> None:
    done = subprocess.run(
        [str(TOOLS / command[0]), *command[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_lock_names_no_place_to_download_from() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert not re.findall(r"https?://\S+|--(?:extra-)?index-url|--find-links", lock)


def test_every_locked_package_is_pinned_with_a_hash() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pins = re.split(r"\n(?=[a-zA-Z0-9])", lock)
    unhashed = [pin.splitlines()[0] for pin in pins if "--hash=sha256:" not in pin]
    assert len(pins) > 100
    assert unhashed == []


def test_every_direct_dependency_is_in_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted += extra
    names = {re.split(r"[\[<>=!~ ;]", line)[0].lower().replace("_", "-") for line in wanted}
    lock = (ROOT / "requirements.lock").read_text()
    locked = set(re.findall(r"^([a-z0-9.-]+)(?:\[[^]]*\])?==", lock, flags=re.MULTILINE))
    assert names - locked - {"trimtab"} == set()


def test_test_files_have_names_of_their_own() -> None:
    """Pytest's importlib mode allows twins; a report that names only the file does not."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
