"""Answering one request: choose the arm, predict, fall back, and say what happened.

A challenger that is not loaded, or that fails, is answered for by the champion. The event keeps the
arm that the request was *assigned* to and has status `error`, because harm counted by the arm that
answered is never found (a failing challenger would look unused, not bad).
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from msgspec import Struct

from trimtab.clock import now_ms
from trimtab.errors import TrimtabError
from trimtab.events.types import Status, Traffic, TrafficArm
from trimtab.serve.arms import assign
from trimtab.serve.host import ModelHost
from trimtab.serve.predictor import Prediction, Predictor, Row
from trimtab.serve.traffic import TrafficTable

log = structlog.get_logger(__name__)


class NotServedError(TrimtabError):
    """No version of the model can answer now."""


class Answer(Struct, frozen=True, kw_only=True):
    """What a request got, and how."""

    assigned: TrafficArm
    served: TrafficArm
    traffic_revision: int
    predictor: Predictor
    prediction: Prediction
    status: Status
    error: str | None
    latency_ms: float


class Inference:
    """The server's answer to a batch of rows, by model name. Safe to call from several threads."""

    def __init__(
        self, table: TrafficTable, host: ModelHost, clock_ms: Callable[[], int] | None = None
    ) -> None:
        self._table = table
        self._host = host
        self._clock_ms = clock_ms or now_ms
        self._served: Counter[tuple[str, int, str, str]] = Counter()
        self._lock = threading.Lock()

    def traffic(self, model: str) -> Traffic:
        """The model's current split.

        Raises:
            NotServedError: none is known.

        """
        traffic = self._table.current(model)
        if traffic is None:
            known = ", ".join(self._table.models()) or "none yet"
            raise NotServedError(
                f"no version of {model!r} is in production (models served: {known}); "
                f"name one with: trimtab model champion {model} VERSION ARTIFACT"
            )
        return traffic

    def predictor(self, model: str) -> Predictor:
        """The champion's predictor.

        Raises:
            NotServedError: it is not loaded.

        """
        return self._champion(self.traffic(model))[1]

    def answer(self, model: str, rows: Sequence[Row], unit: str) -> Answer:
        """Predict `rows` for the unit of routing `unit`.

        Raises:
            NotServedError: neither the assigned arm nor the champion can answer.
            InputError: the rows do not fit the model's signature.

        """
        traffic = self.traffic(model)
        assigned = assign(traffic, unit, self._clock_ms())
        started = time.perf_counter()
        served, predictor, error = assigned, self._host.get(assigned), None
        prediction = None
        if predictor is None:
            error = self._host.failure(assigned) or "not loaded yet"
        else:
            try:
                prediction = predictor.predict(rows)
            except TrimtabError:
                raise  # the request is at fault, not the model
            except Exception as failure:  # noqa: BLE001 - a model may fail in any way
                error = f"{type(failure).__name__}: {failure}"
        if prediction is None:
            if assigned.name == traffic.arms[0].name:
                raise NotServedError(f"version {assigned.version} of {model!r} failed: {error}")
            served, predictor = self._champion(traffic)
            prediction = predictor.predict(rows)
            error = f"{assigned.name} {assigned.version}: {error}; the champion answered"
        if predictor is None:  # pragma: no cover - a prediction comes from a predictor
            raise NotServedError(f"{model!r} has no loaded version")
        latency_ms = (time.perf_counter() - started) * 1000
        with self._lock:
            self._served[model, traffic.revision, assigned.name, served.name] += len(rows)
        return Answer(
            assigned=assigned,
            served=served,
            traffic_revision=traffic.revision,
            predictor=predictor,
            prediction=prediction,
            status="ok" if error is None else "error",
            error=error,
            latency_ms=latency_ms,
        )

    def shares(self, model: str) -> list[dict[str, Any]]:
        """Rows answered since the start, per revision, assigned arm and arm that answered."""
        with self._lock:
            counts = {key: rows for key, rows in self._served.items() if key[0] == model}
        totals: Counter[int] = Counter()
        for (_, revision, _, _), rows in counts.items():
            totals[revision] += rows
        return [
            {
                "traffic_revision": revision,
                "assigned": assigned,
                "served_by": served,
                "rows": rows,
                "share": rows / totals[revision],
            }
            for (_, revision, assigned, served), rows in sorted(counts.items())
        ]

    def _champion(self, traffic: Traffic) -> tuple[TrafficArm, Predictor]:
        champion = traffic.arms[0]
        predictor = self._host.get(champion)
        if predictor is None:
            why = self._host.failure(champion) or "it is still loading; try again"
            raise NotServedError(
                f"version {champion.version} of {traffic.model!r} is not ready: {why}"
            )
        return champion, predictor
