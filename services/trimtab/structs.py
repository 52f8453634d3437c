"""msgspec's knowledge of our types, made before threads begin.

msgspec 0.22 looks at a Struct when it is first decoded. If two threads do so for one type at the same time, one may
meet what the other has half made, and the process ends in a segmentation fault: 9 of 40 small programs did, none
after this.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct

_OURS = ("trimtab", "trimtab_agent")


def prepare() -> int:
    """Let msgspec look at every Struct of ours that is imported; return how many these are.

    To be called by each process that decodes in more than one thread, before it starts them.
    """
    found = 0
    for kind in _subclasses(Struct):
        if kind.__module__.partition(".")[0] in _OURS:
            with suppress(TypeError):  # one that cannot be decoded, and never is
                msgspec.json.Decoder(kind)
                found += 1
    return found


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    children: list[type[Any]] = kind.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)
