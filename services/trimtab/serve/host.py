"""Loaded models of this server: verified artifacts, loaded in the background, dropped when unused.

Loading takes seconds and must not hold up requests, so one thread loads whatever the newest traffic
records name and lets go of what none names any more. A split takes effect once its arms are loaded, or
cannot be (then the champion answers for the challenger, and the event says so).
"""

import queue
import threading
from pathlib import Path
from urllib.parse import unquote, urlparse

import structlog

from trimtab.errors import TrimtabError
from trimtab.events.types import Traffic, TrafficArm
from trimtab.serve.predictor import Predictor, load_predictor

log = structlog.get_logger(__name__)


class ArtifactLocationError(TrimtabError):
    """An artifact's URI is not one this server can open."""


def local_path(uri: str) -> Path:
    """Directory behind an artifact's URI: a plain path or `file://`.

    Raises:
        ArtifactLocationError: another scheme, which would need a download.

    """
    parsed = urlparse(uri)
    if parsed.scheme not in ("", "file"):
        raise ArtifactLocationError(
            f"{uri} is not on this machine; mount the artifact store and register the version "
            "with its path or a file:// URI"
        )
    return Path(unquote(parsed.path)) if parsed.scheme == "file" else Path(uri)


class ModelHost:
    """Predictors by artifact digest. `get` never blocks; `want` asks for what should be loaded."""

    def __init__(self) -> None:
        self._loaded: dict[str, Predictor] = {}
        self._failed: dict[str, str] = {}
        self._wanted: dict[str, set[str]] = {}
        self._newest: dict[str, int] = {}
        """Per model, the newest traffic revision that was wanted."""
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[TrafficArm | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model-loader", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the load in progress."""
        self._work.put(None)
        self._thread.join(30)

    def want(self, traffic: Traffic) -> None:
        """Load the arms of the record.

        What failed before is tried again: records are renewed every minute, and an artifact store
        may have been away.
        """
        with self._lock:
            self._newest[traffic.model] = traffic.revision
            # The arms before stay as well: they answer until the new ones can.
            self._wanted[traffic.model] = {arm.artifact_sha256 for arm in traffic.arms} | {
                sha256 for sha256 in self._wanted.get(traffic.model, ()) if sha256 in self._loaded
            }
            for arm in traffic.arms:
                self._failed.pop(arm.artifact_sha256, None)
        for arm in traffic.arms:
            self._work.put(arm)

    def get(self, arm: TrafficArm) -> Predictor | None:
        """The arm's predictor, or None while it is loading or after it failed."""
        return self._loaded.get(arm.artifact_sha256)

    def settled(self, traffic: Traffic) -> bool:
        """Whether every arm is loaded, or could not be; then nothing more is kept than it needs."""
        arms = {arm.artifact_sha256 for arm in traffic.arms}
        if not all(sha256 in self._loaded or sha256 in self._failed for sha256 in arms):
            return False
        with self._lock:
            if self._newest.get(traffic.model, traffic.revision) > traffic.revision:
                return True  # a newer record is loading: it says what is kept
            self._wanted[traffic.model] = arms
            keep = set().union(*self._wanted.values())
            self._loaded = {sha: model for sha, model in self._loaded.items() if sha in keep}
        return True

    def failure(self, arm: TrafficArm) -> str | None:
        """Why the arm could not be loaded, if so."""
        return self._failed.get(arm.artifact_sha256)

    def _run(self) -> None:
        while (arm := self._work.get()) is not None:
            sha256 = arm.artifact_sha256
            if sha256 in self._loaded or sha256 in self._failed:
                continue
            try:
                predictor = load_predictor(local_path(arm.artifact_uri), sha256)
                predictor.warm_up()
            except Exception as error:  # a bad artifact must not end the loader
                log.exception("model not loaded", action="model_load_failed", version=arm.version)
                with self._lock:
                    self._failed[sha256] = f"{type(error).__name__}: {error}"
                continue
            with self._lock:
                if any(sha256 in wanted for wanted in self._wanted.values()):
                    self._loaded[sha256] = predictor
            log.info("model loaded", action="model_loaded", version=arm.version, sha256=sha256[:12])
