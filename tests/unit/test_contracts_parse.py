from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.contract_files import load_contracts
from trimtab.contracts.lines import key_lines
from trimtab.contracts.model import Contract
from trimtab.contracts.parse import ContractProblemsError, parse_contract, parse_contracts
from trimtab.errors import ContractError, NotFoundError

GOOD = """\
name = "credit-default"
team = "risk"
task = "binary"
[source]
topics = ["risk.inference"]
[features]
income  = { kind = "number", min = 0, personal = true }
channel = { kind = "category", values = ["web", "app", "branch"] }
[prediction]
score = "p_default"
positive = "default"
[labels]
arrive = "within 21 days"
[windows]
length    = "1h"
time_zone = "Europe/Berlin"
segments  = ["channel"]
[reference]
from = "traffic"
[alarms]
false_alarms = "1 per 90 days"
rules = ["accuracy < 0.90 in 3 of 4", "p99_latency_ms > 200 in 3 of 4"]
[retraining]
mode    = "approve"
trainer = "external"
"""


def problems(text: str) -> dict[str, tuple[int, str]]:
    """Key to (line, message) of what is wrong with the text."""
    with pytest.raises(ContractProblemsError) as caught:
        parse_contract(text, "credit.toml")
    assert all(problem.file == "credit.toml" for problem in caught.value.problems)
    return {problem.key: (problem.line, problem.message) for problem in caught.value.problems}


def test_the_contract_of_the_design_is_read() -> None:
    contract = parse_contract(GOOD, "credit.toml")
    assert list(contract.features) == ["income", "channel"]
    assert contract.features["income"].personal
    assert contract.labels.horizon_ms == 21 * 86_400_000
    assert contract.windows.pane_ms == 60_000


def test_all_problems_come_at_once_with_line_key_and_what_was_expected() -> None:
    found = problems(
        """\
name = "credit default"
taem = "risk"
task = "binary"
[features]
income = { kind = "number", min = 5, max = 2 }
[windows]
length = "90s"
pane = "40s"
[alarms]
rules = [
  "psi(income) > 0.2",
  "accurcy < 0.9",
  "psi(incme) > 0.2",
]
[canary]
steps = [0.5, 0.25]
"""
    )
    assert {key: line for key, (line, _) in found.items()} == {
        "name": 1,
        "taem": 2,
        "features.income.min": 5,
        "windows.pane": 8,
        "alarms.rules[1]": 12,
        "alarms.rules[2]": 13,
        "canary.steps": 16,
    }
    assert "Did you mean 'team'?" in found["taem"][1]
    assert "Did you mean 'accuracy'?" in found["alarms.rules[1]"][1]
    assert "Did you mean 'income'?" in found["alarms.rules[2]"][1]


def test_the_message_reads_file_line_key_and_reason() -> None:
    with pytest.raises(ContractError) as caught:
        parse_contract('name = "a"\ntask = "binray"\n', "a.toml")
    assert str(caught.value) == (
        'a.toml:2: task: expected one of "binary", "multiclass", "regression", got \'binray\'.'
    )


def test_a_wrong_feature_does_not_blame_the_rules_that_name_it() -> None:
    found = problems(
        'name = "a"\ntask = "binary"\n[features]\nx = { knd = "number" }\n'
        '[alarms]\nrules = ["psi(x) > 0.2"]\n'
    )
    assert found.keys() == {"features.x.knd", "features.x.kind"}


@pytest.mark.parametrize(
    ("change", "key", "expected"),
    [
        ('task = "binary"\nwindows = 3', "windows", "expected a table, got 3."),
        ('task = "binary"\n[windows]\nlength = 60', "windows.length", "expected a text, got 60."),
        ('task = "binary"\n[windows]\nlength = "1 fortnight"', "windows.length", "a duration"),
        ('task = "binary"\n[windows]\nlength = "0s"', "windows.length", "more than nothing"),
        ('task = "binary"\n[windows]\ntime_zone = "Mars"', "windows.time_zone", "no time zone"),
        ('task = "binary"\n[windows]\nmin_rows = 0', "windows.min_rows", "got 0"),
        ('task = "binary"\n[source]\nformat = "kserve"', "source.format", "cannot be read yet"),
        ('task = "binary"\n[source]\nformat = "xml"', "source.format", "expected one of"),
        ('task = "binary"\n[labels]\narrive = "soon"', "labels.arrive", "within 21 days"),
        ('task = "binary"\n[labels]\njudge_after = "x"', "labels.judge_after", "a duration"),
        (
            'task = "binary"\n[labels]\narrive = "within 1h"\njudge_after = "2h"',
            "labels.judge_after",
            "no more than labels.arrive",
        ),
        ('task = "binary"\n[labels]\njudge_share = 1.5', "labels.judge_share", "0 to 1"),
        ('task = "binary"\n[labels]\nsample_share = 0', "labels.sample_share", "0.0001 to 1"),
        ('task = "binary"\n[canary]\nsteps = [0.5, 1.0]', "canary.steps", "below 1"),
        ('task = "binary"\n[canary]\nalpha = nan', "canary.alpha", "a finite number"),
        ('task = "binary"\n[prediction]\nclasses = ["a"]', "prediction.classes", "got 1"),
        ('task = "binary"\n[prediction]\nscore = "p"', "prediction.score", "needs `positive`"),
        (
            'task = "binary"\n[prediction]\npositive = "c"\nclasses = ["a", "b"]',
            "prediction.positive",
            "none of the classes",
        ),
        ('task = "regression"\n[prediction]\npositive = "a"', "prediction.positive", "regression"),
        (
            'task = "binary"\n[alarms]\nrules = ["accuracy < 0.9"]',
            "alarms.rules[0]",
            "needs labels",
        ),
        (
            'task = "binary"\n[source]\nimpossible = ["nothing < 3"]',
            "source.impossible[0]",
            "no declared feature",
        ),
        ('task = "binary"\n[alarms]\nfalse_alarms = "few"', "alarms.false_alarms", "1 per 90 days"),
        ('task = "binary"\n[windows]\nsegments = ["a=b"]', "windows.segments[0]", "no `=`"),
        (
            'task = "binary"\n[retraining]\nquiet_hours = ["22:00", "25:00"]',
            "retraining.quiet_hours[1]",
            "25:00",
        ),
        ('task = "binary"\n[retraining]\nmetric = "mae"', "retraining.metric", "accuracy"),
        (
            'task = "binary"\n[features]\nprediction = {kind="number"}',
            "features.prediction",
            "rules",
        ),
        (
            'task = "binary"\n[features]\nx = {kind="number", values=["a"]}',
            "features.x.values",
            "only a category",
        ),
    ],
)
def test_a_wrong_value_is_named(change: str, key: str, expected: str) -> None:
    found = problems(f'name = "a"\n{change}\n')
    assert list(found) == [key]
    assert expected in found[key][1]


