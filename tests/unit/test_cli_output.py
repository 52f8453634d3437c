"""Tables of the command line: what somebody copies from one stays in one piece."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from trimtab import cli_output

ALERT = ("5dc64d757b38fe44", "rule_breached", "accuracy is 0.5906 and was 0.98 before that")


def printed(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> list[str]:
    console = Console(file=io.StringIO(), width=50, force_terminal=terminal, color_system=None)
    monkeypatch.setattr(cli_output, "console", console)
    cli_output.print_table(("alert", "why", "summary"), [ALERT], "none")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_narrow_terminal_breaks_between_words_only(monkeypatch):
    lines = printed(monkeypatch, terminal=True)
    assert len(lines) > 2
    words = " ".join(lines).split()
    assert {*ALERT[:2], *ALERT[2].split()} <= set(words)


def test_outside_a_terminal_a_row_is_one_line(monkeypatch):
    lines = printed(monkeypatch, terminal=False)
    assert [" ".join(line.split()) for line in lines] == ["alert why summary", " ".join(ALERT)]
