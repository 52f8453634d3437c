"""Commands of the people on duty: alert, run, rollout, key, report, status, doctor, config."""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from trimtab.cli_context import loaded, store_of, writable_store_of
from trimtab.cli_models import me, print_status
from trimtab.cli_output import (
    ATTENTION,
    Json,
    Limit,
    ModelName,
    console,
    errors,
    now_ms,
    print_json,
    print_table,
    when,
    word,
)
from trimtab.contracts.model import duration_ms
from trimtab.errors import TrimtabError
from trimtab.records import Alert, Role, Rollout, Run
from trimtab.settings import show
from trimtab.store import overview
from trimtab.store.alerts import open_alerts
from trimtab.store.verdicts import latest_verdicts

alert_app = typer.Typer(help="Conditions people should know of.", no_args_is_help=True)
run_app = typer.Typer(help="Retraining runs.", no_args_is_help=True)
rollout_app = typer.Typer(help="Challengers on their way to production.", no_args_is_help=True)
key_app = typer.Typer(help="API keys.", no_args_is_help=True)
config_app = typer.Typer(help="Process settings.", no_args_is_help=True)
report_app = typer.Typer(help="Reports to share.", no_args_is_help=True)

OptionalModel = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Only this model.")]
AlertId = Annotated[str, typer.Argument(metavar="ALERT", help="Id of the alert.")]
RecordId = Annotated[str, typer.Argument(metavar="ID", help="Id of the record.")]

NESTED_CHARACTERS_MAX = 600


# --- alert ----------------------------------------------------------------------------------------


@alert_app.command("list")
def alert_list(
    context: typer.Context,
    model: OptionalModel = None,
    everything: Annotated[bool, typer.Option("--all", help="Resolved ones, too.")] = False,
    limit: Limit = 100,
    as_json: Json = False,
) -> None:
    """List the open alerts."""
    from trimtab.store.alerts import alerts_of, open_alerts

    with store_of(context) as store:
        found = alerts_of(store, model, limit) if everything else open_alerts(store, model)[:limit]
    if as_json:
        print_json(found)
        return
    print_table(
        ("alert", "model", "state", "kind", "condition", "since (UTC)", "windows", "summary"),
        (
            (
                alert.id,
                alert.model or "(trimtab)",
                word(alert.state),
                alert.kind,
                alert.condition,
                when(alert.window_start_ms),
                str(alert.windows),
                alert.summary,
            )
            for alert in found
        ),
        "No alert is open." if not everything else "There has been no alert.",
    )


@alert_app.command("show")
def alert_show(context: typer.Context, alert: AlertId, as_json: Json = False) -> None:
    """Show one alert."""
    from trimtab.store.alerts import get_alert

    with store_of(context) as store:
        found = get_alert(store, alert)
    _show_alert(found, as_json)


def _show_alert(alert: Alert, as_json: bool) -> None:
    if as_json:
        print_json(alert)
    else:
        print_record(alert)


def print_record(record: msgspec.Struct) -> None:
    """Print a record's fields, one per line."""
    for key, value in msgspec.to_builtins(record).items():
        if isinstance(value, dict | list):
            shown = _shortened(msgspec.json.encode(value).decode())
        else:
            shown = when(value) if key.endswith("_ms") else value
        console.print(f"{key:20} {shown}", markup=False, highlight=False, soft_wrap=True)


def _shortened(text: str) -> str:
    """The start of a nested value; a snapshot lists hundreds of files."""
    if len(text) <= NESTED_CHARACTERS_MAX:
        return text
    return f"{text[:NESTED_CHARACTERS_MAX]}… ({len(text):,} characters; --json shows all)"


@alert_app.command("ack")
def alert_ack(context: typer.Context, alert: AlertId, as_json: Json = False) -> None:
    """Say that somebody looks at it."""
    from trimtab.store.alerts import acknowledge

    with store_of(context) as store:
        changed = acknowledge(store, alert, me(), now_ms())
    _show_alert(changed, as_json)


