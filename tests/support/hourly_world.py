"""A model with hourly windows that are written in order and judged at once; what is in them is a subclass's."""

from __future__ import annotations

from abc import ABC, abstractmethod

from trimtab.contracts.model import Contract
from trimtab.monitor.evaluator import Evaluator
from trimtab.store import verdicts
from trimtab.store.engine import Store
from trimtab.testing.series import SeriesWriter

HOUR = 3_600_000
START = 1_700_006_400_000
"""A midnight in UTC."""


class HourlyWorld(ABC):
    """`next` is the number of the window that is written next. Subclasses fit the cuts, and define `write`."""

    def __init__(self, store: Store, contract: Contract, **options) -> None:
        self.store, self.contract, self.now_ms = store, contract, START
        self.writer = SeriesWriter(store, contract, START)
        self.evaluator = Evaluator(store, "one", **{"fit_wait_s": 60.0, **options})
        self.next = 0

    def at(self, number: int) -> int:
        """Start of a window, in ms."""
        return START + number * HOUR

    @abstractmethod
    def write(self, number: int, **how) -> None:
        """Write a window's rows."""

    def go(self, windows: int, **how) -> None:
        """Write windows, close them and judge them."""
        for _ in range(windows):
            self.write(self.next, **how)
            self.next += 1
        self.close()

    def close(self) -> None:
        """Let two minutes pass, close all windows so far, and judge until nothing is left."""
        self.writer.now_ms = self.now_ms
        self.writer.passed(self.at(self.next))
        self.now_ms += 120_000
        while self.evaluator.tick(self.now_ms):
            pass
        assert self.evaluator.failures == {}

    def rows_of(self, number: int):
        """Every revision of a window's verdict, first one first."""
        return verdicts.verdict_history(self.store, self.contract.name, self.at(number))

    def verdict(self, number: int):
        """The latest verdict of a window."""
        return self.rows_of(number)[-1].verdict
