"""The pool of training workers: warm, spawned, single-threaded processes.

Each worker is a process of its own (`search.worker`) with one supervising thread here. A task is
submitted and answered by a future; the agent's tick never waits. A worker that crashes or runs too
long fails its task only, with the end of what it wrote to standard error, and is started again for
the next. When this process dies in any way, the pipes close and the workers exit.
"""

import collections
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import IO, Any

import msgspec

from trimtab.errors import TrimtabError
from trimtab_agent.recipes.base import Params, Trial
from trimtab_agent.recipes.data import DataRef
from trimtab_agent.search import protocol

OnReport = Callable[[int, float], bool]

_STDERR_LINES = 40
_STOP_WITHIN_S = 2.0
_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[protocol.FromWorker] = msgspec.json.Decoder(protocol.FromWorker)


class WorkerError(TrimtabError):
    """A worker could not do its task; the text holds the reason and what the worker wrote last."""


class _TaskFailedError(WorkerError):
    """The task raised in the worker, which is ready for the next."""


class WorkerTimeoutError(WorkerError):
    """The task took longer than allowed; its worker was ended."""


class WorkerStoppedError(WorkerError):
    """The pool was closed while the task ran or waited."""


class WorkerProcess:
    """One worker process and its pipes; used by one thread at a time, `kill` from any."""

    def __init__(self, *, niceness: int = 5) -> None:
        # Serving shares the machine, so training yields to it.
        self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            [sys.executable, "-m", "trimtab_agent.search.worker", str(niceness)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
        )
        self._inbox: queue.SimpleQueue[protocol.FromWorker | None] = queue.SimpleQueue()
        self._stderr: collections.deque[str] = collections.deque(maxlen=_STDERR_LINES)
        self._readers = [
            threading.Thread(target=self._read_messages, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def run(
        self,
        task: protocol.Task,
        *,
        timeout_s: float,
        on_report: OnReport | None = None,
        trial: Trial | None = None,
    ) -> dict[str, Any]:
        """Run one task to its result, answering its reports and suggestions.

        Raises:
            WorkerError: the task raised, or the process died.
            WorkerTimeoutError: it took longer than `timeout_s`.

        """
        try:
            return self._converse(task, time.monotonic() + timeout_s, on_report, trial)
        except queue.Empty:
            self.kill()
            raise WorkerTimeoutError(
                f"{type(task).__name__} took longer than {timeout_s:g} s and was ended; "
                "allow more time per trial, or make the space's models smaller"
            ) from None
        except _TaskFailedError:
            raise
        except BaseException:
            # It died, or a callback raised and it waits for an answer: nobody may use it again.
            self.kill()
            raise

    def _converse(
        self,
        task: protocol.Task,
        deadline: float,
        on_report: OnReport | None,
        trial: Trial | None,
    ) -> dict[str, Any]:
        """Exchange messages until the result; `queue.Empty` when the deadline passes."""
        self._send(task)
        while True:
            message = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            match message:
                case protocol.Done():
                    return message.result
                case protocol.Failed():
                    raise _TaskFailedError(message.reason)
                case protocol.Report():
                    prune = on_report(message.step, message.value) if on_report else False
                    self._send(protocol.Continue(prune=prune))
                case protocol.Suggest():
                    self._send(protocol.Suggested(value=_suggest(trial, message)))
                case None:
                    raise self._crashed()

    def is_alive(self) -> bool:
        """Tell whether the process runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process now."""
        self._process.kill()

    def close(self) -> None:
        """End the input, which ends the process; kill it when it does not."""
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                self._process.kill()
        try:
            self._process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for reader in self._readers:
            reader.join(_STOP_WITHIN_S)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _send(self, message: protocol.ToWorker) -> None:
        stream = _open(self._process.stdin)
        try:
            stream.write(_ENCODER.encode(message) + b"\n")
            stream.flush()
        except (BrokenPipeError, ValueError) as error:
            raise self._crashed() from error

    def _crashed(self) -> WorkerError:
        self._process.kill()
        code = self._process.wait()
        for reader in self._readers:
            reader.join(_STOP_WITHIN_S)
        tail = "\n".join(self._stderr)
        return WorkerError(
            f"the worker process ended with code {code} in the middle of its task"
            + (" (killed; the machine may be short of memory)" if code == -9 else "")
            + (f"; it wrote last:\n{tail}" if tail else "")
        )

    def _read_messages(self) -> None:
        stream = _open(self._process.stdout)
        while line := stream.readline(protocol.MAX_LINE_BYTES):
            try:
                self._inbox.put(_DECODER.decode(line))
            except msgspec.MsgspecError as error:
                self._inbox.put(protocol.Failed(reason=f"the worker sent no message: {error}"))
        self._inbox.put(None)

    def _read_stderr(self) -> None:
        stream = _open(self._process.stderr)
        while line := stream.readline(4096):
            self._stderr.append(line.decode("utf-8", "replace").rstrip())


class _Job:
    def __init__(
        self,
        task: protocol.Task,
        timeout_s: float,
        on_report: OnReport | None,
        trial: Trial | None,
    ) -> None:
        self.task = task
        self.timeout_s = timeout_s
        self.on_report = on_report
        self.trial = trial
        self.future: Future[dict[str, Any]] = Future()


class WorkerPool:
    """N workers that take tasks from one queue."""

    def __init__(self, workers: int = 1, *, niceness: int = 5, warm_timeout_s: float = 180) -> None:
        self._niceness = niceness
        self._warm_timeout_s = warm_timeout_s
        self._count = workers
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._processes: dict[int, WorkerProcess] = {}
        self._warmed: dict[int, str] = {}
        self._closed = False

    @property
    def workers(self) -> int:
        """How many tasks run at a time."""
        return self._count

    @property
    def pids(self) -> list[int]:
        """The ids of the live worker processes."""
        with self._lock:
            return [p.pid for p in self._processes.values() if p.is_alive()]

    @property
    def is_warm(self) -> bool:
        """Tell whether every worker has imported its framework."""
        return len(self._warmed) == self._count

    def warm(self) -> None:
        """Start the processes and the import of their framework, without waiting."""
        with self._lock:
            if self._closed:
                raise WorkerStoppedError("the pool is closed; make a new one")
            if self._threads:
                return
            for slot in range(self._count):
                thread = threading.Thread(
                    target=self._supervise, args=(slot,), name=f"worker-{slot}", daemon=True
                )
                self._threads.append(thread)
                thread.start()

    def submit(
        self,
        task: protocol.Task,
        *,
        timeout_s: float,
        on_report: OnReport | None = None,
        trial: Trial | None = None,
    ) -> Future[dict[str, Any]]:
        """Queue a task; `on_report` and `trial` are called in a supervising thread.

        The future raises `WorkerError` or one of its kinds.
        """
        self.warm()
        job = _Job(task, timeout_s, on_report, trial)
        self._jobs.put(job)
        return job.future

    def fit(
        self,
        recipe: protocol.RecipeRef,
        params: Params,
        data: DataRef,
        *,
        timeout_s: float,
        on_report: OnReport,
    ) -> protocol.FitResult:
        """Run one trial and wait for it."""
        task = protocol.Fit(recipe=recipe, params=params, data=data)
        done = self.submit(task, timeout_s=timeout_s, on_report=on_report).result()
        return msgspec.convert(done, protocol.FitResult)

    def space(self, recipe: protocol.RecipeRef, trial: Trial) -> Params:
        """Run a user's `space` in a worker against this trial, and wait for it."""
        task = protocol.AskSpace(recipe=recipe)
        return self.submit(task, timeout_s=self._warm_timeout_s, trial=trial).result()

    def close(self) -> None:
        """End all workers; tasks that run or wait raise `WorkerStoppedError`."""
        with self._lock:
            self._closed = True
            processes = list(self._processes.values())
        for process in processes:
            process.kill()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(_STOP_WITHIN_S * 2)
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                job.future.set_exception(WorkerStoppedError("the pool was closed"))

    def _supervise(self, slot: int) -> None:
        self._start_quietly(slot)
        while (job := self._jobs.get()) is not None:
            try:
                result = self._process(slot).run(
                    job.task, timeout_s=job.timeout_s, on_report=job.on_report, trial=job.trial
                )
            except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the task
                stopped = self._closed and not isinstance(error, WorkerStoppedError)
                job.future.set_exception(
                    WorkerStoppedError("the pool was closed") if stopped else error
                )
            else:
                job.future.set_result(result)
        with self._lock:
            process = self._processes.pop(slot, None)
        if process is not None:
            process.close()

    def _start_quietly(self, slot: int) -> None:
        """Warm ahead of the first task; what fails here fails again, and is told, with it."""
        try:
            self._process(slot)
        except WorkerError:
            self._warmed.pop(slot, None)

    def _process(self, slot: int) -> WorkerProcess:
        """Return the slot's live, warm worker; start one where there is none."""
        process = self._processes.get(slot)
        if process is not None and process.is_alive():
            if slot in self._warmed:
                return process
            process.kill()
        if process is not None:
            process.close()
        with self._lock:
            if self._closed:
                raise WorkerStoppedError("the pool was closed")
            process = self._processes[slot] = WorkerProcess(niceness=self._niceness)
        self._warmed.pop(slot, None)
        process.run(protocol.Warm(), timeout_s=self._warm_timeout_s)
        self._warmed[slot] = "keras"
        return process


def _suggest(trial: Trial | None, asked: protocol.Suggest) -> Any:
    """Let the trial choose; only its three methods can be reached."""
    if trial is None:
        raise WorkerError("the worker asked for a parameter outside a trial; report this as a bug")
    match asked.method:
        case "suggest_float":
            low, high = asked.args
            return trial.suggest_float(asked.name, low, high, log=asked.log)
        case "suggest_int":
            low, high = asked.args
            return trial.suggest_int(asked.name, low, high, log=asked.log)
        case "suggest_categorical":
            return trial.suggest_categorical(asked.name, asked.args[0])
        case _:
            raise WorkerError(f"a trial has no method {asked.method!r}")


def _environment() -> dict[str, str]:
    """Return the worker's environment: one thread each, and none of trimtab's own settings.

    Settings may hold secrets (database, broker, keys), which training code has no use for.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TRIMTAB_")
    }
    for name in (
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
    ):
        environment[name] = "1"
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return environment


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise WorkerError("a worker process has no pipe; report this as a bug")
    return stream
