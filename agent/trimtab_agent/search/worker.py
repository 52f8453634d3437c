"""A training worker: `python -m trimtab_agent.search.worker`, started by the pool.

It takes tasks as JSON lines on standard input and answers on standard output (see `protocol`).
What libraries print goes to standard error. A thread reads the input, so that its end is noticed in
the middle of a fit: then the process exits at once, whatever killed the agent. Frameworks are
imported here and nowhere else in the agent.
"""

import math
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

import trimtab
from trimtab.artifacts import artifact_bytes, artifact_digest, verify_artifact, write_manifest
from trimtab.serve.predictor import Predictor, limit_threads, load_predictor
from trimtab_agent.recipes.base import Recipe, recipe
from trimtab_agent.recipes.data import DataRef, TrainingData, load_data
from trimtab_agent.search import protocol
from trimtab_agent.search.space import apply_data_part

EXIT_AT_END_OF_INPUT = 3
_DATA_KEPT = 4
_TIMED_ROWS = 100
_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[protocol.ToWorker] = msgspec.json.Decoder(protocol.ToWorker)


class Channel:
    """The two pipes to the agent."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source = source
        self._sink = sink
        self._inbox: queue.SimpleQueue[protocol.ToWorker] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="input", daemon=True).start()

    def send(self, message: protocol.FromWorker) -> None:
        """Write one line; the agent's end being gone ends the process."""
        try:
            self._sink.write(_ENCODER.encode(message) + b"\n")
            self._sink.flush()
        except BrokenPipeError:
            os._exit(EXIT_AT_END_OF_INPUT)

    def receive(self) -> protocol.ToWorker:
        """Wait for the next message."""
        return self._inbox.get()

    def _read(self) -> None:
        while line := self._source.readline(protocol.MAX_LINE_BYTES):
            self._inbox.put(_DECODER.decode(line))
        os._exit(EXIT_AT_END_OF_INPUT)


class RemoteTrial:
    """A trial whose parameters the agent chooses over the pipe."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Ask for a float."""
        return float(self._ask("suggest_float", name, [low, high], log))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Ask for an integer."""
        return int(self._ask("suggest_int", name, [low, high], log))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Ask for one of the choices."""
        return self._ask("suggest_categorical", name, [list(choices)], log=False)

    def _ask(self, method: str, name: str, args: list[Any], log: bool) -> Any:
        self._channel.send(protocol.Suggest(method=method, name=name, args=args, log=log))
        answer = self._channel.receive()
        if not isinstance(answer, protocol.Suggested):
            raise TypeError(f"expected the answer to a suggestion, got {type(answer).__name__}")
        return answer.value