def test_more_than_two_thousand_features_are_refused() -> None:
    features = "\n".join(f'f{index} = {{ kind = "number" }}' for index in range(2_001))
    found = problems(f'name = "a"\ntask = "binary"\n[features]\n{features}\n')
    assert found["features"][0] == 3


def test_what_is_no_toml_is_named_with_its_line() -> None:
    found = problems('name = "a"\ntask = \n')
    assert found == {"": (2, "is not TOML: Invalid value.")}


def test_deep_nesting_and_long_texts_are_refused() -> None:
    assert "" in problems("a = " + "[" * 100_000)
    assert "" in problems("#" * 1_000_001)


def test_a_folder_lies_over_its_defaults() -> None:
    contracts = parse_contracts(
        {
            "defaults.toml": '[defaults]\nteam = "risk"\n[defaults.windows]\nlength = "2h"\npane = "1h"\n',
            "a.toml": 'name = "a"\ntask = "binary"\n',
            "b.toml": 'name = "b"\ntask = "binary"\nteam = "shop"\n[windows]\nlength = "4h"\n',
        }
    )
    assert [(c.name, c.team, c.windows.length, c.windows.pane) for c in contracts] == [
        ("a", "risk", "2h", "1h"),
        ("b", "shop", "4h", "1h"),
    ]


def test_a_mistake_in_the_defaults_names_the_defaults_file() -> None:
    with pytest.raises(ContractProblemsError) as caught:
        parse_contracts(
            {
                "defaults.toml": '[defaults]\nname = "x"\n[defaults.windows]\nlenght = "2h"\n[other]\n',
                "a.toml": 'name = "a"\ntask = "binary"\n',
            }
        )
    places = {(p.file, p.line, p.key) for p in caught.value.problems}
    assert places == {
        ("defaults.toml", 2, "defaults.name"),
        ("defaults.toml", 4, "windows.lenght"),
        ("defaults.toml", 5, "other"),
    }


def test_two_files_of_one_model_are_refused() -> None:
    text = 'name = "a"\ntask = "binary"\n'
    with pytest.raises(ContractError, match=r"b\.toml:1: name: a\.toml names the same model"):
        parse_contracts({"a.toml": text, "b.toml": text})


def test_files_are_loaded_from_disk(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        load_contracts(tmp_path)
    with pytest.raises(NotFoundError):
        load_contracts(tmp_path / "none.toml")
    (tmp_path / "defaults.toml").write_text('[defaults]\nteam = "risk"\n')
    (tmp_path / "a.toml").write_text('name = "a"\ntask = "binary"\n')
    assert load_contracts(tmp_path) == load_contracts(tmp_path / "a.toml")
    assert load_contracts(tmp_path)[0].team == "risk"
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ContractError, match="UTF-8"):
        load_contracts(tmp_path)


def test_lines_are_found_in_odd_toml() -> None:
    text = (
        "# a = 1\n"
        '"quoted.key" = "# no comment"\n'
        'a.b = """\nmany = 1\nlines = 2\n"""\n'
        "c = [ # comment ]\n  'x', # ]\n  {d = 1, e = [2]},\n]\r\n"
        "[t.'u v']\nf = 1979-05-27 07:32:00\n"
        "[[arr]]\ng = 1\n[[arr]]\ng = 2\n"
    )
    lines = key_lines(text)
    assert lines[("quoted.key",)] == 2
    assert lines[("a", "b")] == 3
    assert ("many",) not in lines
    assert lines[("c", 0)] == 8
    assert lines[("c", 1, "e", 0)] == 9
    assert lines[("t", "u v", "f")] == 12
    assert lines[("arr", 1, "g")] == 16


def refusal(text: str) -> str | None:
    """Why the text is no contract; None when it is one."""
    try:
        assert isinstance(parse_contract(text, "x.toml"), Contract)
    except ContractError as error:
        return str(error)
    return None


@given(st.text(max_size=200))
def test_any_text_is_a_contract_or_a_contract_error(text: str) -> None:
    assert "x.toml:" in (refusal(text) or "x.toml:")


@given(st.integers(0, len(GOOD) - 1), st.sampled_from(list('"[]{}=.,#\n\\0x')))
def test_a_damaged_contract_is_read_or_refused_with_a_place(at: int, character: str) -> None:
    assert "x.toml:" in (refusal(GOOD[:at] + character + GOOD[at + 1 :]) or "x.toml:")
