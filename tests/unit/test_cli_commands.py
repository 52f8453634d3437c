"""The command line: JSON everywhere, exit codes as documented, errors in one line, docs as generated."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from sqlalchemy import update
from typer.testing import CliRunner

from trimtab import cli_docs, cli_doctor
from trimtab.alerts.ledger import apply_ledger_alert
from trimtab.artifacts import FeatureSpec, make_signature, write_manifest
from trimtab.cli import app, main
from trimtab.errors import TrimtabError
from trimtab.settings import load
from trimtab.store import migrate
from trimtab.store.agent import current_traffic
from trimtab.store.engine import open_store
from trimtab.store.ledger import claim
from trimtab.store.tables import partitions
from trimtab.testing import example

NOW_MS = 1_800_000_000_000
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIMTAB_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    return tmp_path


@pytest.fixture
def filled(place: Path) -> Path:
    store = open_store("sqlite:///.trimtab/trimtab.db")
    migrate.upgrade(store)
    example.fill(store, NOW_MS, windows=30)
    store.close()
    return place


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, TrimtabError):
        raise result.exception
    return result.exit_code, result.stdout


def read(*arguments: str, code: int = 0) -> Any:
    exit_code, out = call(*arguments, "--json")
    assert exit_code == code, out
    return json.loads(out)


def test_status_tells_the_fleet_and_asks_for_attention(filled: Path) -> None:
    models = read("status", code=3)
    assert [entry["model"] for entry in models] == ["digits"]
    assert models[0]["open_alerts"] == 1
    read("alert", "resolve", "a1", "--note", "done")
    assert read("status")[0]["open_alerts"] == 0


@pytest.mark.parametrize(
    ("command", "look"),
    [
        (["model", "list"], lambda d: d[0]["model"] == "digits"),
        (["model", "show", "digits"], lambda d: d["contract"]["task"] == "multiclass"),
        (["window", "list", "digits", "--limit", "5"], lambda d: len(d) == 5),
        (["window", "show", "digits"], lambda d: d[0]["verdict"]["outcome"] == "ok"),
        (["baseline", "list", "digits"], lambda d: d == []),
        (["alert", "list"], lambda d: d[0]["condition"] == example.RULE),
        (["alert", "show", "a1"], lambda d: d["id"] == "a1"),
        (["incident", "list", "digits"], lambda d: d[0]["decision"]["action"] == "retrain"),
        (["incident", "show", "i1"], lambda d: d["incident"]["decision"]["diagnosis"]["reasons"]),
        (["run", "list"], lambda d: d[0]["state"] == "blessed"),
        (["run", "show", "r1"], lambda d: d["transitions"][0]["seq"] == 1),
        (["rollout", "list", "digits"], lambda d: d[0]["challenger_version"] == "2"),
        (["rollout", "show", "o1"], lambda d: len(d["transitions"]) == 5),
        (["ledger", "show"], lambda d: d["balances"] is True),
        (["key", "list"], lambda d: d == []),
        (["config", "show"], lambda d: {"key", "value", "origin"} == set(d[0])),
    ],
)
def test_records_come_as_json_and_as_tables(filled: Path, command: list[str], look: Any) -> None:
    assert look(read(*command))
    code, out = call(*command)
    assert code == 0
    assert out.strip()


def test_an_incident_and_its_run_tell_what_kind_of_change_it_is(filled: Path) -> None:
    for command in (("incident", "show", "i1"), ("run", "show", "r1")):
        _, out = call(*command)
        assert "covariate harmful" in out
        assert "accuracy is 0.871, which meets the rule" in out


def test_an_incident_is_closed_by_a_request_that_the_agent_acts_on(filled: Path) -> None:
    assert read("incident", "close", "i1")["action"] == "close"


def test_a_rollout_is_paused_by_a_request_that_the_agent_acts_on(filled: Path) -> None:
    assert read("rollout", "pause", "o1")["action"] == "pause"
    asked = read("rollout", "show", "o1")["requests"]
    assert [entry["action"] for entry in asked] == ["pause"]


def artifact_of(place: Path, features: tuple[str, ...]) -> Path:
    folder = place / "artifact"
    folder.mkdir()
    (folder / "model").write_bytes(b"weights")
    write_manifest(
        folder,
        recipe="tabular",
        framework="keras",
        signature=make_signature(
            "multiclass", tuple(FeatureSpec(name) for name in features), ("0", "1", "2", "3")
        ),
        params={},
        created_ms=NOW_MS,
    )
    return folder


def test_an_artifact_of_another_model_does_not_become_champion(place: Path) -> None:
    store = open_store("sqlite:///.trimtab/trimtab.db")
    migrate.upgrade(store)
    example.apply_example(store, NOW_MS)
    folder = artifact_of(place, ("income", "contrast", "sharpness"))
    said = "does not fit the contract of digits: it takes income, which .* does not take brightness"
    with pytest.raises(TrimtabError, match=said):
        call("model", "champion", "digits", "7", str(folder))
    assert current_traffic(store, "digits") is None
    store.close()


def test_an_artifact_that_fits_becomes_champion(place: Path) -> None:
    store = open_store("sqlite:///.trimtab/trimtab.db")
    migrate.upgrade(store)
    example.apply_example(store, NOW_MS)
    folder = artifact_of(place, ("brightness", "contrast", "sharpness"))
    assert read("model", "champion", "digits", "7", str(folder))["version"] == "7"
    traffic = current_traffic(store, "digits")
    assert traffic is not None
    assert traffic.arms[0].version == "7"
    store.close()


def test_a_silence_has_an_end(filled: Path) -> None:
    entry = read("alert", "silence", "a1", "--for", "90 min", "--note", "known")
    assert entry["to_ms"] - entry["from_ms"] == 90 * 60_000


def test_a_key_is_shown_once_and_revoked(place: Path) -> None:
    made = read("key", "create", "someone", "--role", "operator", "--scope", "team:risk")
    assert made["secret"].startswith("tt_")
    listed = read("key", "list")
    assert made["secret"] not in json.dumps(listed)
    assert listed[0]["role"] == "operator"
    assert read("key", "revoke", made["id"])["revoked_ms"] is not None


def test_applying_a_contract_shows_what_changes_and_a_wrong_one_changes_nothing(
    place: Path,
) -> None:
    text = 'name = "m"\ntask = "binary"\n[features]\nx = { kind = "number" }\n'
    file = place / "m.toml"
    file.write_text(text)
    first = read("model", "apply", str(file))
    assert first[0]["revision"] == 1
    assert read("model", "apply", str(file))[0]["changed"] is False
    file.write_text(text + 'y = { kind = "number" }\n')
    dry = read("model", "apply", str(file), "--dry-run")
    assert any("y" in line for line in dry[0]["changes"])
    assert read("model", "apply", str(file))[0]["revision"] == 2
    file.write_text(text.replace('"number"', '"nmber"'))
    with pytest.raises(TrimtabError, match=r"m\.toml:4"):
        call("model", "apply", str(file))
    assert read("model", "show", "m")["status"]["contract_revision"] == 2


def test_doctor_names_what_needs_care_and_exits_with_3(place: Path) -> None:
    checks = {entry["name"]: entry for entry in read("doctor", code=3)}
    assert checks["Python"]["fine"] is True
    assert checks["crc32c"]["fine"] is True
    assert checks["store"]["fine"] is None
    assert checks["ledger"]["fine"] is None
    assert checks["Kafka"]["fine"] is False
    assert "kafka.bootstrap" in checks["Kafka"]["said"]
    assert checks["clock"]["fine"] is None
    assert checks["clock"]["said"].startswith("not checked")


def test_a_ledger_that_does_not_balance_shows_in_doctor_and_status(filled: Path) -> None:
    settings = load().settings
    assert cli_doctor._ledger(settings).fine is True
    store = open_store("sqlite:///.trimtab/trimtab.db")
    claim(
        store,
        consumer="monitor",
        cluster_id="c",
        topic="in",
        topic_id="",
        partition=0,
        owner="one",
        beginning_offset=0,
        now_ms=NOW_MS,
    )
    with store.write() as connection:
        connection.execute(update(partitions).values(rows=partitions.c.rows + 1))
        apply_ledger_alert(connection, ["rows are missing"], [], NOW_MS)
    store.close()
    found = cli_doctor._ledger(settings)
    assert found.fine is False
    assert "out of balance: monitor in[0]" in found.said
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == 3
    assert "trimtab itself: The ledger does not balance: rows are missing." in " ".join(
        result.output.split()
    )
    assert "(trimtab)" in call("alert", "list")[1]


def test_doctor_compares_the_clock_with_the_database_servers(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load({"store.url": postgres_url}, environ={}).settings
    assert cli_doctor._clock(settings).fine is True
    real = cli_doctor.now_ms
    monkeypatch.setattr(cli_doctor, "now_ms", lambda: real() + 60_000)
    ahead = cli_doctor._clock(settings)
    assert ahead.fine is False
    assert "NTP" in ahead.said


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["status"], 1, "There is no database"),
        (["--set", "api.prot=1", "config", "show"], 1, "api.prot: there is no such setting"),
        (["window", "show"], 2, "Missing argument"),
        (["--set", "nonsense", "status"], 2, "KEY=VALUE"),
        (["no-such-command"], 2, "No such command"),
    ],
)
def test_errors_are_one_line_and_have_their_exit_code(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code
    err = " ".join(capsys.readouterr().err.split())
    assert said in err
    assert "Traceback" not in err


def test_every_reading_command_offers_json() -> None:
    root: Any = typer.main.get_command(app)
    context = root.make_context("trimtab", [], resilient_parsing=True)
    processes = {"monitor", "api", "archive", "serve", "up", "agent"}
    lacking = [
        " ".join(path)
        for path, command in cli_docs._commands(root, context, ())
        if path[0] not in processes
        and "--json" not in [name for parameter in command.params for name in parameter.opts]
    ]
    assert lacking == []


def test_the_documented_commands_are_the_commands() -> None:
    assert (ROOT / cli_docs.TARGET).read_text(encoding="utf-8") == cli_docs.text()


def test_help_imports_no_heavy_library() -> None:
    heavy = (
        "tensorflow",
        "mlflow",
        "evidently",
        "pandas",
        "pyarrow",
        "litestar",
        "scipy",
        "optuna",
    )
    script = f"import sys, trimtab.cli\nprint([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
