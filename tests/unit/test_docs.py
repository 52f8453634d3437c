"""The documents name only what exists: files, functions, terms, settings, metrics, commands."""

import ast
import re
import shlex
import sqlite3
import time
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from trimtab.alerts.delivery import sign
from trimtab.cli import app
from trimtab.settings import load

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "services" / "trimtab"
AGENT = ROOT / "agent" / "trimtab_agent"
SETTINGS_CODE = (PACKAGE / "settings.py").read_text("utf-8")
DOCS = ROOT / "docs"
PAGES = [ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"(?:[\w.-]+/)*[\w.-]+\.(?:py|md|toml|yaml|txt)|(?:[\w.-]+/)+")
PLACE = re.compile(r"((?:[\w-]+/)*[\w-]+\.py):([A-Za-z_][\w.]*)")


def prose(path: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text("utf-8"), re.DOTALL)


@lru_cache
def all_code() -> str:
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "agent").rglob("*.py"), ROOT / "pyproject.toml"]
    return "\n".join(path.read_text("utf-8") for path in files)


def located(path: str) -> Path | None:
    """The file or folder that a document means, or None."""
    return next((p for p in (ROOT / path, PACKAGE / path) if p.exists()), None)


@lru_cache
def names_in(path: Path) -> frozenset[str]:
    """Functions, classes, constants and methods of a module; methods as `Class.method`."""

    def of(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from of(node.body, f"{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign):
                targets = [node.target]
            yield from (prefix + t.id for t in targets if isinstance(t, ast.Name))

    return frozenset(of(ast.parse(path.read_text("utf-8")).body))


# --- architecture ---------------------------------------------------------------------------------


def test_every_file_and_function_of_the_architecture_exists() -> None:
    found = CODE.findall(prose(ROOT / "ARCHITECTURE.md"))
    places = [match for token in found if (match := PLACE.fullmatch(token))]
    assert len(places) > 60
    for place in places:
        path = located(place[1])
        assert path is not None, place[0]
        assert place[2] in names_in(path), place[0]
    for token in found:
        if PATH.fullmatch(token):
            assert located(token) is not None, token


def test_every_other_name_of_the_architecture_occurs_in_the_code() -> None:
    tokens = [
        token
        for token in CODE.findall(prose(ROOT / "ARCHITECTURE.md"))
        if not (PLACE.fullmatch(token) or PATH.fullmatch(token) or token.startswith("kill"))
    ]
    assert tokens
    assert [token for token in tokens if token not in all_code()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_documents_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    relative = [link for link in links if "://" not in link]
    assert [link for link in relative if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text("utf-8")
    pages = [page for page in DOCS.glob("*.md") if page.name != "index.md"]
    assert [page.name for page in pages if f"({page.name})" not in index] == []
    listed = (DOCS / "decisions" / "README.md").read_text("utf-8")
    records = sorted(DOCS.glob("decisions/0*.md"))
    assert [record.name for record in records if f"({record.name})" not in listed] == []
    assert [record.name[:4] for record in records] == [
        f"{number:04d}" for number in range(1, len(records) + 1)
    ]


# --- faults ---------------------------------------------------------------------------------------


def test_every_test_that_the_page_of_faults_names_exists() -> None:
    named = [
        token.split("::") for token in CODE.findall(prose(DOCS / "faults.md")) if "::" in token
    ]
    assert len(named) > 30
    for path, name in named:
        code = located(path)
        assert code is not None, path
        assert f"def {name}(" in code.read_text("utf-8"), name


def test_the_page_of_faults_has_a_line_for_each() -> None:
    tree = ast.parse((ROOT / "tests/recovery/test_faults.py").read_text("utf-8"))
    (table,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FAULTS"
    )
    assert isinstance(table, ast.Dict)
    page = (DOCS / "faults.md").read_text("utf-8")
    names = [ast.unparse(key).replace("_", " ") for key in table.keys if key is not None]
    assert [name for name in names if f"\n| {name} |" not in page] == []


# --- glossary -------------------------------------------------------------------------------------

TERM = re.compile(r"^\| ([^|`]+) \| `([^`]+)` \| (.+) \|$", re.MULTILINE)


def test_every_term_of_the_glossary_lives_in_the_code() -> None:
    terms = TERM.findall((DOCS / "glossary.md").read_text("utf-8"))
    assert len(terms) > 70
    missing = [code for _, code, _ in terms if not re.search(rf"\b{re.escape(code)}\b", all_code())]
    assert missing == []


def test_the_glossary_has_one_entry_per_term_in_order() -> None:
    for part in (DOCS / "glossary.md").read_text("utf-8").split("\n## ")[1:]:
        terms = [term for term, _, _ in TERM.findall(part)]
        rows = [line for line in part.splitlines() if line.startswith("| ")][1:]
        assert len(terms) == len(rows), "a row is malformed"
        assert terms == sorted(set(terms), key=str.lower)


# --- operations -----------------------------------------------------------------------------------

OPERATIONS = DOCS / "operations.md"
WHOLE_TABLES = {"kafka.options", "kafka.consumer", "webhooks"}


def dotted(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{above}{name}"
        flat |= (
            dotted(value, f"{key}.")
            if isinstance(value, dict) and key not in WHOLE_TABLES
            else {key: value}
        )
    return flat


def test_every_setting_is_documented_in_order_with_its_default() -> None:
    section = OPERATIONS.read_text("utf-8").split("\n## Settings\n", 1)[1]
    rows = re.findall(r"^\| `([^`]+)` \| (\S.*?) \| (.+) \|$", section, re.MULTILINE)
    settings = dotted(load(environ={}).settings.model_dump(mode="json"))
    assert [name for name, _, _ in rows] == list(settings)
    for name, written, meaning in rows:
        value = settings[name]
        if written == "in `data_dir`":
            assert ".trimtab/" in value
        elif written == "from the prefix":
            assert value[0].startswith("trimtab.")
        elif written == "–":
            assert value is None
        else:
            assert tomllib.loads(f"x = {written.strip('`')}")["x"] == value, name
        assert meaning


def test_every_setting_is_read_by_somebody() -> None:
    sources = [*PACKAGE.rglob("*.py"), *AGENT.rglob("*.py")]
    code = "\n".join(path.read_text("utf-8") for path in sources if path.name != "settings.py")
    # `kafka.client_options()` reads three of them inside the settings.
    own = re.search(r"    def client_options.*?@field_validator", SETTINGS_CODE, re.DOTALL)
    assert own
    names = dotted(load(environ={}).settings.model_dump(mode="json"))
    unread = [name for name in names if not re.search(rf"\.{name.split('.')[-1]}\b", code + own[0])]
    assert unread == []


def test_the_settings_file_of_the_page_is_one(tmp_path: Path) -> None:
    (text,) = blocks(OPERATIONS, "toml")
    file = tmp_path / "trimtab.toml"
    file.write_text(text)
    loaded = load(file=file, environ={}).settings
    assert loaded.store.url.startswith("postgresql://")
    assert loaded.kafka.options["security_protocol"] == "SSL"


@pytest.mark.parametrize("place", ["api", "monitor"])
def test_every_metric_is_documented(place: str) -> None:
    code = (PACKAGE / place / "metrics.py").read_text("utf-8")
    in_code = set(re.findall(r'"(trimtab_\w+)"', code))
    section = OPERATIONS.read_text("utf-8").split("\n## What to watch\n")[1].split("\n## ")[0]
    parts = section.split("Each monitor serves")
    documented = re.findall(r"^\| `(trimtab_\w+)`", parts[place == "monitor"], re.MULTILINE)
    assert sorted(documented) == sorted(in_code)


def test_the_backup_of_the_page_holds_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = [b for b in blocks(OPERATIONS, "sh") if b.startswith("python3 -c")]
    monkeypatch.chdir(tmp_path)
    Path(".trimtab").mkdir()
    with sqlite3.connect(".trimtab/trimtab.db") as made:
        made.execute("create table t (x)")
        made.execute("insert into t values (7)")
    code = shlex.split(command)[2]
    exec(compile(code, "docs/operations.md", "exec"), {})
    assert sqlite3.connect("trimtab-backup.db").execute("select x from t").fetchall() == [(7,)]


@pytest.mark.kafka
def test_the_topics_of_the_page_are_created_on_a_real_broker(
    kafka_broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kafka import KafkaAdminClient

    (code,) = blocks(OPERATIONS, "python")
    monkeypatch.setenv("TRIMTAB_KAFKA__BOOTSTRAP", kafka_broker.bootstrap)
    monkeypatch.setenv("TRIMTAB_KAFKA__PREFIX", "of-the-page")
    exec(compile(code, "docs/operations.md", "exec"), {})
    section = OPERATIONS.read_text("utf-8").split("\n### Topics\n")[1].split("\n## ")[0]
    named = re.findall(r"^\| `trimtab\.(\w+)`", section, re.MULTILINE)
    assert len(named) == 5
    missing = {f"of-the-page.{name}" for name in named}
    admin = KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap)
    deadline_s = time.monotonic() + 20
    try:
        while missing:  # a broker lists a new topic a moment later
            assert time.monotonic() < deadline_s, f"not created: {missing}"
            missing -= set(admin.list_topics())
    finally:
        admin.close()


# --- commands -------------------------------------------------------------------------------------


def commands_of(page: Path) -> list[str]:
    """Every `trimtab …` line of the page's shell blocks, and in its prose."""
    fenced = "\n".join(blocks(page, "sh")).splitlines()
    inline = CODE.findall(prose(page))
    return [line for line in [*fenced, *inline] if line.startswith("trimtab ")]


@pytest.mark.parametrize("page", [OPERATIONS, DOCS / "security.md"], ids=lambda page: page.name)
def test_every_command_of_the_page_exists_with_its_options(page: Path) -> None:
    found = commands_of(page)
    assert found
    for line in found:
        words = shlex.split(line)[1:]
        command: Any = typer.main.get_command(app)
        with click.Context(command, info_name="trimtab") as context:
            while isinstance(command, click.Group):
                if words[:1] == ["--set"]:
                    words = words[2:]
                    continue
                command = command.get_command(context, words.pop(0))
                assert command is not None, line
            if words or not any(p.required for p in command.params):
                command.make_context("it", words, resilient_parsing=False)


# --- security -------------------------------------------------------------------------------------

SECURITY = DOCS / "security.md"


def test_the_check_of_the_page_knows_a_genuine_webhook() -> None:
    (code,) = blocks(SECURITY, "python")
    names: dict[str, Any] = {}
    exec(compile(code, "docs/security.md", "exec"), names)
    body, now_s = b'{"specversion":"1.0"}', int(time.time())

    def genuine(stamp_s: int = now_s, secret: str = "s", sent: bytes = body) -> bool:
        headers = {
            "X-Trimtab-Timestamp": str(stamp_s),
            "X-Trimtab-Signature": sign("s", stamp_s, body),
        }
        return bool(names["is_genuine"](secret, headers, sent))

    assert genuine()
    assert not genuine(secret="another")
    assert not genuine(sent=body + b" ")
    assert not genuine(stamp_s=now_s - 3600)
    assert not names["is_genuine"]("s", {}, body)


def test_the_webhook_of_the_page_is_a_setting(tmp_path: Path) -> None:
    (text,) = blocks(SECURITY, "toml")
    file = tmp_path / "trimtab.toml"
    file.write_text(text)
    assert load(file=file, environ={}).settings.webhooks["pager"].secret is not None


def test_the_limits_of_the_page_are_those_of_the_code() -> None:
    from trimtab import artifacts
    from trimtab.contracts import check, parse
    from trimtab.events import cloudevents, oip, types
    from trimtab.serve import app as serve
    from trimtab.store import flushes

    rows = re.findall(r"^\| (.+?) \| (.+) \|$", SECURITY.read_text("utf-8"), re.MULTILINE)
    said = dict(rows)
    mib = 2**20
    assert said["one Kafka message"] == f"{cloudevents.MESSAGE_BYTES_MAX // mib} MiB"
    assert said["an inference id"] == (
        f"{types.ID_LENGTH_MAX} characters; a name {types.NAME_LENGTH_MAX}"
    )
    assert said["a contract"] == (
        f"{parse.FILE_BYTES_MAX // 10**6} MB; {check.FEATURES_MAX:,} features, "
        f"{check.RULES_MAX} rules, {check.CATEGORIES_MAX:,} categories"
    )
    assert said["a request to `serve`"] == (
        f"{serve.BODY_BYTES_MAX // mib} MiB, {oip.ROWS_MAX:,} rows"
    )
    assert said["an artifact"] == (
        f"{artifacts.MAX_FILES} files, {artifacts.MAX_TOTAL_BYTES // 2**30} GiB"
    )
    kept = f"the first {flushes.KEPT_PER_REASON} per partition, reason and hour"
    assert f"{kept}, up to {flushes.PAYLOAD_BYTES_MAX} bytes" in SECURITY.read_text("utf-8")
