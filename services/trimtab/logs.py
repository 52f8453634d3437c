"""Log lines: each has a stable `action`; its text may change, its action may not.

    log = logs.get("monitor")
    log.info("flushed 20,000 rows", action="partition_flushed", rows=20_000)

Console or JSON, to standard error. Values under a name that sounds like a secret are masked.
"""

import logging
import sys
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, WrappedLogger

from trimtab.settings import MASK

_SECRET_WORDS = ("password", "secret", "token", "authorization", "cookie", "credential")
_ALLOWED = frozenset({"lease_token", "fencing_token"})
_QUIET = ("kafka", "httpx", "httpcore", "alembic", "apscheduler", "uvicorn.access")


def mask_secrets(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Mask every value whose name sounds like a secret, at any depth of tables."""
    return {key: _mask(key, value) for key, value in line.items()}


def _mask(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _mask(str(name), item) for name, item in value.items()}
    lowered = key.lower()
    secret = any(word in lowered for word in _SECRET_WORDS) and lowered not in _ALLOWED
    return MASK if secret and not isinstance(value, int) else value


def set_up(
    level: Literal["debug", "info", "warning", "error"] = "info",
    format: Literal["console", "json"] = "console",  # noqa: A002 - the setting's name
) -> None:
    """Configure structlog and the standard library's logging for this process."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        mask_secrets,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # The default prints the frames' local variables, secrets among them.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    last: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if format == "json":
        last.append(structlog.processors.format_exc_info)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, _foreign_action], processors=[*last, renderer]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("kafka.cluster").addFilter(_ONCE_PER_TOPIC)


class OncePerTopic(logging.Filter):
    """Lets kafka-python say that a topic is missing once, not with every look at the metadata.

    It says so again when it was quiet for `AGAIN_S`: by then the topic had come and gone.
    """

    AGAIN_S = 900.0
    """Above the longest pause of whoever keeps asking (the outbox relay: 300 s)."""

    def __init__(self) -> None:
        super().__init__()
        self._last_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is news."""
        if record.msg != "Topic %s not found in cluster metadata":
            return True
        text = record.getMessage()
        before_s = self._last_s.get(text)
        self._last_s[text] = record.created
        return before_s is None or record.created - before_s > self.AGAIN_S


_ONCE_PER_TOPIC = OncePerTopic()


def _foreign_action(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Lines of libraries have an action, too, so that a filter by action loses nothing."""
    line.setdefault("action", "library")
    return line


def get(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a part, such as "monitor"."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(f"trimtab.{name}")
    return logger
