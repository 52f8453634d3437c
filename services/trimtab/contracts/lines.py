"""Where each key of a TOML text stands: tomllib gives values without lines.

The text must already have been read by tomllib, so this scanner only has to find its way: it skips
comments and strings of all four kinds, follows headers, dotted keys, arrays and inline tables, and
notes the line (from 1) of every key, and of every element of an array.
"""

import re
import tomllib

Path = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BLANK = re.compile(r"[ \t]*")
_BASIC = re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}|"(?:[^"\\\n]|\\.)*"', re.DOTALL)
_LITERAL = re.compile(r"'''.*?'{3,5}|'[^'\n]*'", re.DOTALL)
_ATOM = re.compile(r"[^,\]}#\n]+")


def key_lines(text: str) -> dict[Path, int]:
    """Return the line of each key's path. `text` is valid TOML."""
    scanner = _Scanner(text.replace("\r\n", "\n"))
    scanner.document()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._counts: dict[Path, int] = {}
        self._line = 1
        self._line_at = 0

    def line(self) -> int:
        self._line += self.text.count("\n", self._line_at, self.at)
        self._line_at = self.at
        return self._line

    def note(self, path: Path) -> None:
        self.lines.setdefault(path, self.line())

    def skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return match[0]

    def take(self, character: str) -> bool:
        if not self.text.startswith(character, self.at):
            return False
        self.at += len(character)
        return True

    def document(self) -> None:
        table: Path = ()
        self.skip(_SPACE)
        while self.at < len(self.text):
            before = self.at
            if self.take("[["):
                array = self.key(())
                index = self._counts.get(array, 0)
                self._counts[array] = index + 1
                table = (*array, index)
                self.note(array)
                self.note(table)
                self.at += 2
            elif self.take("["):
                table = self.key(())
                self.at += 1
            else:
                self.pair(table)
            self.skip(_SPACE)
            if self.at == before:  # not TOML after all: lines are for messages, never worth a hang
                return

    def key(self, table: Path) -> Path:
        path = table
        while True:
            self.skip(_BLANK)
            bare = self.skip(_BARE_KEY)
            quoted = "" if bare else self.skip(_BASIC) or self.skip(_LITERAL)
            path = (*path, bare or _unquoted(quoted))
            self.note(path)
            self.skip(_BLANK)
            if not self.take("."):
                return path

    def pair(self, table: Path) -> None:
        path = self.key(table)
        self.take("=")
        self.skip(_BLANK)
        self.value(path)

    def value(self, path: Path) -> None:
        if self.take("["):
            self.array(path)
        elif self.take("{"):
            self.inline_table(path)
        elif not (self.skip(_BASIC) or self.skip(_LITERAL)):
            self.skip(_ATOM)

    def array(self, path: Path) -> None:
        index = 0
        self.skip(_SPACE)
        while self.at < len(self.text) and not self.take("]"):
            before = self.at
            self.note((*path, index))
            self.value((*path, index))
            index += 1
            self.skip(_SPACE)
            self.take(",")
            self.skip(_SPACE)
            if self.at == before:
                return

    def inline_table(self, path: Path) -> None:
        self.skip(_SPACE)
        while self.at < len(self.text) and not self.take("}"):
            before = self.at
            self.pair(path)
            self.skip(_SPACE)
            self.take(",")
            self.skip(_SPACE)
            if self.at == before:
                return


def _unquoted(text: str) -> str:
    try:
        return str(tomllib.loads(f"key = {text}")["key"])
    except tomllib.TOMLDecodeError:
        return text
