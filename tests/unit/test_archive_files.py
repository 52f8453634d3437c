"""The archive on a log in memory: what it writes, what it counts, and what happens when something fails."""

import pyarrow.parquet as pq
import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from trimtab.archive import app
from trimtab.archive.app import Archive
from trimtab.archive.tables import feature_column
from trimtab.events.types import Inference, InferenceBatch, Label
from trimtab.source import Partition
from trimtab.store.archive import files_of
from trimtab.store.engine import open_store
from trimtab.store.ledger import ledger
from trimtab.store.migrate import upgrade
from trimtab.store.tables import archive_files
from trimtab.testing.log import MemoryLog, MemorySource

ROWS, LABELS = Partition("i", 0), Partition("l", 0)
T0 = 1_700_000_000_000


def inference(number: int, model: str = "m", **features):
    return Inference(id=f"i{number}", model=model, version="1", time=T0 + number, features=features)


def label(number: int, value="yes", **more):
    return Label(inference_id=f"i{number}", model="m", label=value, time=T0 + number, **more)


class World:
    """A store, a log and archives on it."""

    def __init__(self, url, directory):
        self.store = open_store(url)
        upgrade(self.store)
        self.directory = directory
        self.log = MemoryLog()

    def archive(self, owner="a", flush_rows=1_000_000, flush_s=0.0, poll_records=500):
        source = MemorySource(self.log, poll_records)
        made = Archive(
            self.store,
            source,
            self.directory,
            {"i": "inference", "l": "labels"},
            owner=owner,
            flush_rows=flush_rows,
            flush_s=flush_s,
        )
        made.start()
        source.assign(ROWS, LABELS)
        made.step()  # takes the assignment; the next step claims
        return made, source

    def files(self, kind="inference", model="m"):
        with self.store.read() as connection:
            return files_of(connection, model, kind, 0, 2**60)

    def archived(self, kind="inference", column="id", model="m"):
        tables = [pq.read_table(file.path) for file in self.files(kind, model)]
        return [value for table in tables for value in table[column].to_pylist()]

    def problems(self):
        return [text for entry in ledger(self.store, "archive") for text in entry.balance()]

    def entry(self, partition=ROWS):
        return next(e for e in ledger(self.store, "archive") if e.topic == partition.topic)


@pytest.fixture
def world(sqlite_url, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "_RETRY_S", 0.0)
    world = World(sqlite_url, tmp_path / "archive")
    yield world
    world.store.close()


def test_every_event_is_in_one_file_of_its_model_and_kind(world):
    for number in range(5):
        world.log.send(ROWS, inference(number, x=number), T0)
        world.log.send(LABELS, label(number), T0 + 7)
    world.log.send(ROWS, inference(9, model="other/model"), T0)
    archive, _ = world.archive()
    archive.step()
    assert world.archived() == [f"i{n}" for n in range(5)]
    assert world.archived("label", "inference_id") == [f"i{n}" for n in range(5)]
    assert world.archived("label", "received_ms") == [T0 + 7] * 5
    assert world.archived(model="other/model") == ["i9"]
    assert "model=other%2Fmodel" in world.files(model="other/model")[0].path
    file = world.files()[0]
    assert (file.first_offset, file.next_offset, file.rows) == (0, 6, 5)
    assert (file.min_time_ms, file.max_time_ms) == (T0, T0 + 4)
    assert (world.entry().rows, world.entry(LABELS).labels, world.problems()) == (6, 5, [])


def test_a_model_whose_name_is_too_long_for_a_folder_is_archived_all_the_same(world):
    long, other = "模" * 200, "模" * 199 + "x"
    for name in (long, other):
        world.log.send(ROWS, inference(1, model=name), T0)
    archive, _ = world.archive()
    archive.step()
    assert world.archived(model=long) == world.archived(model=other) == ["i1"]
    assert world.files(model=long)[0].path != world.files(model=other)[0].path
    assert world.problems() == []


def test_gaps_losses_and_what_cannot_be_decoded_are_in_the_ledger(world):
    world.log.send(ROWS, inference(0), T0)
    world.log.skip(ROWS, 3)
    world.log.append(ROWS, b"{", T0)
    world.log.send(ROWS, inference(1), T0)
    archive, _ = world.archive()
    archive.step()
    for number in range(2, 8):
        world.log.send(ROWS, inference(number), T0)
    world.log.drop_before(ROWS, 8)
    archive.step()  # learns of the loss
    archive.step()
    entry = world.entry()
    assert (entry.messages, entry.gaps, entry.lost, entry.rows) == (7, 3, 2, 6)
    assert world.problems() == []
    assert world.archived() == ["i0", "i1", "i4", "i5", "i6", "i7"]


