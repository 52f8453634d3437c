"""A contract revision prepared for the hot path: decoders, time rules, column names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from trimtab.contracts.combinations import parse_combination
from trimtab.contracts.model import Contract
from trimtab.events.typed import TypedInferenceDecoder, typed_inference_decoder
from trimtab.windows.lateness import TimeRules

MOST_EXTRAS = 64


class ModelView:
    """What decoding and counting ask of one revision of one model's contract."""

    def __init__(self, revision: int, contract: Contract) -> None:
        self.revision = revision
        self.contract = contract
        self.model = contract.name
        self.rules = TimeRules.of(contract.windows)
        self.watched = contract.watched
        self.attributed = contract.attributed
        """Features whose attributions are counted; their columns are the last of `numbers`."""
        self.numbers = tuple(n for n, f in self.watched.items() if f.kind == "number")
        self.categories = tuple(n for n, f in contract.features.items() if f.kind == "category")
        self.attributes = tuple(n for n in contract.windows.segments if n not in contract.features)
        self.impossible = tuple(map(parse_combination, contract.source.impossible))
        self.regression = contract.task == "regression"
        self.topics = frozenset(contract.source.topics)
        answer = contract.prediction
        self.score_names = tuple(name for name in (answer.score, answer.positive) if name)
        self.label_sources = frozenset(contract.labels.sources)
        self._extras: set[str] = set()
        self._decoder: TypedInferenceDecoder | None = None

    @property
    def decoder(self) -> TypedInferenceDecoder:
        """The typed reader; it also tolerates the undeclared features met so far."""
        if self._decoder is None:
            self._decoder = typed_inference_decoder(self.contract, sorted(self._extras))
        return self._decoder

    def score_of(self, classes: Collection[str]) -> str | None:
        """Return which of a batch's scores is the one that is counted for a binary model."""
        named = next((name for name in self.score_names if name in classes), None)
        return next(iter(classes)) if named is None and len(classes) == 1 else named

    def meet(self, names: Iterable[str]) -> None:
        """Learn undeclared features, so that the next batch that carries them is read fast."""
        new = {n for n in names if n not in self.contract.features} - self._extras
        if new and len(self._extras) + len(new) <= MOST_EXTRAS:
            self._extras |= new
            self._decoder = None


Views = Mapping[str, ModelView]
