"""Commands about incidents: what is wrong with a model, which kind of change it is, what to do."""

from collections.abc import Mapping
from typing import Any

import typer

from trimtab.cli_context import store_of
from trimtab.cli_models import me
from trimtab.cli_operate import OptionalModel, RecordId
from trimtab.cli_output import Json, Limit, console, now_ms, print_json, print_table, when, word
from trimtab.records import Incident

incident_app = typer.Typer(
    help="Trouble with models: the diagnosis, and what is done.", no_args_is_help=True
)


@incident_app.command("list")
def incident_list(
    context: typer.Context, model: OptionalModel = None, limit: Limit = 50, as_json: Json = False
) -> None:
    """List incidents, newest first."""
    from trimtab.store.agent import list_incidents

    with store_of(context) as store:
        found = list_incidents(store, model, limit)
    if as_json:
        print_json(found)
        return
    print_table(
        ("incident", "model", "state", "since (UTC)", "diagnosis", "advice", "reason"),
        (_row(incident) for incident in found),
        "There has been no incident.",
    )


def _row(incident: Incident) -> tuple[str, ...]:
    said = diagnosis_of(incident.decision)
    return (
        incident.id,
        incident.model,
        word(incident.state),
        when(incident.onset_ms),
        _plain(said.get("cause", "")),
        _plain(said.get("advice", "")),
        incident.reason,
    )


@incident_app.command("show")
def incident_show(context: typer.Context, incident: RecordId, as_json: Json = False) -> None:
    """Show an incident: the diagnosis with its reasons, the decision, transitions."""
    from trimtab.store.agent import get_incident, transitions_of

    with store_of(context) as store:
        found = get_incident(store, incident)
        steps = transitions_of(store, "incident", incident)
    if as_json:
        print_json({"incident": found, "transitions": steps})
        return
    console.print(f"{found.model}: {found.reason}", markup=False, highlight=False, soft_wrap=True)
    facts = {
        "state": word(found.state),
        "since": when(found.onset_ms),
        "run": found.run_id,
        "rollout": found.rollout_id,
    }
    for key, value in facts.items():
        if value is not None:
            console.print(f"{key:20} {value}", markup=False, highlight=False)
    print_diagnosis(found.decision)
    console.print("\n[dim]transitions[/]")
    print_table(
        ("#", "at (UTC)", "from", "to", "why"),
        ((str(s.seq), when(s.at_ms), s.from_state, word(s.to_state), s.reason) for s in steps),
        "none",
    )


@incident_app.command("close")
def incident_close(context: typer.Context, incident: RecordId, as_json: Json = False) -> None:
    """Say that it is over; if the trouble lasts, the agent opens a new one."""
    from trimtab.store.agent import request

    with store_of(context) as store:
        number = request(store, "incident", incident, "close", me(), now_ms())
    if as_json:
        print_json({"request": number, "record": "incident", "id": incident, "action": "close"})
    else:
        console.print(f"Asked to close incident {incident}; the agent acts on it at its next tick.")


def diagnosis_of(decision: Mapping[str, Any]) -> dict[str, Any]:
    """The diagnosis that a decision rests on; empty where it names none."""
    said = decision.get("diagnosis")
    return said if isinstance(said, dict) else {}


def _plain(code: str) -> str:
    """A code as people say it: `label_shift` is label shift."""
    return code.replace("_", " ")


def print_diagnosis(decision: Mapping[str, Any]) -> None:
    """Print the diagnosis of a decision: cause, advice, every sign. Nothing where there is none."""
    said = diagnosis_of(decision)
    if not said:
        return
    facts = {"diagnosis": _plain(said["cause"]), "advice": _plain(said["advice"])}
    if said.get("also"):
        facts["also seen"] = ", ".join(_plain(cause) for cause in said["also"])
    if said.get("onset_ms") is not None:
        facts["began"] = f"{when(said['onset_ms'])} UTC"
    facts["in short"] = said["summary"]
    for key, value in facts.items():
        console.print(f"{key:20} {value}", markup=False, highlight=False, soft_wrap=True)
    for sign in said.get("reasons", ()):
        console.print(f"  {sign['text']}", markup=False, highlight=False, soft_wrap=True)
    if said.get("more_reasons"):
        console.print(f"  and {said['more_reasons']} more")
