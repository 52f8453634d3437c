"""What the joiner's index holds of an id, as records, and kept runs of them as bytes."""

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from trimtab.stats.scorebins import NO_SCORE
from trimtab.store.label_runs import Group
from trimtab.store.run_codec import pack, unpack
from trimtab.windows.ids import Hashes

BEGINNING_MS = -(2**62)
"""Before every event time."""

PREDICTION_RECORD = np.dtype(
    [
        *(("pane", "<i8"), ("partition", "<i4"), ("group", "<i4")),
        *(("code", "<i4"), ("number", "<f8"), ("bin", "<i1")),
    ]
)
LABEL_RECORD = np.dtype(
    [
        *(("time", "<i8"), ("revision", "<i8"), ("partition", "<i4")),
        *(("code", "<i4"), ("number", "<f8"), ("retracted", "?")),
    ]
)
"""What the joiner's index keeps of an id; `code` and `group` are places in lists beside it."""
REPEAT_RECORD = np.dtype([("partition", "<i4"), ("count", "<i4")])
"""Of an id, how many labels of a partition say what its current label says, beside that one."""
Records = npt.NDArray[Any]


class KeptRun(Struct):
    """Current entries of ids as the joiner's index had them; hashes ascending, each once.

    An entry is all that is known of an id: its prediction, its label or both, and the label's repeats,
    whose hashes ascend and may stand several times. A later kept run's entry of an id replaces an
    earlier one's.
    """

    prediction_hashes: Hashes
    predictions: Records
    label_hashes: Hashes
    labels: Records
    repeat_hashes: Hashes
    repeats: Records
    groups: tuple[Group, ...]
    classes: tuple[str, ...]

    @property
    def hashes(self) -> Hashes:
        """The ids of the entries."""
        alone = self.label_hashes[self._alone()]
        return np.sort(np.concatenate((self.prediction_hashes, alone)))

    @property
    def rows(self) -> int:
        """How many entries there are."""
        return self.prediction_hashes.size + int(self._alone().sum())

    @property
    def until_ms(self) -> int:
        """The newest time that any entry is kept by: its prediction's pane, else its label's time."""
        times = np.concatenate((self.predictions["pane"], self.labels["time"][self._alone()]))
        return int(times.max()) if times.size else BEGINNING_MS

    def _alone(self) -> npt.NDArray[np.bool_]:
        """Which labels have no prediction."""
        keys = self.prediction_hashes
        if keys.size == 0:
            return np.ones(self.label_hashes.size, np.bool_)
        place = np.minimum(keys.searchsorted(self.label_hashes), keys.size - 1)
        alone: npt.NDArray[np.bool_] = keys[place] != self.label_hashes
        return alone


_RECORDS = {
    "p": ("prediction_hashes", "predictions", PREDICTION_RECORD),
    "l": ("label_hashes", "labels", LABEL_RECORD),
    "r": ("repeat_hashes", "repeats", REPEAT_RECORD),
}
"""Fields of a KeptRun, by the prefix of their columns."""


def encode_kept(run: KeptRun) -> bytes:
    """Encode a kept run."""
    columns: dict[str, npt.NDArray[Any]] = {}
    for prefix, (hashes, records, dtype) in _RECORDS.items():
        columns[f"{prefix}.hashes"] = getattr(run, hashes)
        for name in dtype.names or ():
            columns[f"{prefix}.{name}"] = getattr(run, records)[name]
    return pack(columns, {"groups": run.groups, "classes": run.classes})


def decode_kept(body: bytes) -> KeptRun:
    """Decode `encode_kept`."""
    columns, extra = unpack(body)
    fields: dict[str, Any] = {}
    for prefix, (hashes, records, dtype) in _RECORDS.items():
        fields[hashes] = columns[f"{prefix}.hashes"]
        made = fields[records] = np.zeros(fields[hashes].size, dtype)
        for name in dtype.names or ():
            column = columns.get(f"{prefix}.{name}")
            # Only `bin` may be absent: kept runs from before it have none.
            made[name] = NO_SCORE if column is None and name == "bin" else column
    return KeptRun(
        **fields,
        groups=msgspec.convert(extra["groups"], tuple[Group, ...]),
        classes=tuple(extra["classes"]),
    )
