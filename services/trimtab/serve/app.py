"""`trimtab serve`: Open Inference Protocol v2 over HTTP, one server for all models with a champion.

A request is answered, then its event goes to the SDK's bounded background queue: streaming never
blocks or fails a request. Which version answers is the traffic record's matter (`arms`, `traffic`).
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from litestar import Litestar, Request, Response, get, post
from litestar.exceptions import HTTPException
from litestar.params import FromPath, RawBody

from trimtab import __version__, logs, structs
from trimtab.artifacts import Manifest
from trimtab.errors import TrimtabError
from trimtab.events.oip import InferResponse, OipError, Tensor, decode_request, encode, rows_of
from trimtab.events.types import Scalar
from trimtab.ports import check_port
from trimtab.sdk.describe.image import grey_descriptors
from trimtab.sdk.stream import InferenceStream
from trimtab.serve.host import ModelHost
from trimtab.serve.inference import Answer, Inference, NotServedError
from trimtab.serve.predictor import InputError
from trimtab.serve.traffic import TrafficFollower, TrafficTable
from trimtab.settings import Settings

log = logs.get("serve")

UNIT_HEADER = "x-trimtab-unit"
BODY_BYTES_MAX = 32 * 1024 * 1024
EXTENSIONS = ["trimtab_traffic"]
_JSON = "application/json"


class Streams:
    """One background stream of events per model."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._streams: dict[str, InferenceStream] = {}
        self._lock = threading.Lock()

    def of(self, model: str, version: str) -> InferenceStream:
        """The model's stream; `version` names its resource events until another is promoted."""
        stream = self._streams.get(model)
        if stream is not None:
            stream.version = version
            return stream
        kafka, serve = self._settings.kafka, self._settings.serve
        with self._lock:
            if model not in self._streams:
                self._streams[model] = InferenceStream(
                    model,
                    version,
                    kafka.bootstrap,
                    topic_prefix=kafka.prefix,
                    instance=serve.instance or f"{socket.gethostname()}-{os.getpid()}",
                    api_version=kafka.api_version,
                    client=kafka.options,
                )
            return self._streams[model]

    def close(self) -> None:
        """Send what waits, within a bound."""
        for stream in self._streams.values():
            stream.close()


class Server:
    """What the routes share."""

    def __init__(self, settings: Settings) -> None:
        self.host = ModelHost()
        self.table = TrafficTable(on_taken=self.host.want, settled=self.host.settled)
        self.inference = Inference(self.table, self.host)
        self.streams = Streams(settings)

    def infer(self, model: str, body: bytes, unit: str | None) -> InferResponse:
        """Answer one request and stream its events.

        Raises:
            OipError, InputError: the request does not fit the model.
            NotServedError: nothing can answer it now.

        """
        traffic = self.inference.traffic(model)
        request = decode_request(body)
        request_id = request.id or uuid.uuid4().hex
        features = [spec.name for spec in self.inference.predictor(model).signature.features]
        rows = rows_of(request.inputs, features)
        _check_columns(rows, features)
        try:
            answer = self.inference.answer(model, rows, unit or request_id)
        except NotServedError as error:
            self._stream_failure(model, traffic.arms[0].version, request_id, str(error))
            raise
        self._stream(model, request_id, rows, answer)
        return _response(model, request_id, answer)

    def _stream(
        self, model: str, request_id: str, rows: list[dict[str, Scalar]], answer: Answer
    ) -> None:
        stream = self.streams.of(model, self.inference.traffic(model).arms[0].version)
        derived = derived_features(answer.predictor.manifest, rows)
        classes = answer.predictor.signature.classes
        fallback = answer.served.name != answer.assigned.name
        for index, row in enumerate(rows):
            values = row | {name: column[index] for name, column in derived.items()}
            scores = answer.prediction.scores[index]
            stream.log(
                values,
                answer.prediction.labels[index],
                id=row_id(request_id, index, len(rows)),
                version=answer.assigned.version,
                scores=dict(zip(classes, (round(float(s), 6) for s in scores), strict=True)),
                latency_ms=round(answer.latency_ms, 3),
                status=answer.status,
                error=answer.error,
                arm=answer.assigned.name,
                served_by=answer.served.name if fallback else None,
                traffic_revision=answer.traffic_revision,
            )

    def _stream_failure(self, model: str, version: str, request_id: str, error: str) -> None:
        stream = self.streams.of(model, version)
        stream.log(id=request_id, version=version, status="error", error=error)


def _check_columns(rows: Sequence[Mapping[str, Scalar]], features: Sequence[str]) -> None:
    missing = [name for name in features if name not in rows[0]]
    if missing:
        named = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise OipError(
            f"The request has no column for {named}. Send one tensor of shape "
            f"[n, {len(features)}], or one tensor per feature."
        )


def row_id(request_id: str, index: int, rows: int) -> str:
    """Inference id of one row: the request's id, with `-INDEX` when it has several rows."""
    return request_id if rows == 1 else f"{request_id}-{index}"


def derived_features(
    manifest: Manifest, rows: Sequence[Mapping[str, Scalar]]
) -> dict[str, list[float]]:
    """Descriptors of images, for models that take images; nothing for others."""
    shape = manifest.params.get("options", {}).get("shape")
    if manifest.recipe != "image-cnn" or not shape:
        return {}
    import numpy as np

    names = [spec.name for spec in manifest.signature.features]
    pixels = np.array([[row[name] for name in names] for row in rows], dtype=np.float64)
    return grey_descriptors(pixels.reshape(len(rows), *shape))


