"""`trimtab up`: everything in one terminal, until Ctrl-C."""

import signal
import threading
import time
from typing import Annotated

import typer

from trimtab.cli_context import loaded
from trimtab.cli_output import console
from trimtab.up import PROCESSES, Stack, check_ports, create_topics

_CHECK_S = 0.5


def up(
    context: typer.Context,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"Leave a process out: {', '.join(PROCESSES)}."),
    ] = None,
) -> None:
    """Start monitor, API, archive, agent and model server in one terminal.

    Without kafka.bootstrap in the settings it brings a small broker of its own, which keeps at most
    5 MB per partition in memory: for trying out, not for production.
    """
    left_out = set(without or [])
    unknown = left_out - set(PROCESSES)
    if unknown:
        raise typer.BadParameter(
            f"{', '.join(sorted(unknown))}: name one of {', '.join(PROCESSES)}."
        )
    names = [name for name in PROCESSES if name not in left_out]
    found = loaded(context)
    check_ports(found.settings, names)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Stack(found) as stack:
        if not stack.embedded:
            for topic in create_topics(stack.settings.kafka):
                console.print(f"created topic {topic}", markup=False)
        stack.start(names)
        key = stack.key(time.time_ns() // 1_000_000)
        if "api" not in left_out:
            stack.wait_ready("api", f"{stack.dashboard}/healthz")
        broker = " (embedded, for trying out)" if stack.embedded else ""
        for name, value in (
            ("dashboard", stack.dashboard),
            ("API key", f"{key}  (shown once; the key of the last start is revoked)"),
            ("model server", stack.server),
            ("Kafka", f"{stack.settings.kafka.bootstrap}{broker}"),
            ("database", stack.store.engine.url.render_as_string(hide_password=True)),
            ("logs", str(stack.logs)),
        ):
            console.print(f"[bold]{name:14}[/]{value}", highlight=False, soft_wrap=True)
        if stack.embedded:
            console.print(
                "[dim]Other commands reach the embedded broker with "
                f"--set kafka.bootstrap={stack.settings.kafka.bootstrap} "
                f"--set kafka.api_version={stack.settings.kafka.api_version}[/]",
                soft_wrap=True,
            )
        while not stop.wait(_CHECK_S):
            for restart in stack.check():
                console.print(
                    f"{restart.name} ended with {restart.exit_code} and was started again; see "
                    f"{restart.log}",
                    markup=False,
                )
        console.print("stopping")
