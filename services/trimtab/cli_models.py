"""Commands about models and what is known of them: model, baseline, window, ledger."""

import getpass
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from trimtab.cli_context import loaded, store_of, writable_store_of
from trimtab.cli_output import (
    ATTENTION,
    Json,
    Limit,
    ModelName,
    console,
    errors,
    figure,
    now_ms,
    print_json,
    print_table,
    when,
    word,
)
from trimtab.contracts.model import Contract
from trimtab.errors import NotFoundError, TrimtabError
from trimtab.store import overview
from trimtab.store.engine import Store
from trimtab.store.verdicts import VerdictRow, latest_verdicts, verdict_history
from trimtab.windows.rollup import Resolution

model_app = typer.Typer(help="Contracts, versions and champions.", no_args_is_help=True)
baseline_app = typer.Typer(help="What traffic is compared with.", no_args_is_help=True)
window_app = typer.Typer(help="Closed windows and their verdicts.", no_args_is_help=True)
ledger_app = typer.Typer(help="What became of every message, row and label.", no_args_is_help=True)


def me() -> str:
    """Who acts, for the audit trail."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user may have no name
        return "cli"


# --- model ----------------------------------------------------------------------------------------


@model_app.command("init")
def model_init(
    context: typer.Context,
    from_topic: Annotated[str, typer.Option("--from-topic", help="Topic to read events from.")],
    model: Annotated[
        str | None, typer.Option("--model", help="Which model, when the topic carries several.")
    ] = None,
    messages: Annotated[int, typer.Option(min=1, max=100_000, help="Events to look at.")] = 1_000,
    wait_s: Annotated[float, typer.Option(min=1, help="Give up after this many seconds.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Print a draft contract made from events of a topic."""
    from trimtab.cli_kafka import sample_inferences
    from trimtab.contracts.infer import infer_contract

    settings = loaded(context).settings
    samples = sample_inferences(settings.kafka, from_topic, messages, wait_s)
    names = sorted({sample.model for sample in samples})
    if not names:
        raise TrimtabError(
            f"No inference event came from {from_topic!r} in {wait_s:g} s. Check the topic's name "
            "and that events are of type io.trimtab.inference.v1."
        )
    if model is None and len(names) > 1:
        raise TrimtabError(
            f"{from_topic!r} carries {len(names)} models ({', '.join(names[:10])}). "
            "Choose one with --model."
        )
    text = infer_contract(samples, model or names[0])
    if as_json:
        print_json({"model": model or names[0], "events": len(samples), "contract": text})
    else:
        typer.echo(text)


