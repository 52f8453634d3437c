"""`trimtab stream FILE`: a CSV or Parquet file as inference events and labels."""

import datetime as dt
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trimtab.cli_context import loaded, store_of
from trimtab.cli_models import print_ledger, print_windows
from trimtab.cli_output import ATTENTION, Json, console, errors, now_ms, print_json, when
from trimtab.errors import TrimtabError
from trimtab.monitor.embedded import API_VERSION
from trimtab.settings import KafkaSettings
from trimtab.store import overview
from trimtab.store.models import load_contracts
from trimtab.store.verdicts import verdicts_between
from trimtab.stream import StreamOptions, StreamResult, stream_file
from trimtab.stream_wait import Pacer, end_offsets, wait_until_judged


def stream(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .csv, .csv.gz or .parquet file.")],
    model: Annotated[str, typer.Option("--model", help="Name of the model.")],
    version: Annotated[str, typer.Option(help="Version that answered.")] = "1",
    features: Annotated[
        list[str] | None,
        typer.Option(
            "--feature", metavar="NAME=COLUMN", help="A feature; default: every other column."
        ),
    ] = None,
    categories: Annotated[
        list[str] | None,
        typer.Option("--category", metavar="NAME", help="A feature sent as text."),
    ] = None,
    prediction: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the model's answers.")
    ] = None,
    score: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the positive class's score.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the truth, sent as labels.")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of event times: ISO 8601, or a number."),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option("--id", metavar="COLUMN", help="Column of inference ids; default: new ones."),
    ] = None,
    version_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of the version that answered each row."),
    ] = None,
    latency: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of latencies in milliseconds.")
    ] = None,
    predict: Annotated[
        str | None,
        typer.Option(help="Without predictions: previous-label, or constant:VALUE."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Rows per second; default: as fast as possible.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="Event time of the first row (ISO 8601) where no column gives it."),
    ] = None,
    interval: Annotated[
        str | None, typer.Option(help="Event time between rows, such as 30 min.")
    ] = None,
    label_delay: Annotated[str, typer.Option(help="Event time from a row to its label.")] = "0s",
    label_source: Annotated[
        str, typer.Option(help="human, outcome, rule, model or unknown.")
    ] = "outcome",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows.")] = None,
    wait: Annotated[
        bool,
        typer.Option(help="Wait for the monitor, then print the ledger and each window's verdict."),
    ] = False,
    wait_limit: Annotated[
        float, typer.Option(min=1, help="Seconds to wait for the monitor at most.")
    ] = 600.0,
    as_json: Json = False,
) -> None:
    """Stream a file as inference events and labels; exit code 3 when the ledger does not balance."""
    kafka = loaded(context).settings.kafka
    if label_source not in {"human", "outcome", "rule", "model", "unknown"}:
        raise typer.BadParameter(f"{label_source!r} is no label source.")
    options = StreamOptions(
        path=file,
        model=model,
        version=version,
        bootstrap_servers=kafka.bootstrap,
        api_version=kafka.api_version,
        client=kafka.options,
        topic_prefix=kafka.prefix,
        features=_mapping(features or []),
        categories=frozenset(categories or []),
        prediction_column=prediction,
        score_column=score,
        label_column=label,
        time_column=time,
        id_column=id_column,
        version_column=version_column,
        latency_column=latency,
        predict=predict,
        rate=rate,
        start=_moment(start),
        interval=interval,
        label_delay=label_delay,
        label_source=cast("Literal['outcome']", label_source),
        limit=limit,
    )
    _warn_without_contract(context, model)
    result = _send(context, options, kafka, quiet=as_json)
    if not as_json:
        _print_result(result)
    answer = _answer(context, model, result, wait_limit, quiet=as_json) if wait else None
    if as_json:
        print_json(result if answer is None else answer)
    if answer is not None and answer["ledger"]["problems"]:
        raise typer.Exit(ATTENTION)


def _warn_without_contract(context: typer.Context, model: str) -> None:
    """Say before anything is sent that rows of a model without a contract are ignored."""
    try:
        with store_of(context) as store:
            known = model in load_contracts(store)
    except TrimtabError:
        return  # no store here to ask; what needs one says so itself
    if not known:
        errors.print(
            f"[yellow]note[/] {escape(model)} has no contract: its rows will be ignored until "
            "`trimtab model apply FILE` gives it one, and are not counted afterwards.",
            soft_wrap=True,
            highlight=False,
        )


def _send(
    context: typer.Context, options: StreamOptions, kafka: KafkaSettings, *, quiet: bool
) -> StreamResult:
    bar = Progress(
        TextColumn("streaming"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=quiet or not errors.is_terminal,
    )
    with ExitStack() as stack:
        pace = None
        if kafka.version == API_VERSION:  # the embedded broker: it forgets what is not read in time
            pace = Pacer(stack.enter_context(store_of(context)), end_offsets(kafka))
        stack.enter_context(bar)
        task = bar.add_task("rows", total=None)
        return stream_file(
            options, lambda done, total: bar.update(task, completed=done, total=total), pace
        )


def _answer(
    context: typer.Context, model: str, result: StreamResult, limit_s: float, *, quiet: bool
) -> dict[str, Any]:
    """Wait for the monitor; then the ledger and the verdict of each window that was streamed."""
    kafka = loaded(context).settings.kafka
    with store_of(context) as store:
        ends = end_offsets(kafka)
        with errors.status("waiting for the monitor …", spinner="dots") as status:
            wait_until_judged(
                store,
                model,
                ends,
                limit_s,
                lambda left: status.update(f"waiting for the monitor: {left}"),
                now_ms,
            )
        partitions = overview.ledger_lines(store, "monitor")
        length_ms = load_contracts(store)[model].contract.windows.length_ms
        from_ms, to_ms = (result.first_ms or 0) - length_ms + 1, (result.last_ms or 0) + 1
        windows = verdicts_between(store, model, from_ms, to_ms)
    if not quiet:
        print_windows(model, windows)
        print_ledger(partitions)
    problems = [problem for partition in partitions for problem in partition.problems]
    return {
        "stream": result,
        "ledger": {"balances": not problems, "problems": problems, "partitions": partitions},
        "windows": windows,
    }


def _print_result(result: StreamResult) -> None:
    per_second = result.inferences / result.seconds if result.seconds else 0.0
    console.print(
        f"{result.inferences:,} inferences and {result.labels:,} labels, all acknowledged, in "
        f"{result.seconds:.1f} s ({per_second:,.0f} a second); event time "
        f"{when(result.first_ms)} to {when(result.last_ms)} UTC.",
        highlight=False,
    )


def _mapping(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        found[name] = column if equals else name
    return found


def _moment(text: str | None) -> dt.datetime | None:
    if text is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise TrimtabError(f"{text!r} is no time. Write it as 2026-01-31T12:00:00Z.") from None
    return moment.replace(tzinfo=moment.tzinfo or dt.UTC)
