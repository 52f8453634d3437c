"""Process settings: how a process runs, never how a model is judged (that is the contract's).

Precedence: flag > environment (`TRIMTAB_*`, nested by `__`) > `trimtab.toml` > default. The file is
the one `--config` or `TRIMTAB_CONFIG` names, else `./trimtab.toml` where it exists. Settings are
frozen; a key nobody knows is an error that names its line, so that a typo never changes nothing.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from trimtab.detect.budget import parse_budget
from trimtab.errors import TrimtabError

PREFIX = "TRIMTAB_"
FILE_VARIABLE = "TRIMTAB_CONFIG"
DEFAULT_FILE = "trimtab.toml"
MASK = "********"
_FREE_TABLES = frozenset({"kafka.options", "kafka.consumer", "webhooks"})
_SECRET_WORDS = ("password", "secret", "token", "credential", "private")


class SettingsError(TrimtabError):
    """A setting cannot be used; the text names where it was set and what was expected."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoreSettings(_Section):
    """The SQL database."""

    url: str = ""
    """`sqlite:///path` or `postgresql://user:password@host/name`; default: in `data_dir`."""

    @field_validator("url")
    @classmethod
    def _known(cls, url: str) -> str:
        try:
            backend = make_url(url).get_backend_name()
        except ArgumentError:
            backend = ""
        if backend not in {"sqlite", "postgresql"}:
            raise ValueError("expected sqlite:///path or postgresql://user:password@host/name")
        return url


class KafkaSettings(_Section):
    """The broker, the topics and the consumer group."""

    bootstrap: str = "127.0.0.1:9092"
    api_version: str | None = None
    """Such as "2.1"; None lets the client ask the broker."""
    identity: str | None = None
    """Stands for the cluster id where the broker has none (the embedded one)."""
    prefix: str = "trimtab"
    group: str = "trimtab-monitor"
    inference_topics: tuple[str, ...] = ()
    """Default: `{prefix}.inference`."""
    label_topics: tuple[str, ...] = ()
    resource_topics: tuple[str, ...] = ()
    client: Literal["kafka-python", "confluent-kafka"] = "kafka-python"
    """What the monitor and the archive read with; producers always use kafka-python."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further options of every Kafka client in kafka-python's names, such as `security_protocol`."""
    consumer: dict[str, Any] = Field(default_factory=dict)
    """Further options of consumers only, such as `group_instance_id` or `session_timeout_ms`."""

    def topic(self, name: str) -> str:
        """Full name of our topic `name`, such as "inference" or "outcomes"."""
        return f"{self.prefix}.{name}"

    @property
    def version(self) -> tuple[int, ...] | None:
        """`api_version` as the client wants it."""
        return (
            tuple(int(part) for part in self.api_version.split(".")) if self.api_version else None
        )

    def client_options(self) -> dict[str, Any]:
        """Options that every Kafka client shares, in kafka-python's names; `options` wins."""
        options: dict[str, Any] = {"bootstrap_servers": self.bootstrap}
        if self.version is not None:
            options["api_version"] = self.version
        return options | self.options

    def consumer_options(self) -> dict[str, Any]:
        """Options of every consumer; `consumer` wins."""
        return self.client_options() | self.consumer

    @field_validator("api_version")
    @classmethod
    def _numbers(cls, version: str | None) -> str | None:
        if version and not all(part.isdigit() for part in version.split(".")):
            raise ValueError('expected a version such as "2.1"')
        return version or None

    @model_validator(mode="after")
    def _default_topics(self) -> "KafkaSettings":
        for field, name in (
            ("inference_topics", "inference"),
            ("label_topics", "labels"),
            ("resource_topics", "resources"),
        ):
            if not getattr(self, field):
                object.__setattr__(
                    self, field, (self.topic(name),)
                )  # frozen: only while it is made
        return self


class MonitorSettings(_Section):
    """The ingest loop."""

    flush_rows: int = Field(default=50_000, ge=1)
    flush_s: float = Field(default=1.0, gt=0)
    poll_records: int = Field(default=5_000, ge=1)
    shards: int = Field(default=1, ge=1, le=256)
    """Hash shards of the label joiner."""
    workers: int = Field(default=1, ge=1, le=64)
    """Monitors on this machine, each a process of its own and a member of the group."""
    lease_s: float = Field(default=30.0, ge=1)
    """How long evaluator and relay of a dead replica keep others from taking over."""
    metrics_port: int = Field(default=0, ge=0, le=65_535)
    """Port of the monitor's own Prometheus figures on 127.0.0.1; 0: none."""


class AlarmSettings(_Section):
    """What all models together may raise."""

    false_alarms: str = "4 per 30 days"
    """The budget of the fleet: split over the models whose contracts state none."""

    @field_validator("false_alarms")
    @classmethod
    def _budget(cls, text: str) -> str:
        try:
            parse_budget(text)
        except TrimtabError as error:
            raise ValueError(str(error)) from error
        return text


class RetentionSettings(_Section):
    """How long states are kept, in a model's event time."""

    panes_hours: int = Field(default=48, ge=1)
    hours_days: int = Field(default=30, ge=1)
    days_years: int = Field(default=2, ge=1)
    labels_days: int = Field(default=30, ge=1)
    samples_days: int = Field(default=7, ge=1)
    rejected_days: int = Field(default=7, ge=1)
    outbox_days: int = Field(default=7, ge=1)


class ArchiveSettings(_Section):
    """Parquet files for retraining."""

    dir: Path = Path()
    """Default: `archive` in `data_dir`."""
    flush_rows: int = Field(default=50_000, ge=1)
    flush_s: float = Field(default=10.0, gt=0)
    group: str = "trimtab-archive"


class RegistrySettings(_Section):
    """The model registry (MLflow)."""

    uri: str = ""
    """Default: an SQLite file in `data_dir`."""
    artifacts: Path = Path()
    """Default: `artifacts` in `data_dir`."""


class AgentSettings(_Section):
    """The scheduled agent."""

    tick_s: float = Field(default=5.0, gt=0)
    workers: int = Field(default=1, ge=1, le=64)
    """Training processes."""
    lease_s: float = Field(default=30.0, gt=0)


class ApiSettings(_Section):
    """The HTTP API and the dashboard."""

    host: str = "127.0.0.1"
    port: int = Field(default=8600, ge=0, le=65_535)
    open_metrics: bool = False
    """Whether /metrics answers without a key."""
    max_body_bytes: int = Field(default=1_000_000, ge=1_000)
    request_timeout_s: float = Field(default=30.0, gt=0)
    cookie_days: float = Field(default=7.0, gt=0)
    """How long a login in the browser lasts."""
    secure_cookie: bool = False
    """Set it where the dashboard is behind TLS."""
    report_timeout_s: float = Field(default=300.0, gt=0)


class ServeSettings(_Section):
    """The model server."""

    host: str = "127.0.0.1"
    port: int = Field(default=8500, ge=0, le=65_535)
    instance: str | None = None
    """Name of this instance in its resource events; default: host name and process id."""


class Webhook(_Section):
    """A receiver of alerts."""

    url: str
    secret: SecretStr | None = None
    """Signs each delivery (HMAC-SHA256)."""
    operator: bool = False
    """Also receives alerts about trimtab itself, such as a ledger that does not balance."""

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("expected an http:// or https:// address")
        return url