def test_rows_of_a_batch_message_are_archived_one_by_one(world):
    batch = InferenceBatch(
        id="b", model="m", version="1", time=T0, rows=2, features={"x": [1.5, None]}
    )
    world.log.send(ROWS, batch, T0)
    archive, _ = world.archive()
    archive.step()
    assert world.archived() == ["b#0", "b#1"]
    assert world.archived(column="f.x") == [1.5, None]


def test_rows_wait_until_they_are_many_or_old(world):
    archive, _ = world.archive(flush_rows=3, flush_s=3600)
    for number in range(2):
        world.log.send(ROWS, inference(number), T0)
    archive.step()
    assert world.files() == []
    world.log.send(ROWS, inference(2), T0)
    archive.step()
    assert world.archived() == ["i0", "i1", "i2"]


def test_large_events_do_not_wait_for_their_number(world, monkeypatch):
    monkeypatch.setattr(app, "_FLUSH_BYTES", 1000)
    archive, _ = world.archive(flush_rows=1_000, flush_s=3600)
    world.log.send(ROWS, inference(0, text="x" * 1000), T0)
    archive.step()
    assert world.archived() == ["i0"]


def test_a_clean_stop_commits_what_was_waiting(world):
    archive, _ = world.archive(flush_s=3600)
    world.log.send(ROWS, inference(0), T0)
    archive.step()
    archive.close()
    assert world.archived() == ["i0"]


def test_a_zombie_commits_nothing_and_the_new_owner_everything_once(world):
    for number in range(4):
        world.log.send(ROWS, inference(number), T0)
    zombie, zombie_source = world.archive("zombie", flush_s=3600)
    zombie.step()
    owner, _ = world.archive("owner")
    owner.step()
    zombie_source.revoke(ROWS, LABELS)
    zombie.step()  # tries to commit its four rows on the way out
    owner.step()
    assert world.archived() == ["i0", "i1", "i2", "i3"]
    assert world.entry().owner == "owner"
    assert world.problems() == []


@pytest.mark.parametrize("after_commit", [False, True])
def test_a_failed_or_unknown_commit_neither_loses_nor_repeats(world, monkeypatch, after_commit):
    real, failures = app.commit_files, [OperationalError("commit", {}, Exception("gone"))] * 2

    def flaky(connection, *rest):
        if failures and not after_commit:
            raise failures.pop()
        real(connection, *rest)
        if failures:  # the answer of the commit is lost
            connection.commit()
            raise failures.pop()

    monkeypatch.setattr(app, "commit_files", flaky)
    archive, _ = world.archive()
    for number in range(3):
        world.log.send(ROWS, inference(number), T0)
        world.log.send(LABELS, label(number), T0)
        archive.step()
    for _ in range(5):
        archive.step()
    assert failures == []
    assert sorted(world.archived()) == ["i0", "i1", "i2"]
    assert sorted(world.archived("label", "inference_id")) == ["i0", "i1", "i2"]
    assert world.problems() == []


def test_of_a_topic_made_again_each_file_is_of_one_log(world):
    """The client reads on at the old position: what it brings is archived under the new log, from its start."""
    archive, _ = world.archive(flush_s=0.0)
    for number in range(3):
        world.log.send(ROWS, inference(number), T0)
    archive.step()
    world.log.make_again("i")
    for number in range(100, 105):
        world.log.send(ROWS, inference(number), T0)
    archive.step()  # brings the last two of the new log
    archive.step()
    old, new = sorted(
        (e for e in ledger(world.store, "archive") if e.topic == "i"), key=lambda e: e.partition_id
    )
    assert (old.topic_id, old.messages, new.topic_id, new.messages) == ("i", 3, "i.1", 5)
    assert [(f.partition_id, f.first_offset, f.next_offset) for f in world.files()] == [
        (old.partition_id, 0, 3),
        (new.partition_id, 0, 5),
    ]
    assert world.archived() == [f"i{n}" for n in (0, 1, 2, 100, 101, 102, 103, 104)]
    assert world.problems() == []


def test_a_shorter_new_log_is_found_though_nothing_comes_of_it(world, monkeypatch):
    monkeypatch.setattr(app, "_SEEN_EVERY_S", 0.0)
    archive, _ = world.archive()
    for number in range(3):
        world.log.send(ROWS, inference(number), T0)
    archive.step()
    world.log.make_again("i")
    world.log.send(ROWS, inference(100), T0)
    archive.step()
    archive.step()
    assert world.archived() == ["i0", "i1", "i2", "i100"]