@model_app.command("apply")
def model_apply(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="A contract (TOML) or a folder of them.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would change.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check contracts, show what changes, and apply them."""
    from trimtab.contract_files import load_contracts as read_contracts
    from trimtab.contracts.compare import compare
    from trimtab.store import models

    contracts = read_contracts(path)  # all are valid before the first is applied
    report: list[dict[str, Any]] = []
    with writable_store_of(context) as store:
        current = models.load_contracts(store)
        for contract in contracts:
            before = current.get(contract.name)
            shown = compare(before.contract if before else None, contract)
            entry: dict[str, Any] = {"model": contract.name, "changes": list(shown.lines)}
            if not dry_run:
                text = _text_of(path, contract.name)
                applied = models.apply_contract(store, contract, text, me(), now_ms())
                entry |= {"revision": applied.revision, "changed": applied.changed}
            report.append(entry)
            if as_json:
                continue
            console.print(f"[bold]{contract.name}[/]")
            for line in shown.lines if shown.changed else ("nothing changes",):
                console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
            if not dry_run:
                console.print(f"  revision {entry['revision']}")
            for warning in _apply_warnings(context, store, contract, is_new=before is None):
                console.print(f"  [yellow]note[/] {escape(warning)}", soft_wrap=True)
    if as_json:
        print_json(report)


def _apply_warnings(
    context: typer.Context, store: Store, contract: Contract, *, is_new: bool
) -> list[str]:
    """What applies without error and still may surprise."""
    warnings = []
    known = loaded(context).settings.webhooks
    missing = [name for name in contract.alarms.webhooks if name not in known]
    if missing:
        warnings.append(
            f"no webhook is named {', '.join(missing)} in these settings; alerts reach it once "
            "[webhooks] defines it for the monitor."
        )
    before = overview.unknown_model_rows(store) if is_new else 0
    if before:
        warnings.append(
            f"rows count from now on: {before:,} rows of models without a contract have been "
            "ignored so far. Apply a contract before its events are sent."
        )
    return warnings


def _text_of(path: Path, name: str) -> str:
    file = path / f"{name}.toml" if path.is_dir() else path
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = (entry.read_text(encoding="utf-8") for entry in sorted(path.glob("*.toml")))
    return next((text for text in found if f'"{name}"' in text), "")


@model_app.command("list")
def model_list(
    context: typer.Context,
    search: Annotated[str, typer.Option(help="Only names or teams that contain this.")] = "",
    limit: Limit = 500,
    as_json: Json = False,
) -> None:
    """List the models and how they are."""
    with store_of(context) as store:
        page = overview.fleet(store, limit=limit, search=search)
    if as_json:
        print_json(page)
        return
    print_status(page)


def print_status(page: list[overview.ModelStatus]) -> None:
    """Print models at a glance."""
    print_table(
        ("model", "team", "outcome", "why", "window (UTC)", "rows", "alerts", "agent", "champion"),
        (
            (
                status.model,
                status.team,
                word(status.outcome or "no verdict"),
                status.reason or "",
                when(status.window_start_ms),
                "" if status.rows is None else f"{status.rows:,}",
                str(status.open_alerts or ""),
                _agent(status),
                status.champion or "",
            )
            for status in page
        ),
        "No model is watched. Write a contract and apply it: trimtab model apply FILE.",
    )


def _agent(status: overview.ModelStatus) -> str:
    parts = [status.rollout and f"rollout {status.rollout}", status.run and f"run {status.run}"]
    if status.challenger_share is not None:
        parts.append(f"{status.challenger_share:.0%}")
    return ", ".join(part for part in parts if part) or status.incident or ""


@model_app.command("show")
def model_show(context: typer.Context, model: ModelName, as_json: Json = False) -> None:
    """Show a model: status, contract, revisions, versions."""
    from trimtab.store.models import contract_history, versions_of

    with store_of(context) as store:
        status = overview.model_status(store, model)
        history = contract_history(store, model)
        versions = versions_of(store, model)
    if as_json:
        print_json(
            {
                "status": status,
                "contract": history[-1].contract if history else None,
                "revisions": [
                    {"revision": row.revision, "at_ms": row.applied_ms, "by": row.applied_by}
                    for row in history
                ],
                "versions": versions,
            }
        )
        return
    if status.retired:
        console.print(
            f"[yellow]{escape(model)} is retired:[/] its rows are ignored until its contract is "
            "applied again.",
            soft_wrap=True,
        )
    print_status([status])
    console.print(f"\n{status.summary}", markup=False)
    console.print("\n[dim]contract revisions[/]")
    print_table(
        ("revision", "applied (UTC)", "by"),
        ((str(row.revision), when(row.applied_ms), row.applied_by) for row in history),
        "none",
    )
    console.print("\n[dim]versions[/]")
    print_table(
        ("version", "since (UTC)", "source", "artifact"),
        (
            (row.version, when(row.created_ms), row.source, (row.artifact_sha256 or "")[:12])
            for row in versions
        ),
        "none seen",
    )
    if history:
        console.print("\n[dim]contract[/]")
        console.print(history[-1].text, markup=False, highlight=False, soft_wrap=True)


@model_app.command("champion")
def model_champion(
    context: typer.Context,
    model: ModelName,
    version: Annotated[str, typer.Argument(help="The version that answers.")],
    artifact: Annotated[Path, typer.Argument(help="Folder of its artifact.")],
    as_json: Json = False,
) -> None:
    """Make an artifact the model's champion: what serves, and what a challenger must beat."""
    from trimtab.artifacts import artifact_digest, misfits, verify_artifact
    from trimtab.store.agent import set_champion
    from trimtab.store.models import contract_history

    if not artifact.is_dir():
        raise NotFoundError(f"{artifact} is not a folder. Name the folder of the artifact.")
    sha256 = artifact_digest(artifact)
    manifest = verify_artifact(artifact, sha256)
    with store_of(context) as store:
        overview.model_status(store, model)
        for row in contract_history(store, model)[-1:]:
            found = misfits(manifest.signature, row.contract)
            if found:
                raise TrimtabError(
                    f"The artifact in {artifact} does not fit the contract of {model}: "
                    f"{'; '.join(found)}. Name the folder of {model}'s own artifact, or apply a "
                    "contract that fits it."
                )
        traffic = set_champion(
            store, model, version, artifact.resolve().as_uri(), sha256, me(), now_ms()
        )
    if as_json:
        print_json({"model": model, "version": version, "sha256": sha256, "traffic": traffic})
    else:
        console.print(f"{model}: version {version} is the champion (SHA-256 {sha256[:12]}…).")


@model_app.command("retire")
def model_retire(context: typer.Context, model: ModelName, as_json: Json = False) -> None:
    """Stop watching a model; its history stays, and applying its contract brings it back."""
    from trimtab.store.models import retire_model

    with store_of(context) as store:
        retire_model(store, model, now_ms())
    if as_json:
        print_json({"model": model, "retired": True})
    else:
        console.print(f"{model} is retired.")


# --- window ---------------------------------------------------------------------------------------


@window_app.command("list")
def window_list(
    context: typer.Context, model: ModelName, limit: Limit = 24, as_json: Json = False
) -> None:
    """List the newest closed windows of a model."""
    with store_of(context) as store:
        overview.model_status(store, model)
        points = latest_verdicts(store, model, limit)
    if as_json:
        print_json(points)
    else:
        print_windows(model, points)


def print_windows(model: str, points: Sequence[VerdictRow]) -> None:
    """Print one line per window."""
    print_table(
        ("window (UTC)", "start_ms", "verdict", "rev", "outcome", "reason", "rows", "summary"),
        (
            (
                when(point.verdict.window_start_ms),
                str(point.verdict.window_start_ms),
                str(point.id),
                str(point.verdict.revision),
                word(point.verdict.outcome),
                point.verdict.reason,
                f"{point.verdict.figures.get('rows', 0):,}",
                point.verdict.summary,
            )
            for point in points
        ),
        f"No window of {model} has closed yet.",
    )


@window_app.command("show")
def window_show(
    context: typer.Context,
    model: ModelName,
    start: Annotated[
        str, typer.Argument(help='Start: ms since the epoch, ISO 8601, or "latest".')
    ] = "latest",
    as_json: Json = False,
) -> None:
    """Show a window's verdict: findings, figures, evidence, revisions."""
    with store_of(context) as store:
        overview.model_status(store, model)
        start_ms = _start_ms(store, model, start)
        history = verdict_history(store, model, start_ms)
    if not history:
        raise NotFoundError(
            f"{model} has no verdict for a window at {start!r}. `trimtab window list {model}` shows "
            "those there are."
        )
    if as_json:
        print_json(history)
        return
    last = history[-1].verdict
    console.print(
        f"[bold]{model}[/]  {when(last.window_start_ms)} to {when(last.window_end_ms)} UTC  "
        f"{word(last.outcome)}  revision {last.revision}, verdict {history[-1].id}"
    )
    console.print(last.summary, markup=False)
    print_table(
        ("outcome", "kind", "figure", "value", "threshold", "M of N", "rows", "reason"),
        (
            (
                word(finding.outcome),
                finding.kind,
                finding.figure,
                figure(finding.value),
                figure(finding.threshold),
                f"{finding.breached} of {finding.of}" if finding.rule else "",
                f"{finding.rows:,}",
                finding.reason,
            )
            for finding in last.findings
        ),
        "no findings",
    )
    for finding in last.findings:
        compared = finding.reference is not None or finding.outcome == "cannot_tell"
        if finding.detail and (finding.rule is None or compared):
            console.print(f"{finding.kind}: {finding.detail}", markup=False, soft_wrap=True)
    for version, found in (last.figures.get("performance") or {}).items():
        if "sampled_share" in found:
            console.print(
                f"version {version}: {found['labelled_rows']:,} of {found['predicted_rows']:,} rows "
                f"labelled, of a sample of {found['sampled_share']:.2%}"
            )
    _show_estimate(last.figures)
    for point in history[1:]:
        console.print(
            f"revision {point.verdict.revision}: {point.verdict.changed}", markup=False, style="dim"
        )


def _show_estimate(tree: dict[str, Any]) -> None:
    """What the figures would be by the scores alone, beside those of labels, and what that assumes."""
    estimated = tree.get("estimated") or {}
    if not estimated:
        return
    reason = f" ({estimated['reason']})" if estimated["reason"] else ""
    console.print(f"estimated without labels: {estimated['status']}{reason}", markup=False)
    if not estimated["figures"]:
        return
    judged = (tree.get("performance") or {}).get(tree.get("judged_version"), {})
    realised = judged.get("figures") or {}
    print_table(
        ("figure", "estimated", "95 % interval", "from labels"),
        (
            (
                name,
                figure(found["value"]),
                f"{figure(found['low'])} to {figure(found['high'])}",
                figure((realised.get(name) or {}).get("value")),
            )
            for name, found in estimated["figures"].items()
        ),
        "no figures",
    )
    for name, why in (estimated.get("not_estimated") or {}).items():
        console.print(f"{name} not available: {why}", markup=False, style="dim")
    console.print(estimated["assumes"], markup=False, style="dim")


@window_app.command("history")
def window_history(
    context: typer.Context,
    model: ModelName,
    by: Annotated[
        Literal["hour", "day"], typer.Option(help="Length of a line's period, of UTC.")
    ] = "hour",
    since: Annotated[
        str | None, typer.Option("--from", help="First start: ms since the epoch, or ISO 8601.")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="Starts before this only.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="At most this many, newest.")] = 48,
    as_json: Json = False,
) -> None:
    """Show a model's figures by hour or day, newest first, for as long as they are kept."""
    from trimtab.api.history import EVER_MS, history

    with store_of(context) as store:
        found = history(
            store,
            model,
            Resolution(by),
            from_ms=EVER_MS[0] if since is None else _time_ms(since),
            to_ms=EVER_MS[1] if until is None else _time_ms(until),
            limit=limit,
            now_ms=now_ms(),
        )
    if as_json:
        print_json(found)
        return
    print_table(
        (f"{by} (UTC)", "rows", "errors", "p50 ms", "p95 ms", "p99 ms", "max psi", "of", "drifted"),
        (
            (
                when(period.start_ms) + ("" if period.complete else " (open)"),
                f"{period.rows:,}",
                figure(period.figures["error_rate"]),
                *(figure(period.figures["latency_ms"][name]) for name in ("p50", "p95", "p99")),
                figure(period.figures["drift"]["max_psi"]),
                period.figures["drift"].get("max_psi_feature", ""),
                ", ".join(period.figures["drift"]["drifted"]),
            )
            for period in found.items
        ),
        f"No {by} of {model} is stored in this range.",
    )
    if found.next is not None:
        console.print(f"Older ones: --to {found.next}", style="dim")


def _start_ms(store: Any, model: str, text: str) -> int:
    if text == "latest":
        newest = latest_verdicts(store, model, 1)
        if not newest:
            raise NotFoundError(f"No window of {model} has closed yet.")
        return newest[0].verdict.window_start_ms
    return _time_ms(text)


def _time_ms(text: str) -> int:
    from datetime import UTC, datetime

    if text.lstrip("-").isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise TrimtabError(
            f"{text!r} is no time. Write ms since the epoch, or 2026-01-31T12:00:00Z."
        ) from None
    return round(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)


# --- baseline -------------------------------------------------------------------------------------


@baseline_app.command("list")
def baseline_list(context: typer.Context, model: ModelName, as_json: Json = False) -> None:
    """List a model's baselines."""
    from trimtab.store.baselines import baselines_of

    with store_of(context) as store:
        overview.model_status(store, model)
        rows = [_baseline(row) for row in baselines_of(store, model)]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("number", "active", "windows", "rows", "from (UTC)", "to (UTC)", "source"),
        (
            (
                str(row["number"]),
                "yes" if row["active"] else "",
                str(row["windows"]),
                f"{row['rows']:,}",
                when(row["from_ms"]),
                when(row["to_ms"]),
                row["source"],
            )
            for row in rows
        ),
        f"{model} has no baseline yet. It is made from traffic, or: trimtab baseline fit.",
    )


def _baseline(row: Any) -> dict[str, Any]:
    names = (
        "id",
        "number",
        "cuts_id",
        "windows",
        "rows",
        "from_ms",
        "to_ms",
        "source",
        "active",
        "created_ms",
    )
    return {name: getattr(row, name) for name in names}


@baseline_app.command("show")
def baseline_show(
    context: typer.Context,
    model: ModelName,
    number: Annotated[
        int | None, typer.Argument(help="Its number; default: the active one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show one baseline."""
    from trimtab.store.baselines import baselines_of

    with store_of(context) as store:
        overview.model_status(store, model)
        rows = [_baseline(row) for row in baselines_of(store, model)]
    chosen = [row for row in rows if (row["active"] if number is None else row["number"] == number)]
    if not chosen:
        raise NotFoundError(
            f"{model} has no such baseline. `trimtab baseline list {model}` shows them."
        )
    if as_json:
        print_json(chosen[0])
        return
    for key, value in chosen[0].items():
        console.print(f"{key:12} {when(value) if key.endswith('_ms') else value}", highlight=False)


@baseline_app.command("fit")
def baseline_fit(
    context: typer.Context,
    model: ModelName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A CSV or Parquet file.")],
    time: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of times: the file gives windows.")
    ] = None,
    prediction: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the model's answers.")
    ] = None,
    score: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the positive class's score.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the truth.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a baseline from a file; nothing is stored unless the whole file is right."""
    from trimtab.store.baselines import baseline, fit_from_file

    with store_of(context) as store:
        with errors.status("reading the reference …", spinner="dots"):
            made = fit_from_file(
                store,
                model,
                str(file),
                time_column=time,
                prediction_column=prediction,
                score_column=score,
                label_column=label,
                now_ms=now_ms(),
            )
        row = _baseline(baseline(store, made))
    if as_json:
        print_json(row)
    else:
        console.print(
            f"Baseline {row['number']} of {model}: {row['rows']:,} rows in {row['windows']} windows."
        )


@baseline_app.command("accept")
def baseline_accept(
    context: typer.Context,
    model: ModelName,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="First window of the new normal; by default the first of the detector's open alerts.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Take the traffic since a change as the new normal: its alarms end, and nothing goes unwatched."""
    from trimtab.store.baselines import accept, baseline

    with store_of(context) as store:
        from_ms = None if since is None else _time_ms(since)
        row = _baseline(baseline(store, accept(store, model, from_ms, now_ms())))
    if as_json:
        print_json(row)
    else:
        console.print(
            f"Baseline {row['number']} of {model}: {row['rows']:,} rows in {row['windows']} windows since "
            f"{when(row['from_ms'])}. What variation is usual is taken from the baseline before until there are "
            "168 windows."
        )


# --- ledger ---------------------------------------------------------------------------------------


@ledger_app.command("show")
def ledger_show(context: typer.Context, as_json: Json = False) -> None:
    """Show both ledgers and whether they balance; exit code 3 when they do not."""
    with store_of(context) as store:
        partitions = overview.ledger_lines(store)
    problems = [problem for partition in partitions for problem in partition.problems]
    if as_json:
        print_json({"balances": not problems, "problems": problems, "partitions": partitions})
    else:
        print_ledger(partitions)
    if problems:
        raise typer.Exit(ATTENTION)


def print_ledger(partitions: list[overview.LedgerLine]) -> None:
    """Print both ledgers of each partition, and whether they balance."""
    print_table(
        ("consumer", "topic", "offsets", "unread", "messages", "gaps", "lost", "rows", "labels"),
        (
            (
                partition.consumer,
                f"{partition.topic} {partition.partition}",
                f"{partition.first_offset:,} to {partition.next_offset:,}",
                _unread(partition),
                f"{partition.messages:,}",
                f"{partition.gaps:,}",
                f"[bold red]{partition.lost:,}[/]" if partition.lost else "0",
                _classes(partition.rows, partition.row_classes),
                _classes(partition.labels, partition.label_classes),
            )
            for partition in partitions
        ),
        "Nothing has been read yet.",
    )
    problems = [problem for partition in partitions for problem in partition.problems]
    for problem in problems:
        errors.print(f"[bold red]out of balance:[/] {problem}")
    if partitions and not problems:
        console.print("[green]The ledger balances.[/]")


def _unread(partition: overview.LedgerLine) -> str:
    """Messages that the log was seen to hold behind the last one read; empty when nobody looked."""
    return "" if partition.unread is None else f"{partition.unread:,}"


def _classes(total: int, classes: dict[str, int]) -> str:
    parts = ", ".join(f"{count:,} {name}" for name, count in sorted(classes.items()) if count)
    return f"{total:,} = {parts}" if parts else f"{total:,}"
