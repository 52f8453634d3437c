"""Descriptors of texts: length, kinds of characters, variety of words, and words that are new.

A word is a run of letters, digits and underscores (Unicode), compared without regard to case. Languages
that write without spaces have long words here; their character figures are as good as any.
"""

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from trimtab.sdk.describe.inputs import DescriptorError, as_columns, named

CHARACTERS_MAX = 1_000_000
VARIETY_WORDS = 100
"""The type-token ratio is that of so many first words: it falls with the length of a text."""
VOCABULARY_MAX = 1_000_000
VOCABULARY_WORDS = 50_000
DISTINCT_MAX = 5_000_000
FILE_BYTES_MAX = 64 * 1024 * 1024
_FORMAT = 1
_HASH_BYTES = 8
_WORD = re.compile(r"\w+")

NAN = math.nan


class _Wire(Struct, frozen=True):
    format: int
    hashes: list[str]


class Vocabulary:
    """The words of reference texts, as hashes: 64-bit BLAKE2b of each word in lower case.

    Hashes keep the file small and its words out of sight; who has a word can tell whether it is in.
    """

    def __init__(self, hashes: Iterable[str]) -> None:
        self._hashes = frozenset(hashes)
        if len(self._hashes) > VOCABULARY_MAX:
            raise DescriptorError(
                f"{len(self._hashes)} words; a vocabulary has at most {VOCABULARY_MAX}."
            )

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, word: str) -> bool:
        return _hash(word.casefold()) in self._hashes

    @classmethod
    def of(
        cls, texts: Iterable[str], size: int = VOCABULARY_WORDS, least_texts: int = 1
    ) -> "Vocabulary":
        """Build it from reference texts: the `size` words that are in most texts, in at least `least_texts`.

        Ties go by the alphabet. Raises DescriptorError for no words, or more than DISTINCT_MAX
        different ones.
        """
        if not 1 <= size <= VOCABULARY_MAX:
            raise DescriptorError(f"size {size}; give 1 to {VOCABULARY_MAX}.")
        if isinstance(texts, str):
            raise DescriptorError("One text; give a list of texts.")
        seen: Counter[str] = Counter()
        for text in texts:
            seen.update(set(_words(_checked(text))))
            if len(seen) > DISTINCT_MAX:
                raise DescriptorError(
                    f"More than {DISTINCT_MAX} different words; give a sample of the texts."
                )
        ranked = sorted(seen.items(), key=lambda item: (-item[1], item[0]))
        kept = [word for word, count in ranked[:size] if count >= least_texts]
        if not kept:
            raise DescriptorError("The reference texts have no words; give others.")
        return cls(map(_hash, kept))

    def save(self, path: str | Path) -> None:
        """Write it as JSON; equal vocabularies give equal files."""
        Path(path).write_bytes(msgspec.json.encode(_Wire(_FORMAT, sorted(self._hashes))))

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read what `save` wrote. Raises DescriptorError for another file, OSError where there is none."""
        file = Path(path)
        if file.stat().st_size > FILE_BYTES_MAX:
            raise DescriptorError(
                f"{file}: more than {FILE_BYTES_MAX} bytes; this is no vocabulary."
            )
        try:
            wire = msgspec.json.decode(file.read_bytes(), type=_Wire)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DescriptorError(
                f"{file}: this is no vocabulary ({error}). Save it anew."
            ) from error
        if wire.format != _FORMAT:
            raise DescriptorError(f"{file}: format {wire.format}; this release reads {_FORMAT}.")
        return cls(wire.hashes)


def describe_text(
    text: str, vocabulary: Vocabulary | None = None, *, prefix: str = ""
) -> dict[str, float]:
    """Describe one text by numbers of these names, each after `prefix`.

    characters, words: how many. mean_word_length: characters per word.
    digit_share, punctuation_share, upper_share, non_ascii_share: of the characters; punctuation is what
        Unicode calls so, and symbols.
    type_token_ratio: different words per word, of the first VARIETY_WORDS words.
    character_entropy_bits: Shannon entropy of the characters; about 4.2 for English prose, 0 for one
        character repeated.
    unknown_share: with a vocabulary, the share of the words that it lacks.

    What has nothing to be a share of is NaN. Raises DescriptorError for anything but a str of at most
    CHARACTERS_MAX characters.
    """
    words = _words(_checked(text))
    characters = Counter(text)
    n, w = len(text), len(words)
    kinds = dict.fromkeys(("digit", "punctuation", "upper", "non_ascii"), 0)
    for character, count in characters.items():
        category = unicodedata.category(character)
        kinds["digit"] += count * (category == "Nd")
        kinds["punctuation"] += count * (category[0] in "PS")
        kinds["upper"] += count * character.isupper()
        kinds["non_ascii"] += count * (not character.isascii())
    first = words[:VARIETY_WORDS]
    described = {
        "characters": n,
        "words": w,
        "mean_word_length": sum(map(len, words)) / w if w else NAN,
        **{f"{kind}_share": count / n if n else NAN for kind, count in kinds.items()},
        "type_token_ratio": len(set(first)) / len(first) if first else NAN,
        "character_entropy_bits": _entropy_bits(characters) if n else NAN,
    }
    if vocabulary is not None:
        counted = Counter(words)
        unknown = sum(count for word, count in counted.items() if word not in vocabulary)
        described["unknown_share"] = unknown / w if w else NAN
    return named(prefix, described)


def describe_texts(
    texts: Sequence[str], vocabulary: Vocabulary | None = None, *, prefix: str = ""
) -> dict[str, list[float]]:
    """Describe many texts: columns of n floats. See `describe_text`."""
    if isinstance(texts, str):
        raise DescriptorError("One text; give a list of texts, or call describe_text.")
    return as_columns([describe_text(text, vocabulary, prefix=prefix) for text in texts])


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise DescriptorError(f"{type(text).__name__} is no text; give a str.")
    if len(text) > CHARACTERS_MAX:
        raise DescriptorError(
            f"{len(text)} characters; the limit is {CHARACTERS_MAX}. Give the beginning of the text."
        )
    return text


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _hash(word: str) -> str:
    # surrogatepass: a lone surrogate in a text is odd, but no reason to fail.
    data = word.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=_HASH_BYTES).hexdigest()


def _entropy_bits(counts: Counter[str]) -> float:
    total = counts.total()
    # fsum: the same sum in whatever order the characters come.
    return max(0.0, -math.fsum(c / total * math.log2(c / total) for c in counts.values()))