@alert_app.command("silence")
def alert_silence(
    context: typer.Context,
    alert: AlertId,
    for_: Annotated[str, typer.Option("--for", help="How long, such as 2h.")] = "2h",
    note: Annotated[str, typer.Option(help="Why.")] = "",
    as_json: Json = False,
) -> None:
    """Call no webhook for this condition for a while; the record is kept."""
    from trimtab.store.alerts import get_alert, silence

    length_ms = duration_ms(for_)
    with store_of(context) as store:
        found = get_alert(store, alert)
        now = now_ms()
        entry = silence(store, found.model, found.condition, now, now + length_ms, me(), note)
    if as_json:
        print_json(entry)
    else:
        console.print(
            f"{found.condition!r} of {found.model} is silent until {when(entry.to_ms)} UTC."
        )


@alert_app.command("resolve")
def alert_resolve(
    context: typer.Context,
    alert: AlertId,
    note: Annotated[str, typer.Option(help="What was done.")] = "",
    as_json: Json = False,
) -> None:
    """Resolve it by hand; if its condition lasts, the next verdict opens a new one."""
    from trimtab.store.alerts import resolve

    with store_of(context) as store:
        changed = resolve(store, alert, me(), note, now_ms())
    _show_alert(changed, as_json)


# --- run and rollout ------------------------------------------------------------------------------


@run_app.command("list")
def run_list(
    context: typer.Context, model: OptionalModel = None, limit: Limit = 50, as_json: Json = False
) -> None:
    """List retraining runs, newest first."""
    from trimtab.store.agent import list_runs

    with store_of(context) as store:
        found = list_runs(store, model, limit)
    if as_json:
        print_json(found)
        return
    print_table(
        ("run", "model", "state", "trainer", "started (UTC)", "version", "reason"),
        (_run_row(run) for run in found),
        "There has been no run.",
    )


def _run_row(run: Run) -> tuple[str, ...]:
    version = run.version or ""
    return (
        run.id,
        run.model,
        word(run.state),
        run.trainer,
        when(run.created_ms),
        version,
        run.reason,
    )


@rollout_app.command("list")
def rollout_list(
    context: typer.Context, model: OptionalModel = None, limit: Limit = 50, as_json: Json = False
) -> None:
    """List rollouts, newest first."""
    from trimtab.store.agent import list_rollouts

    with store_of(context) as store:
        found = list_rollouts(store, model, limit)
    if as_json:
        print_json(found)
        return
    print_table(
        ("rollout", "model", "state", "share", "champion", "challenger", "since (UTC)", "reason"),
        (
            (
                rollout.id,
                rollout.model,
                word(rollout.state),
                _share(rollout),
                rollout.champion_version,
                rollout.challenger_version,
                when(rollout.created_ms),
                rollout.reason,
            )
            for rollout in found
        ),
        "There has been no rollout.",
    )


def _share(rollout: Rollout) -> str:
    share = rollout.steps[-1].get("share") if rollout.steps else None
    return "" if share is None else f"{share:.0%}"


def _show_record(
    context: typer.Context, kind: Literal["run", "rollout"], record_id: str, as_json: bool
) -> None:
    from trimtab.store.agent import get_record, requests_of, transitions_of

    with store_of(context) as store:
        record = get_record(store, kind, record_id)
        steps = transitions_of(store, kind, record_id)
        asked = requests_of(store, kind, record_id)
    if as_json:
        print_json({kind: record, "transitions": steps, "requests": asked})
        return
    print_record(record)
    if kind == "run" and steps:
        from trimtab.cli_incidents import print_diagnosis

        print_diagnosis(steps[0].inputs)
    console.print("\n[dim]transitions[/]")
    print_table(
        ("#", "at (UTC)", "from", "to", "why"),
        ((str(s.seq), when(s.at_ms), s.from_state, word(s.to_state), s.reason) for s in steps),
        "none",
    )


def _request(
    context: typer.Context,
    kind: Literal["run", "rollout"],
    record_id: str,
    action: Any,
    as_json: bool,
) -> None:
    from trimtab.store.agent import request

    with store_of(context) as store:
        number = request(store, kind, record_id, action, me(), now_ms())
    if as_json:
        print_json({"request": number, "record": kind, "id": record_id, "action": action})
    else:
        console.print(
            f"Asked to {action} {kind} {record_id}; the agent acts on it at its next tick."
        )


