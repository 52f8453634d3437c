"""The demo's client: a steady stream of images to `trimtab serve`, and their labels 2 s later.

It runs in a process of its own. Commands come as JSON lines on standard input: the camera's lens,
the pool of digits, and the rate (0 pauses). It ends when standard input closes. Every `REPORT_S` it
prints what it has sent as one JSON line.
"""

import http.client
import json
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import IO, Any

import msgspec
import numpy as np
from msgspec import Struct

from trimtab.sdk.stream import InferenceStream
from trimtab_agent.demo.camera import CLEAN, Lens
from trimtab_agent.demo.digits import Digits, Pool, pixels

LABEL_DELAY_S = 2.0
REPORT_S = 0.5
SENDERS = 4
REQUEST_TIMEOUT_S = 10.0


class Command(Struct, frozen=True):
    """What the client should do from now on."""

    lens: tuple[float, float, float] = (CLEAN.blur_sigma, CLEAN.contrast, CLEAN.noise)
    """Blur sigma in pixels, contrast factor, noise."""
    pool: Pool = "early"
    rate_hz: float = 100.0


class Options(Struct, frozen=True):
    """Where to send to."""

    model: str
    serve_host: str
    serve_port: int
    bootstrap: str
    api_version: str | None
    prefix: str
    seed: int


class Client:
    """Sends requests at a rate from a few threads, and labels after a delay."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._digits = Digits()
        self._rng = np.random.default_rng(options.seed)
        self._command = Command()
        self._images = self._stream_of(self._command)
        self._work: queue.Queue[tuple[str, bytes, str] | None] = queue.Queue(maxsize=200)
        self._due: deque[tuple[float, str, str]] = deque()
        self._counts = {"sent": 0, "answered": 0, "failed": 0, "labels": 0}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._stream = InferenceStream(
            options.model,
            "client",
            options.bootstrap,
            topic_prefix=options.prefix,
            api_version=options.api_version,
            instance="demo-client",
            resources_every_s=0,
        )

    def run(self, commands: IO[str], report: IO[str]) -> None:
        """Send until `commands` ends."""
        threading.Thread(target=self._listen, args=(commands,), daemon=True).start()
        senders = [threading.Thread(target=self._send, daemon=True) for _ in range(SENDERS)]
        for sender in senders:
            sender.start()
        try:
            self._pace(report)
        finally:
            for _ in senders:
                self._work.put(None)
            self._stream.close()

    def _listen(self, commands: IO[str]) -> None:
        for line in commands:
            command = msgspec.json.decode(line, type=Command)
            with self._lock:
                self._command = command
                self._images = self._stream_of(command)
        self._stop.set()

    def _stream_of(self, command: Command) -> Iterator[tuple[Any, str]]:
        return self._digits.stream(command.pool, Lens(*command.lens), self._rng)

    def _pace(self, report: IO[str]) -> None:
        due_s = report_s = time.monotonic()
        number = 0
        while not self._stop.is_set():
            now_s = time.monotonic()
            with self._lock:
                rate_hz, images = self._command.rate_hz, self._images
            if rate_hz > 0 and now_s >= due_s and not self._work.full():
                image, label = next(images)
                number += 1
                body = {
                    "id": f"{self._options.seed}-{number}",
                    "inputs": [
                        {
                            "name": "image",
                            "shape": [1, 64],
                            "datatype": "FP32",
                            "data": pixels(image),
                        }
                    ],
                }
                self._work.put((body["id"], msgspec.json.encode(body), label))  # type: ignore[arg-type]
                self._counts["sent"] += 1
                # Requests that could not be sent in time are not made up for in a burst.
                due_s = max(due_s + 1 / rate_hz, now_s - 0.2)
            self._send_labels(now_s)
            if now_s - report_s >= REPORT_S:
                report_s = now_s
                print(json.dumps(self._counts), file=report, flush=True)
            self._stop.wait(max(0.0, min(due_s - time.monotonic(), 0.005)))

    def _send_labels(self, now_s: float) -> None:
        while self._due and self._due[0][0] <= now_s:
            _, inference_id, label = self._due.popleft()
            self._stream.label(inference_id, label, source="outcome")
            self._counts["labels"] += 1

    def _send(self) -> None:
        options = self._options
        path = f"/v2/models/{options.model}/infer"
        connection = http.client.HTTPConnection(
            options.serve_host, options.serve_port, timeout=REQUEST_TIMEOUT_S
        )
        while (work := self._work.get()) is not None:
            inference_id, body, label = work
            try:
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
                answered = response.status == http.client.OK
            except (OSError, http.client.HTTPException):
                connection.close()
                answered = False
            with self._lock:
                self._counts["answered" if answered else "failed"] += 1
            if answered:
                self._due.append((time.monotonic() + LABEL_DELAY_S, inference_id, label))


def main() -> None:
    """Read the options from the first line of standard input, then commands."""
    options = msgspec.json.decode(sys.stdin.readline(), type=Options)
    Client(options).run(sys.stdin, sys.stdout)


if __name__ == "__main__":
    main()
