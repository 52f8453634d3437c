"""Which ids of a model are joined to labels, when the contract asks for a share of them.

An id is in the sample when the low half of its hash is below share * 2**32. That depends on the id and the
contract alone, so every partition decides alike, for the prediction as for its label, and reading again
gives the same. (Shards go by the high half.)
"""

import numpy as np
import numpy.typing as npt

from trimtab.windows.ids import Hashes

_LOW = np.uint64(2**32 - 1)


def in_sample(hashes: Hashes, share: float) -> npt.NDArray[np.bool_]:
    """Return which of the hashes are in a sample of this share, 0 to 1; shape (n,)."""
    chosen: npt.NDArray[np.bool_] = (hashes & _LOW) < np.uint64(round(share * 2**32))
    return chosen