def _response(model: str, request_id: str, answer: Answer) -> InferResponse:
    labels = answer.prediction.labels
    classes = answer.predictor.signature.classes
    regression = not classes
    outputs = [
        Tensor(
            name="prediction",
            shape=[len(labels)],
            datatype="FP64" if regression else "BYTES",
            data=list(labels),
        )
    ]
    if not regression:
        scores = answer.prediction.scores
        outputs.append(
            Tensor(
                name="scores",
                shape=list(scores.shape),
                datatype="FP32",
                data=scores.ravel().tolist(),
                parameters={"classes": list(classes)},
            )
        )
    return InferResponse(
        model_name=model,
        model_version=answer.served.version,
        id=request_id,
        outputs=outputs,
        parameters={"arm": answer.assigned.name, "traffic_revision": answer.traffic_revision},
    )


# --- HTTP -----------------------------------------------------------------------------------------


def create_app(server: Server) -> Litestar:
    """The HTTP application over a server."""

    @get("/v2", sync_to_thread=False)
    def metadata() -> dict[str, Any]:
        return {"name": "trimtab", "version": __version__, "extensions": EXTENSIONS}

    @get(["/v2/health/live", "/healthz"], sync_to_thread=False)
    def live() -> dict[str, bool]:
        return {"live": True}

    @get(["/v2/health/ready", "/readyz"], sync_to_thread=False)
    def ready() -> Response[Any]:
        return _readiness([_ready(server, model) for model in server.table.models()])

    @get("/v2/models/{model:str}/ready", sync_to_thread=False)
    def model_ready(model: FromPath[str]) -> Response[Any]:
        return _readiness([_ready(server, model)])

    @get("/v2/models/{model:str}", sync_to_thread=False)
    def model_metadata(model: FromPath[str]) -> dict[str, Any]:
        signature = server.inference.predictor(model).signature
        return {
            "name": model,
            "versions": [arm.version for arm in server.inference.traffic(model).arms],
            "platform": "keras",
            "inputs": msgspec.to_builtins(signature.inputs),
            "outputs": msgspec.to_builtins(signature.outputs),
        }

    @get("/v2/models/{model:str}/traffic", sync_to_thread=False)
    def model_traffic(model: FromPath[str]) -> dict[str, Any]:
        traffic = server.inference.traffic(model)
        return {
            "model": model,
            "revision": traffic.revision,
            "valid_until_ms": traffic.valid_until_ms,
            "arms": [
                {"name": arm.name, "version": arm.version, "weight": arm.weight}
                for arm in traffic.arms
            ],
            "served": server.inference.shares(model),
        }

    @post("/v2/models/{model:str}/infer", status_code=200, sync_to_thread=True)
    def infer(
        request: Request[Any, Any, Any], model: FromPath[str], body: RawBody
    ) -> Response[bytes]:
        answer = server.infer(model, body, request.headers.get(UNIT_HEADER))
        return Response(encode(answer), media_type=_JSON)

    return Litestar(
        route_handlers=[
            metadata,
            live,
            ready,
            model_ready,
            model_metadata,
            model_traffic,
            infer,
        ],
        exception_handlers={TrimtabError: _refuse, HTTPException: _refuse_http},
        request_max_body_size=BODY_BYTES_MAX,
        openapi_config=None,
        logging_config=None,  # trimtab.logs has set it up
    )


def _ready(server: Server, model: str) -> str | None:
    """Why the model cannot be served now; None when it can."""
    try:
        server.inference.predictor(model)
    except NotServedError as error:
        return str(error)
    return None


def _readiness(problems: list[str | None]) -> Response[Any]:
    reasons = [problem for problem in problems if problem] or (
        [] if problems else ["no model has a champion yet"]
    )
    return Response({"ready": not reasons, "reasons": reasons}, status_code=503 if reasons else 200)


def _refuse(_request: Request[Any, Any, Any], error: TrimtabError) -> Response[bytes]:
    status = {OipError: 400, InputError: 400, NotServedError: 503}.get(type(error), 500)
    return Response(_error_body(str(error)), status_code=status, media_type=_JSON)


def _refuse_http(_request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    return Response(_error_body(error.detail), status_code=error.status_code, media_type=_JSON)


def _error_body(text: str) -> bytes:
    return msgspec.json.encode({"error": text})


def run_serve(
    settings: Settings, stop: threading.Event, ready: Callable[[], None] | None = None
) -> None:
    """Serve until `stop` is set. Raises TrimtabError at once when the port is taken."""
    import uvicorn
    from kafka import KafkaConsumer

    structs.prepare()
    check_port("serve", settings.serve.host, settings.serve.port)
    server = Server(settings)
    kafka = settings.kafka

    def consumer() -> KafkaConsumer:
        # Of its own, without a group: every instance reads every split.
        own = {"group_id": None, "enable_auto_commit": False}
        return KafkaConsumer(**kafka.client_options(), **own)

    follower = TrafficFollower(server.table, kafka.topic("traffic"), consumer)
    server.host.start()
    follower.start()
    http = uvicorn.Server(
        uvicorn.Config(
            create_app(server),
            host=settings.serve.host,
            port=settings.serve.port,
            log_config=None,
            access_log=False,
            lifespan="on",
        )
    )
    thread = threading.Thread(target=http.run, name="http", daemon=True)
    thread.start()
    while not http.started and thread.is_alive():
        time.sleep(0.02)
    if not thread.is_alive():
        raise TrimtabError(
            f"{settings.serve.host}:{settings.serve.port} cannot be listened on. Set serve.port."
        )
    log.info("serving", action="serve_started", port=settings.serve.port)
    if ready:
        ready()
    while not stop.wait(0.5) and thread.is_alive():
        pass
    http.should_exit = True
    thread.join(10)
    follower.stop()
    server.host.stop()
    server.streams.close()
