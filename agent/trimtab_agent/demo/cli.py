"""`trimtab demo`: parses, plays, prints."""

import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from trimtab.errors import TrimtabError
from trimtab_agent.demo.app import TRIALS, Demo, DemoOptions
from trimtab_agent.demo.summary import show

app = typer.Typer(add_completion=False)
_KEEP_CHECK_S = 0.5


@app.command()
def demo(
    bad_challenger: Annotated[
        bool,
        typer.Option(help="The other ending: a challenger that is worse on live traffic."),
    ] = False,
    keep: Annotated[bool, typer.Option(help="Leave everything running until Ctrl-C.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object.")
    ] = False,
    directory: Annotated[
        Path, typer.Option(help="Where its files go; a former demo's are replaced.")
    ] = Path(".trimtab/demo"),
    trials: Annotated[int, typer.Option(min=3, max=60, help="Trials of the search.")] = TRIALS,
) -> None:
    """Play the whole loop on handwritten digits and a failing camera, in about three minutes.

    Exit code 1 when the loop does not close; the message names the link.
    """
    console = Console(stderr=True)
    options = DemoOptions(
        directory=directory, bad_challenger=bad_challenger, keep=keep, trials=trials
    )
    performance = Demo(options, console)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        summary = performance.run()
        if as_json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(summary)).decode() + "\n")
            sys.stdout.flush()
        else:
            show(summary, Console(), running=keep)
        if not summary.ledger_balances or summary.messages_lost:
            raise TrimtabError(
                f"The ledger does not balance: {'; '.join(summary.ledger_problems)} "
                f"({summary.messages_lost} messages lost)."
            )
        if keep:
            console.print("Everything keeps running. Ctrl-C ends it.")
            while True:
                performance.tend()
                time.sleep(_KEEP_CHECK_S)
    except KeyboardInterrupt:
        console.print("stopping")
        raise typer.Exit(130) from None
    finally:
        performance.stop()


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt
