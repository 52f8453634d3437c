"""Descriptors: a picture, a text, a sound or an embedding as a few named numbers.

They are computed where the input is, and stream as ordinary features, so that the input itself never
enters Kafka. Every function returns a flat dict of floats for `InferenceStream.log(features=...)`, and
its batch form columns for `log_batch`. What cannot be told (the mean word length of no word) is NaN, which
the stream sends as null. The same input gives the same numbers.

Raises TrimtabError where NumPy is missing.
"""

from trimtab.errors import TrimtabError

try:
    import numpy as np  # noqa: F401
except ImportError as error:
    raise TrimtabError("Descriptors need NumPy. Install it: pip install numpy.") from error

from trimtab.sdk.describe.audio import describe_audio
from trimtab.sdk.describe.declare import feature_lines
from trimtab.sdk.describe.embedding import describe_embedding, describe_embeddings
from trimtab.sdk.describe.image import describe_image, describe_images
from trimtab.sdk.describe.inputs import DescriptorError
from trimtab.sdk.describe.text import Vocabulary, describe_text, describe_texts

__all__ = [
    "DescriptorError",
    "Vocabulary",
    "describe_audio",
    "describe_embedding",
    "describe_embeddings",
    "describe_image",
    "describe_images",
    "describe_text",
    "describe_texts",
    "feature_lines",
]
