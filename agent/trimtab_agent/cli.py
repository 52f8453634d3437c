"""`trimtab agent`: the one command this package adds; records are read and asked of by trimtab's own."""

import typer

app = typer.Typer(add_completion=False)


@app.command()
def agent(context: typer.Context) -> None:
    """Decide, retrain and roll out on a schedule.

    One agent is active, others stand by. Ctrl-C stops it; its records say where it was.
    """
    from trimtab.cli_context import loaded, run_process
    from trimtab_agent.app import run_agent

    run_process(loaded(context).settings, "agent", run_agent)