class LoggingSettings(_Section):
    """Log lines."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class Settings(BaseSettings):
    """Every process setting. Make one with `load`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter="__"
    )

    data_dir: Path = Path(".trimtab")
    """Where local files are: the SQLite database, archive, artifacts."""
    store: StoreSettings
    kafka: KafkaSettings = KafkaSettings()
    monitor: MonitorSettings = MonitorSettings()
    alarms: AlarmSettings = AlarmSettings()
    retention: RetentionSettings = RetentionSettings()
    archive: ArchiveSettings = ArchiveSettings()
    registry: RegistrySettings = RegistrySettings()
    agent: AgentSettings = AgentSettings()
    api: ApiSettings = ApiSettings()
    serve: ServeSettings = ServeSettings()
    webhooks: dict[str, Webhook] = Field(default_factory=dict)
    logging: LoggingSettings = LoggingSettings()

    @model_validator(mode="before")
    @classmethod
    def _beside_the_data(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Put what has no place of its own into `data_dir`."""
        data_dir = Path(values.get("data_dir", ".trimtab"))
        for section, key, default in (
            ("store", "url", f"sqlite:///{data_dir / 'trimtab.db'}"),
            ("archive", "dir", data_dir / "archive"),
            ("registry", "uri", f"sqlite:///{data_dir / 'mlflow.db'}"),
            ("registry", "artifacts", data_dir / "artifacts"),
        ):
            given = values.get(section, {})
            if isinstance(given, dict) and not given.get(key):
                values = {**values, section: {**given, key: default}}
        return values

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """`load` merges the sources itself, because it also reports where a value came from."""
        del settings_cls
        return (init_settings,)


class Loaded(NamedTuple):
    """Settings, and for each dotted key that is not a default, where its value came from."""

    settings: Settings
    origins: dict[str, str]


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Loaded:
    """Read the settings. `flags` are dotted keys, such as {"api.port": 8601}; None values are absent.

    Raises SettingsError that names the flag, variable, or file and line of what cannot be used.
    """
    environment = os.environ if environ is None else environ
    path = file or _named_file(environment)
    text = _read(path) if path else ""
    from_file = _parse(text, path)
    from_environment = _environment_values(environment)
    from_flags = _nest({key: value for key, value in (flags or {}).items() if value is not None})
    origins = {key: str(path) for key in _flatten(from_file)}
    origins |= {key: f"environment {_variable(key)}" for key in _flatten(from_environment)}
    origins |= {key: f"flag --set {key}" for key in _flatten(from_flags)}
    merged = _merge(_merge(from_file, from_environment), from_flags)
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise SettingsError(_explain(error, origins, text)) from None
    return Loaded(settings, origins)


def show(loaded: Loaded) -> list[tuple[str, str, str]]:
    """Return (dotted key, value, origin) of every setting, secrets masked."""
    values = _flatten(loaded.settings.model_dump(mode="python"))
    return [
        (key, _masked(key, value), _origin(key, loaded.origins))
        for key, value in sorted(values.items())
    ]


def as_environment(settings: Settings) -> dict[str, str]:
    """Environment variables that give a child process these same settings.

    Holds secrets in clear: for a child's environment only, never for a log.
    """
    variables: dict[str, str] = {}
    for key, value in _flatten(settings.model_dump(mode="python"), whole=_FREE_TABLES).items():
        if value is None:
            continue
        plain = _plain(value)
        text = json.dumps(plain) if isinstance(plain, dict | list | bool) else str(plain)
        variables[_variable(key)] = text
    return variables


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, int | float | bool) else str(value)


def _named_file(environment: Mapping[str, str]) -> Path | None:
    named = environment.get(FILE_VARIABLE)
    if named:
        return Path(named)
    return Path(DEFAULT_FILE) if Path(DEFAULT_FILE).is_file() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"The settings file {path} cannot be read ({error}). Correct the path, or leave it out."
        ) from None


def _parse(text: str, path: Path | None) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not TOML: {error}. Correct that line.") from None


class _AnEnvironment(EnvSettingsSource):
    """pydantic-settings' reading of nested variables, from a mapping instead of the process's."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._given = {key.lower(): value for key, value in environ.items()}
        super().__init__(Settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._given


def _environment_values(environ: Mapping[str, str]) -> dict[str, Any]:
    try:
        values: dict[str, Any] = _AnEnvironment(environ)()
    except ValueError as error:
        raise SettingsError(
            f"A {PREFIX}* variable cannot be read ({error}). Lists and tables are written as JSON."
        ) from None
    return values


def _variable(key: str) -> str:
    return PREFIX + key.upper().replace(".", "__")


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        at = nested
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = value
    return nested


def _flatten(
    values: Mapping[str, Any], above: str = "", whole: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Dotted keys of nested tables; the tables named in `whole` stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and name not in whole:
            flat |= _flatten(value, f"{name}.", whole)
        else:
            flat[name] = value
    return flat


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def _explain(error: ValidationError, origins: Mapping[str, str], text: str) -> str:
    problems = []
    for item in error.errors(include_url=False, include_input=False):
        parts = [str(part) for part in item["loc"]]
        key = ".".join(parts)
        where = _origin(key, origins)
        line = _line_of(parts, text) if not where.startswith(("environment", "flag")) else None
        place = f"{where}, line {line}" if line else where
        said = (
            "there is no such setting; see `trimtab config show` for the names"
            if item["type"] == "extra_forbidden"
            else item["msg"].removeprefix("Value error, ")
        )
        problems.append(f"{place}: {key}: {said}.")
    return "\n".join(problems)


def _line_of(parts: list[str], text: str) -> int | None:
    """Line of a key in the file: the last line of its section that assigns it."""
    section: list[str] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if line.startswith("["):
            section = [part.strip(" \"'") for part in line.strip("[] ").split("#")[0].split(".")]
            section = [part.rstrip("] ") for part in section]
            if section == parts:
                return number
        elif "=" in line:
            name = [part.strip(" \"'") for part in line.split("=")[0].split(".")]
            path = section + name
            if path == parts[: len(path)]:
                return number
    return None


def _origin(key: str, origins: Mapping[str, str]) -> str:
    """Origin of a key, or of what lies below or above it in the same table."""
    for name, origin in origins.items():
        if key == name or key.startswith(f"{name}.") or name.startswith(f"{key}."):
            return origin
    return "default"


def _masked(key: str, value: Any) -> str:
    last = key.rsplit(".", maxsplit=1)[-1].lower()
    if value is None:
        return ""
    if isinstance(value, SecretStr) or any(word in last for word in _SECRET_WORDS):
        return MASK
    if key.endswith(("store.url", "registry.uri")):
        return _without_password(str(value))
    if isinstance(value, tuple | list):
        return ", ".join(str(item) for item in value)
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url