class Worker:
    """Runs tasks one after another."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._data: dict[str, TrainingData] = {}

    def run(self, task: protocol.ToWorker) -> Any:
        """Run one task and return its result."""
        match task:
            case protocol.Warm():
                return warm(task.framework)
            case protocol.AskSpace():
                return _recipe(task.recipe).space(RemoteTrial(self._channel))
            case protocol.Fit():
                return self._fit(task)
            case protocol.FitFinal():
                return self._fit_final(task)
            case protocol.Evaluate():
                return self._evaluate(task)
            case _:
                raise TypeError(f"{type(task).__name__} is an answer, not a task")

    def _fit(self, task: protocol.Fit) -> protocol.FitResult:
        started = time.perf_counter()
        data = apply_data_part(task.params, self._load(task.data))
        values: list[tuple[float, int]] = []
        pruned = False

        def report(step: int, value: float) -> bool:
            nonlocal pruned
            if not math.isfinite(value):
                raise ValueError(f"the value of step {step} is {value}; lower the learning rate")
            values.append((float(value), -step))
            self._channel.send(protocol.Report(step=step, value=float(value)))
            answer = self._channel.receive()
            pruned = isinstance(answer, protocol.Continue) and answer.prune
            return pruned

        with tempfile.TemporaryDirectory(prefix="trimtab-trial-") as folder:
            _recipe(task.recipe).fit(task.params, data, Path(folder), report)
        if not values:
            raise ValueError("the recipe's fit reported no value; call report(step, value)")
        value, negative_step = max(values)
        return protocol.FitResult(
            value=value,
            best_step=-negative_step,
            pruned=pruned,
            seconds=time.perf_counter() - started,
            rows=len(data),
        )

    def _fit_final(self, task: protocol.FitFinal) -> protocol.ArtifactResult:
        """Build beside the target and rename, so that a target is always complete."""
        started = time.perf_counter()
        target = Path(task.out_dir)
        everything = self._load(task.data)
        # Nothing is held out any more: the step to stop at is known from the trial.
        data = apply_data_part(
            task.params,
            replace(everything, validation=np.zeros(len(everything), dtype=np.bool_)),
        )
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            try:
                params = {**task.params, "steps": task.steps}
                made = _recipe(task.recipe)
                made.fit(params, data, building, lambda _step, _value: False)
                write_manifest(
                    building,
                    recipe=task.recipe.name,
                    framework=made.framework,
                    signature=data.signature,
                    params={**params, "options": dict(task.recipe.options)},
                    created_ms=task.created_ms,
                    code_version=trimtab.__version__,
                )
                building.rename(target)
            finally:
                shutil.rmtree(building, ignore_errors=True)
        sha256 = artifact_digest(target)
        manifest = verify_artifact(target, sha256)
        return protocol.ArtifactResult(
            path=str(target),
            sha256=sha256,
            size_bytes=artifact_bytes(manifest),
            seconds=time.perf_counter() - started,
            rows=len(data),
        )

    def _evaluate(self, task: protocol.Evaluate) -> protocol.EvaluateResult:
        data = self._load(task.data)
        predictor = _load_predictor(task)
        predictor.warm_up()
        timed_ms = []
        for start in range(min(len(data), _TIMED_ROWS)):
            began = time.perf_counter()
            predictor.predict(data.features[start : start + 1])
            timed_ms.append((time.perf_counter() - began) * 1000)
        prediction = predictor.predict(data.features)
        if data.task == "regression":
            predicted = np.asarray(prediction.labels, dtype=np.float64)
            spread = float(np.var(data.labels)) or 1.0
            value = 1.0 - float(np.mean((predicted - data.labels) ** 2)) / spread
        else:
            # The model may know other classes than the data; what the data lacks is −1.
            codes = {name: code for code, name in enumerate(data.classes)}
            predicted = np.array([codes.get(str(x), -1) for x in prediction.labels], dtype=np.int64)
            value = float(np.mean(predicted == data.labels))
        out = Path(task.out_file)
        temporary = out.with_name(f".{out.name}.part")
        with temporary.open("wb") as file:
            np.savez(
                file,
                predicted=predicted,
                scores=prediction.scores,
                labels=data.labels,
                event_time_ms=data.event_time_ms,
            )
        temporary.replace(out)
        return protocol.EvaluateResult(
            path=str(out),
            rows=len(data),
            value=value,
            one_row_median_ms=float(np.median(timed_ms)),
            artifact_bytes=artifact_bytes(predictor.manifest),
        )

    def _load(self, ref: DataRef) -> TrainingData:
        """Read a data file once; its hash names it."""
        if ref.sha256 not in self._data:
            while len(self._data) >= _DATA_KEPT:
                self._data.pop(next(iter(self._data)))
            self._data[ref.sha256] = load_data(ref)
        return self._data[ref.sha256]


def warm(framework: str) -> dict[str, Any]:
    """Import the framework and run it once."""
    started = time.perf_counter()
    if framework == "keras":
        limit_threads()
        import keras

        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(optimizer="adam", loss="mean_squared_error")
        model.fit(np.zeros((4, 2)), np.zeros(4), epochs=1, verbose=0)
    return {"seconds": time.perf_counter() - started}


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Take tasks until the input ends, which ends the process."""
    channel = Channel(source, sink)
    worker = Worker(channel)
    while True:
        task = channel.receive()
        try:
            channel.send(protocol.Done(result=msgspec.to_builtins(worker.run(task))))
        except Exception as error:  # noqa: BLE001 - any failure of user code is the task's answer
            traceback.print_exc()
            channel.send(protocol.Failed(reason=f"{type(error).__name__}: {error}"))


def main() -> None:
    """Keep the pipe for messages alone and serve; the one argument is the niceness to add."""
    os.nice(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    # Ctrl-C reaches the whole terminal group; the agent decides when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, sink)


def _recipe(ref: protocol.RecipeRef) -> Recipe:
    return recipe(ref.name, ref.options)


def _load_predictor(task: protocol.Evaluate) -> Predictor:
    """Load what `serve` can load as it would, anything else through its recipe."""
    directory = Path(task.artifact_dir)
    manifest = verify_artifact(directory, task.sha256)
    if manifest.framework == "keras":
        return load_predictor(directory, task.sha256)
    score = _recipe(task.recipe).load(directory, len(manifest.signature.features))
    return Predictor(manifest, task.sha256, score)


if __name__ == "__main__":
    main()
