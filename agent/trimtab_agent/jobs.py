"""Work that takes longer than a tick may: started once by key, asked for at later ticks.

Nothing here is remembered across a crash: whoever starts a job looks up first whether its effect is
there already.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol


class Jobs(Protocol):
    """Runs work aside."""

    def poll(self, key: str, work: Callable[[], Any]) -> tuple[bool, Any]:
        """Start `work` under `key` unless it runs; (done, result). Raises what the work raised.

        A result or an error is given once; the next call starts the work anew.
        """
        ...

    def close(self) -> None:
        """Wait for what runs and take no more."""
        ...


class BackgroundJobs:
    """Jobs on a few daemon-like threads; importing MLflow takes 8 s, which no tick may wait for."""

    def __init__(self, threads: int = 2) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="agent-job")
        self._running: dict[str, Future[Any]] = {}

    def poll(self, key: str, work: Callable[[], Any]) -> tuple[bool, Any]:
        """See `Jobs`."""
        future = self._running.get(key)
        if future is None:
            self._running[key] = self._pool.submit(work)
            return False, None
        if not future.done():
            return False, None
        del self._running[key]
        return True, future.result()

    def close(self) -> None:
        """See `Jobs`."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class InlineJobs:
    """Jobs done at once, in the tick: for scripts and tests."""

    def poll(self, key: str, work: Callable[[], Any]) -> tuple[bool, Any]:  # noqa: ARG002
        """See `Jobs`."""
        return True, work()

    def close(self) -> None:
        """Nothing runs."""
