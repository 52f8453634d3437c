"""What a stranger meets on the first day: the demo's closing words, a stream without a contract."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from trimtab.cli import app
from trimtab.store import migrate
from trimtab.store.engine import open_store
from trimtab.store.models import retire_model
from trimtab.testing import example
from trimtab_agent.demo.summary import Summary, show

NOW_MS = 1_800_000_000_000
KEY = "tt_" + "k" * 120
SUMMARY = Summary(
    ending="promoted",
    accuracy_before_drift=0.97,
    accuracy_at_alert=0.8,
    accuracy_after=None,
    alerts_opened=1,
    alerts=["accuracy < 0.9"],
    why_retrained="accuracy fell",
    gate={},
    challenger_share_max=0.5,
    rows_streamed=10,
    requests={},
    ledger_balances=True,
    ledger_problems=[],
    messages_lost=0,
    elapsed_s=1.0,
    transitions=[],
    restarts=[],
    addresses={"dashboard": "http://127.0.0.1:1", "API key": KEY, "logs": "/logs"},
)


def said(*, running: bool) -> str:
    out = io.StringIO()
    show(SUMMARY, Console(file=out, width=80), running=running)
    return out.getvalue()


def test_the_demo_s_key_is_whole_at_80_columns_and_begins_on_a_line_of_its_own() -> None:
    text = said(running=True)
    assert KEY in text
    assert text.startswith("\n")
    assert "Nothing runs" not in text


def test_a_demo_that_has_ended_gives_no_address_that_answers_no_more() -> None:
    text = said(running=False)
    assert KEY not in text
    assert "http://" not in text
    assert "Nothing runs any more" in text
    assert "/logs" in text


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIMTAB_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    store = open_store("sqlite:///.trimtab/trimtab.db")
    migrate.upgrade(store)
    example.fill(store, NOW_MS, windows=3)
    store.close()
    return tmp_path


def test_streaming_to_a_model_without_a_contract_is_warned_of(place: Path) -> None:
    missing = str(place / "no.csv")
    stranger = CliRunner().invoke(app, ["stream", missing, "--model", "stranger"])
    known = CliRunner().invoke(app, ["stream", missing, "--model", "digits"])
    assert "stranger has no contract" in stranger.output
    assert "has no contract" not in known.output


def test_a_retired_model_says_so_and_windows_carry_verdict_numbers(place: Path) -> None:
    listed = CliRunner().invoke(app, ["window", "list", "digits"]).output
    assert "verdict" in listed.splitlines()[0]
    store = open_store(f"sqlite:///{place}/.trimtab/trimtab.db")
    retire_model(store, "digits", NOW_MS)
    store.close()
    assert "digits is retired" in CliRunner().invoke(app, ["model", "show", "digits"]).output
