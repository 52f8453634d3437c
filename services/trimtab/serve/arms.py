"""Which arm answers a request: a pure function of the traffic record, the unit and the time.

A unit is what sticks to an arm: the routing key (a user, an account), or the request itself. Its
place in [0, 1) is a hash of the rollout's salt and the unit. Challengers take the low end, so that
a unit once in the challenger's arm stays there while its share grows (argo, flagger and KServe
reshuffle; their users see both models in one sitting).
"""

import hashlib

from trimtab.events.types import Traffic, TrafficArm


def place(salt: str, unit: str) -> float:
    """Where `unit` falls in [0, 1) under `salt`; uniform over units, independent over salts."""
    digest = hashlib.blake2b(f"{salt}\x00{unit}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def assign(traffic: Traffic, unit: str, now_ms: int) -> TrafficArm:
    """The arm that `unit` belongs to at `now_ms`.

    An expired record (the agent died in mid-canary) gives everything back to the champion, which
    is the first arm.
    """
    champion, *challengers = traffic.arms
    if not challengers or expired(traffic, now_ms):
        return champion
    position = place(traffic.salt, unit)
    upper = 0.0
    for arm in challengers:
        upper += arm.weight
        if position < upper:
            return arm
    return champion


def expired(traffic: Traffic, now_ms: int) -> bool:
    """Whether the record is past its `valid_until_ms`."""
    return traffic.valid_until_ms is not None and now_ms >= traffic.valid_until_ms
