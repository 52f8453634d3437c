"""The order of a contract's features names the columns of unnamed tensors, so the store keeps it."""

from __future__ import annotations

import msgspec
import pytest

from trimtab.contracts.model import Contract, Feature
from trimtab.store import models
from trimtab.store.engine import open_store
from trimtab.store.tables import metadata

CONTRACT = Contract(
    name="m",
    task="regression",
    features={"pixel2": Feature("number"), "pixel10": Feature("number"), "a": Feature("number")},
)


@pytest.fixture
def store(store_url):
    opened = open_store(store_url)
    metadata.create_all(opened.engine)
    yield opened
    opened.close()


def test_a_stored_contract_keeps_the_order_of_its_features(store):
    models.apply_contract(store, CONTRACT, "text", "ann", 1)
    stored = models.load_contracts(store)["m"].contract
    assert list(stored.features) == ["pixel2", "pixel10", "a"]


def test_another_order_of_features_is_a_revision(store):
    models.apply_contract(store, CONTRACT, "text", "ann", 1)
    turned = dict(reversed(CONTRACT.features.items()))
    changed = msgspec.structs.replace(CONTRACT, features=turned)
    assert models.apply_contract(store, changed, "text", "ann", 2).revision == 2
    assert list(models.load_contracts(store)["m"].contract.features) == ["a", "pixel10", "pixel2"]