@run_app.command("show")
def run_show(context: typer.Context, run: RecordId, as_json: Json = False) -> None:
    """Show a run: the diagnosis it began with, data, search, gate, transitions."""
    _show_record(context, "run", run, as_json)


@run_app.command("approve")
def run_approve(context: typer.Context, run: RecordId, as_json: Json = False) -> None:
    """Let a run that awaits approval go on."""
    _request(context, "run", run, "approve", as_json)


@run_app.command("cancel")
def run_cancel(context: typer.Context, run: RecordId, as_json: Json = False) -> None:
    """End a run."""
    _request(context, "run", run, "cancel", as_json)


@rollout_app.command("show")
def rollout_show(context: typer.Context, rollout: RecordId, as_json: Json = False) -> None:
    """Show a rollout: steps, evidence, transitions."""
    _show_record(context, "rollout", rollout, as_json)


@rollout_app.command("approve")
def rollout_approve(context: typer.Context, rollout: RecordId, as_json: Json = False) -> None:
    """Let a rollout that awaits approval go on."""
    _request(context, "rollout", rollout, "approve", as_json)


@rollout_app.command("pause")
def rollout_pause(context: typer.Context, rollout: RecordId, as_json: Json = False) -> None:
    """Hold a rollout at its step."""
    _request(context, "rollout", rollout, "pause", as_json)


@rollout_app.command("resume")
def rollout_resume(context: typer.Context, rollout: RecordId, as_json: Json = False) -> None:
    """Go on with a held rollout."""
    _request(context, "rollout", rollout, "resume", as_json)


@rollout_app.command("abort")
def rollout_abort(context: typer.Context, rollout: RecordId, as_json: Json = False) -> None:
    """Roll back: all traffic returns to the champion."""
    _request(context, "rollout", rollout, "abort", as_json)


# --- key ------------------------------------------------------------------------------------------


@key_app.command("create")
def key_create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Whose it is.")],
    role: Annotated[str, typer.Option(help="viewer, operator or admin.")] = "viewer",
    scope: Annotated[str, typer.Option(help="*, team:NAME or model:NAME.")] = "*",
    as_json: Json = False,
) -> None:
    """Make an API key; its secret is shown this once."""
    from trimtab.store.keys import create_key

    if role.upper() not in Role.__members__:
        raise typer.BadParameter(f"{role!r} is no role. Write viewer, operator or admin.")
    with writable_store_of(context) as store:
        key_id, secret = create_key(store, name, Role[role.upper()], scope, now_ms(), me())
    if as_json:
        print_json({"id": key_id, "secret": secret, "role": role.lower(), "scope": scope})
    else:
        console.print(f"key {key_id} for {name} ({role.lower()}, {scope}); it is shown this once:")
        typer.echo(secret)


@key_app.command("list")
def key_list(context: typer.Context, as_json: Json = False) -> None:
    """List the keys, without their secrets."""
    from trimtab.store.keys import list_keys

    with store_of(context) as store:
        found = list_keys(store)
    if as_json:
        print_json([{**msgspec.to_builtins(key), "role": key.role.name.lower()} for key in found])
        return
    print_table(
        ("key", "name", "role", "scope", "made (UTC)", "revoked (UTC)"),
        (
            (
                key.id,
                key.name,
                key.role.name.lower(),
                key.scope,
                when(key.created_ms),
                when(key.revoked_ms),
            )
            for key in found
        ),
        "There is no key. Make one: trimtab key create NAME.",
    )


@key_app.command("revoke")
def key_revoke(
    context: typer.Context,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key.")],
    as_json: Json = False,
) -> None:
    """Revoke a key at once."""
    from trimtab.store.keys import revoke_key

    with store_of(context) as store:
        revoked = revoke_key(store, key, now_ms(), me())
    if as_json:
        print_json({"id": revoked.id, "revoked_ms": revoked.revoked_ms})
    else:
        console.print(f"Key {revoked.id} of {revoked.name} is revoked.")


# --- config, report -------------------------------------------------------------------------------


