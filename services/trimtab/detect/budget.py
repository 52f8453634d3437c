"""How many false alarms a model may raise: its contract's own number, or a share of the fleet's.

Notation
    A   windows per allowed false alarm: what the detector is given

The fleet's budget is split into a power of two of shares, at least as many as there are models without a budget
of their own: a new model changes the others' share only when the shares run out, and the total never
exceeds the fleet's budget.
"""

from collections.abc import Iterable

from msgspec import Struct

from trimtab.contracts.check import false_alarm_rate
from trimtab.contracts.model import Contract
from trimtab.errors import ContractError

FLEET = "4 per 30 days"
"""The default for all models together that state no budget themselves."""
MONTH_MS = 30 * 86_400_000
LEAST_SHARES = 4
"""With fewer models a share is still a quarter: the fourth one changes nothing for the others."""
LEAST_WINDOWS_PER_ALARM = 20.0
"""A budget that allows more asks for no detector: it would alarm on noise."""


class Budget(Struct, frozen=True):
    """Allowed false alarms per length of event time, over everything of one model."""

    count: float
    per_ms: int
    share_of: int = 0
    """Into how many shares the fleet's budget is split; 0 where the contract states this one."""

    @property
    def per_month(self) -> float:
        """Allowed false alarms in 30 days."""
        return self.count / self.per_ms * MONTH_MS

    def windows_per_alarm(self, length_ms: int) -> float:
        """Return A for windows of this length, at least 20."""
        return max(LEAST_WINDOWS_PER_ALARM, self.per_ms / self.count / length_ms)


def parse_budget(text: str) -> Budget:
    """Read "1 per 90 days". Raises ContractError."""
    found = false_alarm_rate(text)
    if found is None:
        raise ContractError(
            f'{text!r} is no budget of false alarms. Write a count and a duration, such as "1 per 90 days".'
        )
    return Budget(*found)


def shares(models: int) -> int:
    """Return into how many shares the fleet's budget is split: the next power of two."""
    return 1 << max(0, models - 1).bit_length()


def budget_of(contract: Contract, fleet: Budget, sharing: int) -> Budget:
    """Return a model's budget; `sharing` models state none of their own."""
    if contract.alarms.false_alarms is not None:
        return parse_budget(contract.alarms.false_alarms)
    parts = max(LEAST_SHARES, shares(sharing))
    return Budget(fleet.count / parts, fleet.per_ms, parts)


def sharing_of(contracts: Iterable[Contract]) -> int:
    """Return how many contracts leave their budget to the fleet's."""
    return sum(contract.alarms.false_alarms is None for contract in contracts)