def test_what_nobody_confirms_waits_in_bounded_memory_and_holds_up_no_other(world, monkeypatch):
    monkeypatch.setattr("trimtab.identities.AGAIN_S", 0.0)
    monkeypatch.setattr("trimtab.identities.WAIT_SHARE", 0)
    archive, source = world.archive(flush_rows=4, poll_records=2)
    archive.step()
    source.silent.add("i")
    for number in range(10):
        world.log.send(ROWS, inference(number), T0)
        world.log.send(LABELS, label(number), T0)
        archive.step()
    assert world.archived() == []
    assert (archive._pending[ROWS].rows, ROWS in source.paused) == (4, True)
    assert len(world.archived("label", "inference_id")) == 10
    archive.close()
    assert world.archived() == []
    other, source = world.archive("other", flush_rows=4)
    other.step()
    assert world.archived() == [f"i{n}" for n in range(10)]
    assert world.problems() == []


def test_what_waited_for_an_answer_is_archived_with_it(world, monkeypatch):
    monkeypatch.setattr("trimtab.identities.AGAIN_S", 0.0)
    monkeypatch.setattr("trimtab.identities.WAIT_SHARE", 0)
    archive, source = world.archive(flush_rows=4, poll_records=2)
    source.silent.add("i")
    archive.step()  # cannot even claim
    source.silent.clear()
    archive.step()
    source.silent.add("i")
    for number in range(10):
        world.log.send(ROWS, inference(number), T0)
        archive.step()
    source.silent.clear()
    for _ in range(5):
        archive.step()
    assert world.archived() == [f"i{n}" for n in range(10)]
    assert (ROWS in source.paused, world.entry().epoch) == (False, 1)


def test_a_full_disk_is_waited_for_without_holding_rows(world, monkeypatch):
    real, full = app.write_files, [True]

    def write(*arguments):
        if full[0]:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(app, "write_files", write)
    archive, source = world.archive()
    for number in range(3):
        world.log.send(ROWS, inference(number), T0)
    archive.step()
    assert archive._pending.get(ROWS) is None
    assert ROWS in source.paused
    full[0] = False
    archive.step()
    archive.step()
    assert world.archived() == ["i0", "i1", "i2"]


def test_a_store_that_is_away_at_the_claim_is_asked_again(world, monkeypatch):
    real, away = app.claim, [OperationalError("claim", {}, Exception("gone"))] * 2

    def flaky(*arguments, **named):
        if away:
            raise away.pop()
        return real(*arguments, **named)

    monkeypatch.setattr(app, "claim", flaky)
    world.log.send(ROWS, inference(0), T0)
    archive, _ = world.archive()
    for _ in range(4):
        archive.step()
    assert world.archived() == ["i0"]


def test_a_file_without_a_manifest_row_is_nobodys(world):
    world.log.send(ROWS, inference(0), T0)
    archive, _ = world.archive()
    archive.step()
    stray = world.directory / "inference" / "model=m" / "stray.parquet"
    stray.write_bytes(b"written, never committed")
    with world.store.read() as connection:
        assert str(stray) not in connection.execute(select(archive_files.c.path)).scalars().all()
    assert world.archived() == ["i0"]


def test_files_are_found_by_time_and_topic(world):
    archive, _ = world.archive()
    for start in (0, 100):
        for number in range(start, start + 3):
            world.log.send(ROWS, inference(number), T0)
        archive.step()

    def found(from_ms, to_ms, topics=()):
        with world.store.read() as connection:
            files = files_of(connection, "m", "inference", T0 + from_ms, T0 + to_ms, topics)
        return [file.min_time_ms - T0 for file in files]

    assert found(0, 1000) == [0, 100]
    assert found(2, 100) == [0]
    assert found(3, 101) == [100]
    assert found(0, 1000, {"i"}) == [0, 100]
    assert found(0, 1000, {"elsewhere"}) == []


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ([1, 2.5, None], [1.0, 2.5, None]),
        ([None, None], [None, None]),
        (["a", None, 3, 3.0, 2.5, True], ["a", None, "3", "3", "2.5", "true"]),
        ([True, False], ["true", "false"]),
    ],
)
def test_a_feature_is_numbers_or_text_as_the_monitor_reads_it(values, stored):
    assert feature_column(values).to_pylist() == stored