@config_app.command("show")
def config_show(context: typer.Context, as_json: Json = False) -> None:
    """Show every setting, its value and where it came from; secrets are masked."""
    rows = show(loaded(context))
    if as_json:
        print_json([{"key": key, "value": value, "origin": origin} for key, value, origin in rows])
        return
    print_table(
        ("setting", "value", "from"),
        (
            (key, value, "[dim]default[/]" if origin == "default" else origin)
            for key, value, origin in rows
        ),
        "",
    )


@report_app.command("make")
def report_make(
    context: typer.Context,
    model: ModelName,
    start_ms: Annotated[
        int | None, typer.Option("--window", help="Start of the window, ms; default: the newest.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: in data_dir.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an Evidently report (HTML) of a window's row sample against the baseline's."""
    from trimtab.api.reports import make_report

    settings = loaded(context).settings
    with store_of(context) as store:
        overview.model_status(store, model)
        newest = latest_verdicts(store, model, 1)
    if start_ms is None and not newest:
        raise TrimtabError(f"No window of {model} has closed yet; there is nothing to report on.")
    start = newest[0].verdict.window_start_ms if start_ms is None else start_ms
    with console.status("Evidently is at work (a dozen seconds at least) …", spinner="dots"):
        path = make_report(settings, model, start, out)
    if as_json:
        print_json({"model": model, "window_start_ms": start, "path": str(path)})
    else:
        console.print(f"Wrote {path}", soft_wrap=True)


# --- status, doctor -------------------------------------------------------------------------------


def status(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until interrupted.")] = False,
    every_s: Annotated[float, typer.Option("--every", min=0.5, help="Seconds between.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Say how the fleet is; exit code 3 while an alert is open or a model is in alarm."""
    from trimtab.store.detector_view import fleet_budgets

    with store_of(context) as store:
        while True:
            page = overview.fleet(store, limit=overview.PAGE_MAX)
            own = open_alerts(store, "")
            if as_json:
                print_json(page)
            else:
                if watch:
                    console.clear()
                print_status(page)
                for alert in own:
                    errors.print(f"[bold red]trimtab itself:[/] {alert.summary}")
                console.print(_totals(page), style="dim")
                fleet = loaded(context).settings.alarms.false_alarms
                console.print(_budget(*fleet_budgets(store, fleet)), style="dim")
                console.print(_monitor(overview.monitor_pulse(store)), style="dim")
            if not watch:
                break
            time.sleep(every_s)  # the refresh is by the clock on purpose
    if own or any(entry.open_alerts or entry.outcome == "alarm" for entry in page):
        raise typer.Exit(ATTENTION)


def _totals(page: list[overview.ModelStatus]) -> str:
    alerts = sum(entry.open_alerts for entry in page)
    models = f"{len(page)} {'model' if len(page) == 1 else 'models'}"
    opened = f"{alerts} open {'alert' if alerts == 1 else 'alerts'}"
    return f"{models}, {opened}, {when(now_ms())} UTC"


def _budget(false_alarms: float, models: int) -> str:
    """What the detectors of the fleet may raise in all."""
    over = "the model's detector" if models == 1 else f"the detectors of {models} models"
    return f"false-alarm budget: {false_alarms:.3g} per 30 days over {over}"


def _monitor(pulse: overview.Pulse) -> str:
    """The monitor in one line: silence there must not look like health."""
    if pulse.seen_ms is None:
        return "no monitor has read anything yet"
    age_s = max(0, now_ms() - pulse.seen_ms) / 1000
    return f"monitor: last heard of {age_s:,.0f} s ago, {pulse.unread:,} messages unread"


def doctor(context: typer.Context, as_json: Json = False) -> None:
    """Check Python, codecs, store, ledger, Kafka and clock; exit code 3 when something needs care."""
    from trimtab.cli_doctor import examine

    checks = examine(loaded(context).settings)
    if as_json:
        print_json(checks)
    else:
        signs = {True: "[green]ok[/]", False: "[bold red]no[/]", None: "[dim]-[/]"}
        print_table(("", "what", "found"), ((signs[c.fine], c.name, c.said) for c in checks), "")
        console.print("Java and Chromium are needed by trimtab's own tests only.", style="dim")
    if any(check.fine is False for check in checks):
        raise typer.Exit(ATTENTION)
