"""The archive on real Kafka, while its topic is deleted and made again: each file is of one log."""

import json
import time

import pyarrow.parquet as pq
import pytest

from trimtab.archive.app import Archive
from trimtab.settings import KafkaSettings
from trimtab.source import Partition
from trimtab.sources import open_source
from trimtab.store.archive import files_of
from trimtab.store.engine import open_store
from trimtab.store.ledger import ledger
from trimtab.store.migrate import upgrade
from trimtab.testing.source_suite import SourceRig

pytestmark = pytest.mark.slow

T0 = 1_700_000_000_000
DEADLINE_S = 120


def rows(first, count):
    return [
        json.dumps({"id": f"i{n}", "model": "m", "version": "1", "time": T0 + n, "features": {}})
        for n in range(first, first + count)
    ]


def archived(store):
    """The ids in the archive's files, by the ledger that they are filed under."""
    with store.read() as connection:
        files = files_of(connection, "m", "inference", 0, 2**60)
    found = {}
    for file in files:
        found.setdefault(file.partition_id, []).extend(pq.read_table(file.path)["id"].to_pylist())
    return [ids for _, ids in sorted(found.items())]


@pytest.mark.parametrize("client", ["kafka-python", "confluent-kafka"])
def test_each_file_of_a_topic_made_again_under_the_archive_is_of_one_log(
    client, kafka_broker, sqlite_url, tmp_path
):
    store = open_store(sqlite_url)
    upgrade(store)

    def opened(group, _):
        return open_source(KafkaSettings(bootstrap=kafka_broker.bootstrap, client=client), group, 5)

    rig = SourceRig(kafka_broker, opened)
    topic = rig.topic(partitions=1)
    place = Partition(topic, 0)
    archive = Archive(
        store,
        opened(topic, {}),
        tmp_path,
        {topic: "inference"},
        owner="a",
        flush_rows=1_000,
        flush_s=0.1,
    )
    archive.start()
    expected = []
    # The second log reaches beyond where the first was read, the third does not.
    for first, count in ((0, 5), (100, 30), (200, 2)):
        if expected:
            rig.make_again(topic, 1)
        rig.send(place, [row.encode() for row in rows(first, count)])
        expected.append([f"i{n}" for n in range(first, first + count)])
        deadline_s = time.monotonic() + DEADLINE_S
        while sum(map(len, archived(store))) < sum(map(len, expected)):
            assert time.monotonic() < deadline_s, f"{archived(store)} instead of {expected}"
            archive.step()
    archive.close()
    assert archived(store) == expected
    entries = sorted(ledger(store, "archive"), key=lambda entry: entry.partition_id)
    assert [entry.messages for entry in entries] == [5, 30, 2]
    assert len({entry.topic_id for entry in entries}) == 3
    assert [text for entry in entries for text in entry.balance()] == []
    store.close()
