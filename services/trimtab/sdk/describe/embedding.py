"""Descriptors of embeddings: a few fixed directions of a model's vector, and its length.

Notation: v an embedding of d numbers; P of shape (k, d) with orthonormal rows, drawn once from a seed. The
numbers are P v. A shift of the mean of v by a vector m shows as P m, of length about |m| sqrt(k / d): the more
numbers, the less stays hidden.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from trimtab.sdk.describe.inputs import DescriptorError, Floats, finite_floats

DIMENSIONS_MAX = 16_384
NUMBERS = 8
NUMBERS_MAX = 64
VALUES_MAX = 2**24


def describe_embedding(
    vector: Any, *, numbers: int = NUMBERS, seed: int = 0, prefix: str = "emb_"
) -> dict[str, float]:
    """Describe an embedding of shape (d,): PREFIX0, PREFIX1, … and PREFIXnorm, its Euclidean length.

    `numbers` is k; an embedding of fewer dimensions gives as many numbers as it has. All servers of a model
    must use the same `numbers` and `seed`: others look in other directions.
    Raises DescriptorError for another shape, NaN, or more than DIMENSIONS_MAX dimensions.
    """
    values = finite_floats(vector, "The embedding")
    if values.ndim != 1:
        raise DescriptorError(
            f"The embedding has shape {values.shape}; give (d,), or call describe_embeddings."
        )
    columns = _columns(values[None], numbers, seed, prefix)
    return {name: column[0] for name, column in columns.items()}


def describe_embeddings(
    vectors: Any, *, numbers: int = NUMBERS, seed: int = 0, prefix: str = "emb_"
) -> dict[str, list[float]]:
    """Describe many embeddings, shape (n, d): columns of n floats. See `describe_embedding`."""
    values = finite_floats(vectors, "The embeddings")
    if values.ndim != 2:
        raise DescriptorError(f"The embeddings have shape {values.shape}; give (n, d).")
    return _columns(values, numbers, seed, prefix)


def _columns(vectors: Floats, numbers: int, seed: int, prefix: str) -> dict[str, list[float]]:
    dimensions = vectors.shape[1]
    if not 1 <= dimensions <= DIMENSIONS_MAX:
        raise DescriptorError(f"{dimensions} dimensions; give 1 to {DIMENSIONS_MAX}.")
    if vectors.size > VALUES_MAX:
        raise DescriptorError(
            f"{vectors.size} values; the limit of one call is {VALUES_MAX}. Give fewer at a time."
        )
    if not 1 <= numbers <= NUMBERS_MAX:
        raise DescriptorError(f"numbers {numbers}; give 1 to {NUMBERS_MAX}.")
    if not 0 <= seed < 2**32:
        raise DescriptorError(f"seed {seed}; give 0 to {2**32 - 1}.")
    directions = projection(dimensions, min(numbers, dimensions), seed)
    # Row by row: a batch gives the very numbers of its rows.
    projected = [(directions * vector).sum(axis=1) for vector in vectors]
    norms = np.sqrt((vectors**2).sum(axis=1))
    columns = {
        f"{prefix}{place}": [float(row[place]) for row in projected]
        for place in range(directions.shape[0])
    }
    return columns | {f"{prefix}norm": norms.tolist()}


@lru_cache(maxsize=8)
def projection(dimensions: int, numbers: int, seed: int) -> Floats:
    """Return P, shape (numbers, dimensions): orthonormal rows, uniform over all such (Stewart 1980)."""
    # RandomState: its numbers are promised never to change with a release of NumPy (NEP 19).
    generator = np.random.RandomState(seed)
    gaussian = generator.standard_normal((dimensions, numbers))
    q, r = np.linalg.qr(gaussian)
    signs = np.where(np.diag(r) < 0, -1.0, 1.0)  # else LAPACK's choice of sign would show
    directions: Floats = np.ascontiguousarray((q * signs).T)
    directions.flags.writeable = False
    return directions
