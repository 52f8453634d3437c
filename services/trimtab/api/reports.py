"""Evidently reports: made by a process of their own, never on a request's path.

A report compares the row sample of a window with the baseline's. Its state is two files beside each
other in `data_dir/reports`: the HTML, and a JSON status that the worker writes last.
"""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Literal

from msgspec import Struct

from trimtab.errors import TrimtabError
from trimtab.settings import Settings, as_environment

_PARALLEL = threading.BoundedSemaphore(1)  # Evidently takes a core and some hundred MB


class ReportState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a report is."""

    state: Literal["missing", "working", "done", "failed"]
    model: str
    window_start_ms: int
    reason: str = ""
    url: str | None = None


class Reports:
    """The reports of one API process: starts workers and knows their state."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._working: set[Path] = set()
        self._lock = threading.Lock()

    def path(self, model: str, start_ms: int) -> Path:
        """Where the HTML of a window's report lies; the model's name cannot lead elsewhere."""
        folder = hashlib.sha256(model.encode()).hexdigest()[:16]
        return self._settings.data_dir / "reports" / folder / f"{start_ms}.html"

    def state(self, model: str, start_ms: int) -> ReportState:
        """Return how far a window's report is."""
        path = self.path(model, start_ms)
        with self._lock:
            working = path in self._working
        if working:
            return ReportState(state="working", model=model, window_start_ms=start_ms)
        if path.exists():
            url = f"/v1/models/{model}/windows/{start_ms}/report.html"
            return ReportState(state="done", model=model, window_start_ms=start_ms, url=url)
        failed = path.with_suffix(".failed")
        if failed.exists():
            reason = failed.read_text(encoding="utf-8")
            return ReportState(state="failed", model=model, window_start_ms=start_ms, reason=reason)
        return ReportState(state="missing", model=model, window_start_ms=start_ms)

    def start(self, model: str, start_ms: int) -> ReportState:
        """Begin a report unless it is being made; returns at once."""
        path = self.path(model, start_ms)
        with self._lock:
            if path in self._working:
                return ReportState(state="working", model=model, window_start_ms=start_ms)
            if len(self._working) >= 8:
                raise TrimtabError("Eight reports are being made already. Ask again in a minute.")
            self._working.add(path)
        thread = threading.Thread(
            target=self._make, args=(model, start_ms, path), name="report", daemon=True
        )
        thread.start()
        return ReportState(state="working", model=model, window_start_ms=start_ms)

    def _make(self, model: str, start_ms: int, path: Path) -> None:
        failed = path.with_suffix(".failed")
        try:
            with _PARALLEL:
                failed.unlink(missing_ok=True)
                make_report(self._settings, model, start_ms, path)
        except TrimtabError as error:
            failed.parent.mkdir(parents=True, exist_ok=True)
            failed.write_text(str(error), encoding="utf-8")
        finally:
            with self._lock:
                self._working.discard(path)


def make_report(settings: Settings, model: str, start_ms: int, out: Path | None = None) -> Path:
    """Make a report in a process of its own and wait for it; return its path.

    Raises TrimtabError with what the worker said when it fails or takes too long.
    """
    path = (out or Reports(settings).path(model, start_ms)).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "trimtab.api.report_worker", model, str(start_ms), str(path)]
    try:
        done = subprocess.run(  # noqa: S603 - our own module, arguments are not a shell's
            command,
            env={**os.environ, **as_environment(settings)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=settings.api.report_timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TrimtabError(
            f"The report took longer than {settings.api.report_timeout_s:g} s and was stopped. "
            "Raise api.report_timeout_s."
        ) from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise TrimtabError(said[-1] if said else "The report's process died. Try it again.")
    return path
