"""The seam that sets traffic, and the router every installation has: the traffic row.

Setting a split and knowing that it is served are two questions; "not known" is a legal answer.
"""

from collections.abc import Sequence
from typing import Protocol

from sqlalchemy import Connection

from trimtab.events.types import Traffic, TrafficArm
from trimtab.records import Rollout
from trimtab.store import agent as records
from trimtab.store.arm_counts import arm_counts
from trimtab.store.engine import Store


class TrafficRouter(Protocol):
    """Whoever splits a model's traffic."""

    def set(self, connection: Connection, traffic: Traffic, now_ms: int) -> None:
        """Set the desired split, in the transaction of the record that wants it."""
        ...

    def observed(self, store: Store, traffic: Traffic) -> bool | None:
        """Whether this split is the one being served; None when it cannot be known."""
        ...


class TrafficRow:
    """The SQL row is the desired state; the relay publishes it; servers stamp its revision."""

    def set(self, connection: Connection, traffic: Traffic, now_ms: int) -> None:
        """Write the row; the relay publishes it at once and again every minute."""
        records.set_traffic(connection, traffic, now_ms)

    def observed(self, store: Store, traffic: Traffic) -> bool | None:
        """True once events carry the revision."""
        counts = arm_counts(store, traffic.model, [traffic.revision], None)
        return any(each.rows for each in counts)


def canary_split(
    rollout: Rollout,
    revision: int,
    champion: TrafficArm,
    challenger: TrafficArm,
    share: float,
    valid_until_ms: int,
) -> Traffic:
    """The split of a canary step: the champion first, `share` to the challenger."""
    arms = [
        _arm(records.CHAMPION_ARM, champion, 1.0 - share),
        _arm(records.CHALLENGER_ARM, challenger, share),
    ]
    return _traffic(rollout, revision, arms, valid_until_ms)


def watch_split(
    rollout: Rollout,
    revision: int,
    champion: TrafficArm,
    challenger: TrafficArm,
    holdback: float,
    valid_until_ms: int,
) -> Traffic:
    """The split while watching: the challenger is the champion, the old one keeps `holdback`."""
    arms = [
        _arm(records.CHAMPION_ARM, challenger, 1.0 - holdback),
        _arm(records.HOLDBACK_ARM, champion, holdback),
    ]
    return _traffic(rollout, revision, arms, valid_until_ms)


def whole_split(rollout: Rollout, revision: int, arm: TrafficArm) -> Traffic:
    """All traffic to one version: the end of a rollout. It does not expire."""
    return _traffic(rollout, revision, [_arm(records.CHAMPION_ARM, arm, 1.0)], None)


def _arm(name: str, arm: TrafficArm, weight: float) -> TrafficArm:
    return TrafficArm(name, arm.version, weight, arm.artifact_uri, arm.artifact_sha256)


def _traffic(
    rollout: Rollout, revision: int, arms: Sequence[TrafficArm], valid_until_ms: int | None
) -> Traffic:
    return Traffic(
        model=rollout.model,
        revision=revision,
        salt=rollout.salt,
        arms=list(arms),
        valid_until_ms=valid_until_ms,
        rollout_id=rollout.id,
    )
