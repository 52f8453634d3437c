"""The policy of one model: when the agent may retrain, how often, and who must agree. Pure.

Times are milliseconds since the epoch, UTC; quiet hours are local times of the contract's zone.
"""

from datetime import UTC, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from msgspec import Struct

from trimtab.contracts.model import Contract, duration_ms
from trimtab.errors import ContractError

MAX_ATTEMPTS = 2
"""Retraining runs per incident before a person is asked (design, section 8)."""
COOLDOWN_GROWTH = 2
"""Each further attempt waits this many times longer."""


class Policy(Struct, frozen=True, kw_only=True):
    """What one contract allows the agent."""

    mode: Literal["off", "approve", "auto"]
    trainer: str
    min_labels: int
    label_wait_ms: int
    cooldown_ms: int
    budget_per_month: int
    labels_promised: bool
    quiet_hours: tuple[str, str] | None = None
    """(from, to) as "22:00" and "06:00"; may cross midnight."""
    time_zone: str = "UTC"
    max_attempts: int = MAX_ATTEMPTS


def policy_of(contract: Contract) -> Policy:
    """The policy that a contract states. Raises ContractError on a duration that is none."""
    rules = contract.retraining
    return Policy(
        mode=rules.mode,
        trainer=rules.trainer,
        min_labels=rules.min_labels,
        label_wait_ms=duration_ms(rules.label_wait),
        cooldown_ms=duration_ms(rules.cooldown),
        budget_per_month=rules.budget_per_month,
        labels_promised=contract.labels.horizon_ms is not None,
        quiet_hours=rules.quiet_hours,
        time_zone=contract.windows.time_zone,
    )


def cooldown_ms(policy: Policy, attempts: int) -> int:
    """How long to wait after attempt number `attempts` (1, 2, …); 0 before the first."""
    if attempts <= 0:
        return 0
    return policy.cooldown_ms * int(COOLDOWN_GROWTH ** (attempts - 1))


def quiet_until_ms(policy: Policy, now_ms: int) -> int | None:
    """End of the quiet hours that hold now; None outside them. Raises ContractError on a bad time."""
    if policy.quiet_hours is None:
        return None
    start, end = (_clock(text) for text in policy.quiet_hours)
    if start == end:
        return None
    now = _local(policy, now_ms)
    inside = start <= now.time() < end if start < end else not end <= now.time() < start
    if not inside:
        return None
    day = now.date() if now.time() < end else now.date() + timedelta(days=1)
    return round(datetime.combine(day, end, tzinfo=now.tzinfo).timestamp() * 1000)


def month_start_ms(policy: Policy, now_ms: int) -> int:
    """Start of the current calendar month in the policy's zone: the budget counts from there."""
    first = _local(policy, now_ms).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return round(first.timestamp() * 1000)


def next_month_ms(policy: Policy, now_ms: int) -> int:
    """Start of the next calendar month in the policy's zone."""
    first = _local(policy, now_ms).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + timedelta(days=32)).replace(day=1)
    return round(following.timestamp() * 1000)


def _local(policy: Policy, now_ms: int) -> datetime:
    return datetime.fromtimestamp(now_ms / 1000, UTC).astimezone(ZoneInfo(policy.time_zone))


def _clock(text: str) -> time:
    try:
        return time.fromisoformat(text)
    except ValueError as error:
        raise ContractError(
            f'{text!r} is not a time of day. Write quiet_hours = ["22:00", "06:00"].'
        ) from error
