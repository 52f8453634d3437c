"""`trimtab`: one command, noun and verb. This file parses; the modules it names do the work.

Exit codes: 0 done; 1 an error, said in one line; 2 wrong usage; 3 the command worked and what it
looked at needs somebody (`status`: an open alert or a model in alarm; `doctor`: a failed check;
`ledger show`: out of balance; `verify`: not confirmed); 130 interrupted. docs/cli.md lists all commands.

Process modules are imported inside their commands, so that `trimtab --help` stays quick.
"""

import importlib.metadata
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trimtab import __version__
from trimtab.cli_context import loaded, parse_flags, remember, run_process, store_of
from trimtab.cli_detector import detector_app, plan
from trimtab.cli_incidents import incident_app
from trimtab.cli_models import baseline_app, ledger_app, model_app, window_app
from trimtab.cli_operate import (
    alert_app,
    config_app,
    doctor,
    key_app,
    report_app,
    rollout_app,
    run_app,
    status,
)
from trimtab.cli_output import ATTENTION, Json, console, fail, print_json
from trimtab.cli_stream import stream
from trimtab.cli_up import up
from trimtab.errors import TrimtabError
from trimtab.processes import exit_with_parent

COMMAND_GROUP = "trimtab.commands"
"""Entry points that add a command, such as `trimtab agent`, from another package."""


class _Commands(TyperGroup):
    """Our commands, then those of other packages; one of those is imported when it is named."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of `--help`."""
        own = super().list_commands(ctx)
        return [*own, *(name for name in sorted(_added()) if name not in own)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name; a package that cannot be imported says why."""
        own = super().get_command(ctx, cmd_name)
        entry = _added().get(cmd_name)
        if own is not None or entry is None:
            return own
        try:
            command: Any = typer.main.get_command(entry.load())
        except ImportError as error:
            command = _missing(cmd_name, str(error))
        command.name = cmd_name
        return command


def _missing(name: str, why: str) -> Any:
    """A command whose package cannot be imported: listed, and saying so when it is called."""
    stand_in = typer.Typer()

    @stand_in.command(
        help="Not installed.",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def say_so() -> None:
        raise TrimtabError(f"{name!r} cannot be loaded ({why}). pip install 'trimtab[all]'.")

    return typer.main.get_command(stand_in)


def _added() -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=COMMAND_GROUP)}


app = typer.Typer(
    cls=_Commands,
    help="Watch models in production; retrain, check and roll out when they drift.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"trimtab {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings file; default: ./trimtab.toml.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as api.port=8601."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Watch models in production; retrain, check and roll out when they drift."""
    del version
    remember(context, config, parse_flags(settings or []))


# --- processes ------------------------------------------------------------------------------------


@app.command()
def monitor(
    context: typer.Context,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes on this machine, in one group.")
    ] = None,
) -> None:
    """Read Kafka, keep windows in SQL, judge them, and tell."""
    settings = loaded(context, {"monitor.workers": workers}).settings
    if settings.monitor.workers > 1:
        from trimtab.monitor.replicas import run_replicas

        run_process(settings, "monitor", run_replicas)
        return
    from trimtab.monitor.app import run_monitor

    run_process(settings, "monitor", run_monitor)


@app.command()
def api(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Serve the HTTP API and the dashboard."""
    from trimtab.api.app import run_api

    settings = loaded(context, {"api.host": host, "api.port": port}).settings
    run_process(settings, "api", run_api)


@app.command()
def archive(context: typer.Context) -> None:
    """Write inferences and labels to Parquet."""
    from trimtab.archive.app import run_archive

    run_process(loaded(context).settings, "archive", run_archive)


@app.command()
def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Serve champions and challengers, and stream what they answer."""
    from trimtab.serve.app import run_serve

    settings = loaded(context, {"serve.host": host, "serve.port": port}).settings
    run_process(settings, "serve", run_serve)


app.command("up")(up)
app.command("status")(status)
app.command("doctor")(doctor)
app.command("stream")(stream)
app.command("plan")(plan)


@app.command()
def verify(
    context: typer.Context,
    verdict: Annotated[int, typer.Argument(metavar="VERDICT", help="Number of the verdict.")],
    as_json: Json = False,
) -> None:
    """Recompute a verdict from the stored states, or say what has expired; exit code 3 unless confirmed."""
    from trimtab.monitor.verify import verify_verdict

    with store_of(context) as store:
        answer = verify_verdict(store, verdict)
    if as_json:
        print_json(answer)
    else:
        colour = "green" if answer.confirmed else "yellow"
        console.print(f"[{colour}]{answer.said}[/]")
    if not answer.confirmed:
        raise typer.Exit(ATTENTION)


app.add_typer(model_app, name="model")
app.add_typer(baseline_app, name="baseline")
app.add_typer(detector_app, name="detector")
app.add_typer(window_app, name="window")
app.add_typer(alert_app, name="alert")
app.add_typer(incident_app, name="incident")
app.add_typer(run_app, name="run")
app.add_typer(rollout_app, name="rollout")
app.add_typer(ledger_app, name="ledger")
app.add_typer(report_app, name="report")
app.add_typer(key_app, name="key")
app.add_typer(config_app, name="config")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: an error of ours is one clear line and exit code 1, never a traceback."""
    exit_with_parent()
    try:
        app(args=arguments)
    except TrimtabError as error:
        sys.exit(fail(str(error)).exit_code)
    except ModuleNotFoundError as error:
        message = f"{error}. pip install 'trimtab[all]' installs what every command needs."
        sys.exit(fail(message).exit_code)
