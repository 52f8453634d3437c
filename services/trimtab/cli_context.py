"""What every command starts from: the settings of this call and the store they name."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from trimtab import logs
from trimtab.errors import TrimtabError
from trimtab.settings import Loaded, Settings, load
from trimtab.store import migrate
from trimtab.store.engine import Store, open_store

_ROOT = "trimtab.loaded"


def parse_flags(pairs: list[str]) -> dict[str, Any]:
    """Dotted settings of `--set KEY=VALUE`. Raises typer.BadParameter."""
    flags: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE, such as api.port=8601.")
        flags[key.strip()] = value
    return flags


def remember(context: typer.Context, file: Path | None, flags: dict[str, Any]) -> None:
    """Keep how to load the settings for the command that runs."""
    context.meta[_ROOT] = (file, flags)


def loaded(context: typer.Context, flags: dict[str, Any] | None = None) -> Loaded:
    """Load the settings; `flags` of the command itself come on top of `--set`."""
    file, given = context.meta.get(_ROOT, (None, {}))
    own = {key: value for key, value in (flags or {}).items() if value is not None}
    return load({**given, **own}, file=file)


@contextmanager
def store_of(context: typer.Context) -> Iterator[Store]:
    """The store, its schema checked. A command that only looks never migrates."""
    settings = loaded(context).settings
    store = open_store(settings.store.url)
    try:
        database = store.engine.url.database
        if store.dialect == "sqlite" and database and not Path(database).exists():
            raise TrimtabError(
                f"There is no database at {database}. Start a process (`trimtab up`), or name "
                "another database with --set store.url=… or TRIMTAB_STORE__URL."
            )
        migrate.check(store)
        yield store
    finally:
        store.close()


@contextmanager
def writable_store_of(context: typer.Context) -> Iterator[Store]:
    """The store, made or migrated where needed: for commands that begin something."""
    store = open_store(loaded(context).settings.store.url)
    try:
        migrate.upgrade(store)
        yield store
    finally:
        store.close()


Process = Callable[[Settings, threading.Event, Callable[..., None]], None]


def run_process(settings: Settings, name: str, process: Process) -> None:
    """Run a long-lived process until it ends or a signal asks it to; a second signal ends it at once."""
    logs.set_up(settings.logging.level, settings.logging.format)
    log = logs.get(name)
    store = open_store(settings.store.url)
    try:
        migrate.upgrade(store)
    finally:
        store.close()
    stop = threading.Event()

    def ask(number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        log.info("stopping", action="process_stopping", signal=signal.Signals(number).name)
        stop.set()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)

    def ready(*_details: object) -> None:
        log.info("ready", action="process_ready")

    log.info("starting", action="process_starting")
    process(settings, stop, ready)
    log.info("stopped", action="process_stopped")
