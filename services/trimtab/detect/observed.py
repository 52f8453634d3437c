"""What was counted of one window, as far as the detector looks at it; and of a baseline's windows."""

from collections.abc import Mapping
from typing import Self

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from trimtab.stats.aggregate import FeatureState, PaneState, ResourceState, StateError
from trimtab.stats.joint import JointState

FORMAT = 1


class _Beside(Struct, frozen=True, array_like=True):
    """What is stored of a window beside its rows' counts."""

    format: int
    resources: bytes
    segments: dict[str, bytes]
    joint: bytes = b""


class Observed(Struct, frozen=True, kw_only=True):
    """Counts of a window, a commutative monoid like its parts."""

    state: PaneState
    """Every row, over all versions; `outputs` are the judged version's answers."""
    resources: ResourceState = ResourceState()
    """Gauges, over instances and versions."""
    segments: Mapping[str, PaneState] = {}
    """Rows of each declared segment, by `column=value`."""
    joint: JointState = JointState()
    """How columns go together in the sampled rows; empty where none were read."""

    def with_answers(self, outputs: Mapping[str, FeatureState]) -> Self:
        """Return it with the answers of one version."""
        return replace(self, state=replace(self.state, outputs=outputs))

    def merge(self, other: Self) -> Self:
        """Return the counts of both. Raises IncompatibleCuts."""
        segments = dict(self.segments)
        for name, state in other.segments.items():
            segments[name] = segments[name].merge(state) if name in segments else state
        return type(self)(
            state=self.state.merge(other.state),
            resources=self.resources.merge(other.resources),
            segments=dict(sorted(segments.items())),
            joint=self.joint.merge(other.joint),
        )

    def beside_bytes(self) -> bytes:
        """Encode all but `state` canonically: equal counts, equal bytes."""
        segments = {name: state.to_bytes() for name, state in sorted(self.segments.items())}
        return msgspec.msgpack.encode(
            _Beside(FORMAT, self.resources.to_bytes(), segments, self.joint.to_bytes())
        )

    @staticmethod
    def resources_from(beside: bytes) -> ResourceState:
        """Decode the resources of `beside_bytes` alone. Raises StateError."""
        return ResourceState.from_bytes(_beside(beside).resources)

    @classmethod
    def from_bytes(cls, state: bytes, beside: bytes) -> Self:
        """Decode `PaneState.to_bytes` and `beside_bytes`. Raises StateError."""
        decoded = _beside(beside)
        return cls(
            state=PaneState.from_bytes(state),
            resources=ResourceState.from_bytes(decoded.resources),
            segments={name: PaneState.from_bytes(s) for name, s in decoded.segments.items()},
            joint=JointState.from_bytes(decoded.joint),
        )


def _beside(data: bytes) -> _Beside:
    try:
        return msgspec.msgpack.decode(data, type=_Beside)
    except msgspec.MsgspecError as error:
        raise StateError(f"These bytes are no window of a baseline ({error}).") from error
