"""test_event_chain.py - verify_chain finds whatever was changed behind the engine's back.

Why:        the bytes are changed where they are stored: in shared memory, in the log, and in a
            checkpoint, in the files with the right checksums. Each forgery has a run of its own, so
            that a folder has to be opened only once to look at all of them.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from shm_engine import ChainVerification, Database, Event, EventLog, KVStore, RunId, errors, keys
from shm_engine.events import HEAD, entry_name
from tests.harness.refusal import assert_usable
from tests.harness.tamper import (
    CONTENT_AT,
    HASH_AT,
    PREVIOUS_AT,
    StoredLog,
    Tampering,
    event_key,
    in_checkpoint,
    in_log,
    in_segment,
)

MAP_SIZE = 4 << 20
LENGTH = 6
SEED = 20250131
MIDDLE = 3
LAST = LENGTH - 1
Forge = Callable[[StoredLog], Any]
Found = tuple[str, int]


def fill(log: EventLog, run: RunId) -> None:
    """Events of one size, each a commit of its own."""
    for number in range(LENGTH):
        log.append(run, f"type-{number}", {"n": number, "text": f"payload-{number}"})


def changed_payload(number: int) -> Forge:
    return lambda log: log.replace(number, b"payload-", b"Payload-")


def changed_number(log: StoredLog) -> None:
    log.write(1, log.value(1).index(b"\xa1n") + 2, b"\x05")


def rewrite_last(log: StoredLog) -> None:
    changed_payload(LAST)(log)
    log.reseal(LAST)


def rewrite_suffix(log: StoredLog) -> None:
    changed_payload(MIDDLE)(log)
    log.reseal_from(MIDDLE, LENGTH)


def rewrite_one(log: StoredLog) -> None:
    changed_payload(MIDDLE)(log)
    log.reseal(MIDDLE)


def rewrite_all_with_the_genesis(log: StoredLog) -> None:
    log.flip(0, PREVIOUS_AT)
    log.reseal_from(0, LENGTH)
    log.set_head(digest=log.hash_of(LAST))


def swap_and_relink(log: StoredLog) -> None:
    """Swapped, with the previous hashes that fit the places."""
    previous = [log.value(number)[PREVIOUS_AT : PREVIOUS_AT + 32] for number in range(LENGTH)]
    log.swap(MIDDLE, LAST)
    log.write(MIDDLE, PREVIOUS_AT, previous[MIDDLE])
    log.write(LAST, PREVIOUS_AT, previous[LAST])


def hash_wrong(number: int) -> Found:
    return f"Hash mismatch at sequence {number}", number


def previous_wrong(number: int) -> Found:
    return f"prev_hash mismatch at sequence {number}", number


def missing(number: int) -> Found:
    return f"Missing event at sequence {number}", number


FORGERIES: dict[str, tuple[Forge, Found]] = {
    "payload": (changed_payload(MIDDLE), hash_wrong(MIDDLE)),
    "payload of the first": (changed_payload(0), hash_wrong(0)),
    "payload of the last": (changed_payload(LAST), hash_wrong(LAST)),
    "number in the payload": (changed_number, hash_wrong(1)),
    "type": (lambda log: log.replace(MIDDLE, b"type-", b"Type-"), hash_wrong(MIDDLE)),
    "border of type and payload": (lambda log: log.flip(MIDDLE, CONTENT_AT), hash_wrong(MIDDLE)),
    "later time": (lambda log: log.move_time(MIDDLE, 1), hash_wrong(MIDDLE)),
    "earlier time": (lambda log: log.move_time(2, -1), hash_wrong(2)),
    "time of another year": (lambda log: log.move_time(LAST, -(1 << 45)), hash_wrong(LAST)),
    "hash": (lambda log: log.flip(MIDDLE, HASH_AT), hash_wrong(MIDDLE)),
    "last byte of the hash": (lambda log: log.flip(MIDDLE, HASH_AT + 31), hash_wrong(MIDDLE)),
    "previous hash": (lambda log: log.flip(MIDDLE, PREVIOUS_AT), previous_wrong(MIDDLE)),
    "previous hash of the first": (lambda log: log.flip(0, PREVIOUS_AT), previous_wrong(0)),
    "its end": (lambda log: log.flip(2, PREVIOUS_AT + 31), previous_wrong(2)),
    "swapped neighbours": (lambda log: log.swap(1, 2), previous_wrong(1)),
    "swapped first and last": (lambda log: log.swap(0, LAST), previous_wrong(0)),
    "swapped and linked anew": (swap_and_relink, hash_wrong(MIDDLE)),
    "one rewritten with its hash": (rewrite_one, previous_wrong(MIDDLE + 1)),
    "last one rewritten with its hash": (rewrite_last, hash_wrong(LAST)),
    "all behind it rewritten": (rewrite_suffix, hash_wrong(LAST)),
    "all rewritten on another genesis": (rewrite_all_with_the_genesis, previous_wrong(0)),
    "head's hash": (lambda log: log.set_head(digest=bytes(32)), hash_wrong(LAST)),
    "head says more": (lambda log: log.set_head(LENGTH + 2), missing(LENGTH)),
    "shape of the list": (lambda log: log.flip(MIDDLE, 0), hash_wrong(MIDDLE)),
    "shape of the previous hash": (lambda log: log.flip(MIDDLE, 1), hash_wrong(MIDDLE)),
    "size of the previous hash": (lambda log: log.flip(MIDDLE, 2), hash_wrong(MIDDLE)),
    "shape of the hash": (lambda log: log.flip(MIDDLE, 35), hash_wrong(MIDDLE)),
    "size of the hash": (lambda log: log.flip(MIDDLE, 36), hash_wrong(MIDDLE)),
}
RUNS = {
    name: RunId(f"00000000-0000-4000-8000-{number:012}") for number, name in enumerate(FORGERIES)
}
SOUND = RunId("00000000-0000-4000-8000-00000000ffff")


def forge_all(tampering: Tampering) -> None:
    for name, (forge, _) in FORGERIES.items():
        forge(StoredLog(tampering, RUNS[name]))


def make_folder(folder: Path) -> Path:
    """A folder with every run's log; nobody has it open, and no checkpoint was made: a copy of what
    a crash would have left."""
    with Database.open(folder, map_size=MAP_SIZE) as db:
        fill_all(db)
        db.flush()
        image = folder.with_name("image")
        image.mkdir()
        shutil.copytree(folder / "wal", image / "wal")
    assert list((folder / "checkpoint").glob("*.ckpt")), "closing made a checkpoint"
    return image


def fill_all(db: Database) -> None:
    log = EventLog(db)
    for run in (*RUNS.values(), SOUND):
        fill(log, run)
        assert log.verify_chain(run) == ChainVerification(True, LENGTH)


@pytest.fixture(scope="module", params=["segment", "log", "checkpoint"])
def forged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EventLog]:
    """A database in which every forgery was made."""
    folder = tmp_path_factory.mktemp("forged") / "database"
    if request.param == "segment":
        with Database.ephemeral(map_size=MAP_SIZE) as db:
            fill_all(db)
            with in_segment(db) as tampering:
                forge_all(tampering)
            yield EventLog(db)
        return
    image = make_folder(folder)
    if request.param == "log":
        folder = image
        with in_log(folder) as tampering:
            forge_all(tampering)
    else:
        with in_checkpoint(folder) as tampering:
            forge_all(tampering)
    with Database.open(folder, map_size=MAP_SIZE) as db:
        yield EventLog(db)


@pytest.mark.parametrize("name", FORGERIES)
def test_verify_chain_finds_what_was_forged(name: str, forged: EventLog) -> None:
    """A list whose header bytes were changed is no event, even where its hashes fit."""
    error, first_invalid = FORGERIES[name][1]
    found = forged.verify_chain(RUNS[name])
    assert found.error == error
    assert found.first_invalid == first_invalid
    assert not found.is_valid
    assert found.length == (LENGTH + 2 if name == "head says more" else LENGTH)


def test_a_log_beside_forged_ones_is_sound(forged: EventLog) -> None:
    assert forged.verify_chain(SOUND) == ChainVerification(True, LENGTH)


@pytest.mark.parametrize("name", FORGERIES)
def test_reading_what_was_forged_gives_events_or_corruption(name: str, forged: EventLog) -> None:
    run = RUNS[name]
    for number in range(LENGTH):
        try:
            event = forged.read(run, number)
        except errors.Corruption:
            continue
        assert isinstance(event, Event)
        assert event.sequence == number
    assert_usable(forged.database)


def test_a_forged_log_takes_more_events_and_stays_wrong(forged: EventLog) -> None:
    run = RUNS["payload of the first"]
    expected = forged.len(run)
    assert forged.append(run, "more", None)[0] == expected
    assert forged.verify_chain(run) == ChainVerification(False, expected + 1, 0, hash_wrong(0)[0])


# -- what is missing --------------------------------------------------------------------------


@pytest.fixture
def log() -> Iterator[EventLog]:
    with Database.ephemeral(map_size=MAP_SIZE) as db:
        yield EventLog(db)


@pytest.mark.parametrize("gone", [0, 1, MIDDLE, LAST])
def test_a_missing_event_is_found(gone: int, log: EventLog) -> None:
    """Removed by a call that no user has; a truncated end is one of the cases."""
    fill(log, SOUND)
    assert log.database._engine.delete(SOUND, keys.TAG_EVENT, entry_name(gone))
    assert log.verify_chain(SOUND) == ChainVerification(False, LENGTH, gone, missing(gone)[0])
    assert log.read(SOUND, gone) is None
    kept = [number for number in range(LENGTH) if number != gone]
    assert [event.sequence for event in log.iter(SOUND)] == kept


def test_of_several_missing_events_the_first_is_told(log: EventLog) -> None:
    fill(log, SOUND)
    for gone in (4, 2):
        log.database._engine.delete(SOUND, keys.TAG_EVENT, entry_name(gone))
    assert log.verify_chain(SOUND).error == missing(2)[0]


def test_of_several_faults_the_first_is_told(log: EventLog) -> None:
    fill(log, SOUND)
    log.database._engine.delete(SOUND, keys.TAG_EVENT, entry_name(4))
    with in_segment(log.database) as tampering:
        changed_payload(2)(StoredLog(tampering, SOUND))
    assert log.verify_chain(SOUND).error == hash_wrong(2)[0]


def test_a_missing_event_is_found_after_a_recovery(tmp_path: Path) -> None:
    for close in (True, False):
        folder = tmp_path / f"closed-{close}"
        with Database.open(folder, map_size=MAP_SIZE) as db:
            fill(EventLog(db), SOUND)
            db._engine.delete(SOUND, keys.TAG_EVENT, entry_name(MIDDLE))
            db.flush()
            image = folder.with_suffix(".image")
            image.mkdir()
            shutil.copytree(folder / "wal", image / "wal")
        with Database.open(folder if close else image, map_size=MAP_SIZE) as db:
            assert EventLog(db).verify_chain(SOUND).error == missing(MIDDLE)[0]


@pytest.mark.parametrize("where", [in_log, in_checkpoint], ids=["log", "checkpoint"])
def test_an_event_that_was_given_another_sequence_is_missing(where: Any, tmp_path: Path) -> None:
    image = make_folder(tmp_path / "database")
    folder = image if where is in_log else tmp_path / "database"
    with where(folder) as tampering:
        tampering.rename(event_key(SOUND, LAST), event_key(SOUND, LAST + 2))
    with Database.open(folder, map_size=MAP_SIZE) as db:
        found = EventLog(db).verify_chain(SOUND)
        assert found == ChainVerification(False, LENGTH, LAST, missing(LAST)[0])


# -- the head ---------------------------------------------------------------------------------


def test_a_head_that_was_set_back_leaves_an_event_that_should_not_be(log: EventLog) -> None:
    fill(log, SOUND)
    with in_segment(log.database) as tampering:
        stored = StoredLog(tampering, SOUND)
        assert stored.head() == (LENGTH, stored.hash_of(LAST))
        stored.set_head(MIDDLE, stored.hash_of(MIDDLE - 1))
    found = log.verify_chain(SOUND)
    assert (found.is_valid, found.length, found.first_invalid) == (False, MIDDLE, MIDDLE)
    assert found.error == f"Unexpected event at sequence {MIDDLE}"


def test_a_log_whose_head_is_gone_is_not_sound(log: EventLog) -> None:
    fill(log, SOUND)
    assert log.database._engine.delete(SOUND, keys.TAG_EVENT, HEAD)
    found = log.verify_chain(SOUND)
    assert (found.is_valid, found.first_invalid) == (False, 0)
    assert found.error == "Unexpected event at sequence 0"


@pytest.mark.parametrize("head", [5, [1, 2, 3], [b"x" * 32, 6], ["6", b"x" * 32], [], [6]])
def test_a_head_of_another_shape_is_corruption_to_every_call_that_reads_it(
    head: Any, log: EventLog
) -> None:
    """They raised ValueError and TypeError: what is read from memory was taken on trust."""
    fill(log, SOUND)
    log.database._engine.put(SOUND, keys.TAG_EVENT, HEAD, head)
    calls: list[Callable[[], Any]] = [
        lambda: log.len(SOUND),
        lambda: log.is_empty(SOUND),
        lambda: log.head(SOUND),
        lambda: log.verify_chain(SOUND),
        lambda: log.append(SOUND, "a", 1),
        lambda: log.append_batch(SOUND, [("a", 1)]),
        lambda: log.read_by_time(SOUND, 0, 1),
        lambda: log.follow(SOUND),
        lambda: log.database.transaction(SOUND, lambda txn: txn.event_append("a", 1)),
    ]
    for call in calls:
        with pytest.raises(errors.Corruption):
            call()
    assert log.read(SOUND, 0) is not None
    assert_usable(log.database)


def test_who_rewrites_all_and_the_head_is_found_by_a_hash_kept_elsewhere(log: EventLog) -> None:
    """The chain is no signature: it ties all events to the newest hash, which a reader may keep."""
    fill(log, SOUND)
    newest = log.head(SOUND)
    assert newest is not None
    with in_segment(log.database) as tampering:
        stored = StoredLog(tampering, SOUND)
        rewrite_suffix(stored)
        stored.set_head(digest=stored.hash_of(LAST))
    assert log.verify_chain(SOUND) == ChainVerification(True, LENGTH)
    forged = log.head(SOUND)
    assert forged is not None
    assert forged.payload == newest.payload
    assert forged.hash != newest.hash


# -- the hash itself --------------------------------------------------------------------------


def hash_as_documented(event: Event) -> bytes:
    """FORMAT.md, "Event", from the public fields alone and with another packer."""
    content = msgpack.packb(event.event_type) + msgpack.packb(event.payload)
    padded = content + bytes(-len(content) % 64)
    numbers = event.sequence.to_bytes(8, "big") + event.timestamp_us.to_bytes(8, "big")
    return hashlib.sha256(padded + event.prev_hash + numbers).digest()


def check_hashes(log: EventLog, run: RunId) -> int:
    previous = bytes(32)
    count = 0
    for event in log.iter(run):
        assert event.prev_hash == previous
        assert event.hash == hash_as_documented(event), event
        previous = event.hash
        count += 1
    assert log.verify_chain(run) == ChainVerification(True, count)
    return count


def test_the_hash_is_the_documented_one_at_every_size_around_whole_blocks(log: EventLog) -> None:
    for size in range(201):
        log.append(SOUND, "t", bytes(range(size)))
        log.append_batch(SOUND, [("t" * (1 + size), "x" * size), ("é", [size])])
    for size in (255, 256, 257, 4095, 4096, 65_535, 65_536, 65_537, 200_000):
        log.append(SOUND, "t", b"x" * size)
    assert check_hashes(log, SOUND) == 3 * 201 + 9


def random_value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(9 if depth else 7)
    if kind < 7:
        leaves: list[Callable[[], Any]] = [
            lambda: None,
            lambda: rng.random() < 0.5,
            lambda: rng.choice([1, -1]) * rng.getrandbits(rng.randrange(63)),
            lambda: rng.choice([0.0, -0.0, 1e308, rng.random()]),
            lambda: "".join(chr(rng.choice([97, 233, 0x65E5, 0x1F41A])) for _ in range(kind + 3)),
            lambda: rng.randbytes(rng.randrange(200)),
            lambda: "",
        ]
        return leaves[kind]()
    parts = [random_value(rng, depth - 1) for _ in range(rng.randrange(6))]
    if kind == 7:
        return parts
    return {f"k{number}": part for number, part in enumerate(parts)}


def test_the_hash_is_the_documented_one_for_random_payloads(log: EventLog) -> None:
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    for number in range(300):
        pairs = [
            ("t" * rng.randrange(1, 257), random_value(rng, 4)) for _ in range(rng.randrange(1, 4))
        ]
        if number % 3 == 0:
            log.append_batch(SOUND, pairs)
        elif number % 3 == 1:
            for pair in pairs:
                log.append(SOUND, *pair)
        else:
            with log.database.begin(SOUND) as txn:
                for pair in pairs:
                    txn.event_append(*pair)
                txn.kv_put("k", number)
    assert check_hashes(log, SOUND) > 300


def test_the_same_events_hash_the_same_but_for_their_times(tmp_path: Path) -> None:
    """What the hash is made of: nothing of the run, the database or the process."""
    digests = []
    for name in ("one", "two"):
        with Database.open(tmp_path / name, map_size=MAP_SIZE) as db:
            log = EventLog(db)
            run = db.begin_run()
            KVStore(db).put(run, "other", name)
            log.append(run, "t", [1])
            event = log.head(run)
            assert event is not None
            moved = event._replace(timestamp_us=0)
            digests.append(hash_as_documented(moved))
            assert event.hash == hash_as_documented(event)
    assert digests[0] == digests[1]
