"""What this process uses, from the standard library alone."""

import os
import shutil
import sys
import time
from pathlib import Path

from trimtab.events.types import ResourceSample


class ResourceSampler:
    """Samples processor, memory and disk use; processor use is over the time since the last call.

    `cpu_percent` is of this process over the cores it may use; `memory_bytes` is its resident set;
    `disk_percent` is of the file system that holds `disk_path`.
    """

    def __init__(self, disk_path: str = "/") -> None:
        self._disk_path = disk_path
        self._cpu_s, self._at_s = _cpu_seconds(), time.monotonic()

    def sample(self, queue_depth: int | None = None) -> ResourceSample:
        """Return the gauges now. A gauge that this system does not give is None."""
        cpu_s, at_s = _cpu_seconds(), time.monotonic()
        elapsed_s = at_s - self._at_s
        share = (cpu_s - self._cpu_s) / (elapsed_s * _cores()) if elapsed_s > 0 else 0.0
        self._cpu_s, self._at_s = cpu_s, at_s
        return ResourceSample(
            cpu_percent=round(100.0 * min(max(share, 0.0), 1.0), 2),
            memory_bytes=_memory_bytes(),
            disk_percent=self._disk_percent(),
            queue_depth=queue_depth,
        )

    def _disk_percent(self) -> float | None:
        try:
            usage = shutil.disk_usage(self._disk_path)
        except OSError:
            return None  # a path that this container hides: a gauge less, not a fault
        return round(100.0 * usage.used / usage.total, 2) if usage.total else None


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass  # no /proc: the peak is the best that the standard library knows
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
