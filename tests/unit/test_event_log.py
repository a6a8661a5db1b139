"""test_event_log.py - what each method of EventLog does, and that a refusal appends nothing."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shm_engine import (
    ChainVerification,
    Database,
    Event,
    EventLog,
    KVStore,
    RetentionPolicy,
    RunId,
    StateCell,
    errors,
)
from tests.harness.labels import label
from tests.harness.refusal import refused
from tests.harness.threads import in_threads

RUN = RunId.DEFAULT
GENESIS = bytes(32)
MIB = 1 << 20
BEHIND_ALL = 2**64 - 1
# Bytes of a stored event that are not its payload, where the type is one letter.
AROUND = 69 + 2
Call = Callable[[EventLog], Any]


@pytest.fixture
def log() -> Iterator[EventLog]:
    with Database.ephemeral() as db:
        yield EventLog(db)
        assert db.closed or db.metrics().snapshots == 0


def payloads(events: list[Event]) -> list[Any]:
    return [event.payload for event in events]


def sequences(events: list[Event]) -> list[int]:
    return [event.sequence for event in events]


def fill(log: EventLog, count: int, types: str = "t") -> None:
    """Events with their sequence as payload and the letters of `types` in turn."""
    log.append_batch(RUN, [(types[number % len(types)], number) for number in range(count)])


def whole(log: EventLog, run: RunId = RUN) -> tuple[Any, ...]:
    """All that the log tells of a run. NaN is equal to nothing, so by its text."""
    listed = list(log.iter(run))
    by_type = {kind: sequences(log.read_by_type(run, kind)) for kind in log.event_types(run)}
    return repr(listed), log.len(run), by_type, log.verify_chain(run)


# -- appending --------------------------------------------------------------------------------


def test_append_gives_the_next_sequence_from_0_and_the_hash(log: EventLog) -> None:
    for expected in range(3):
        sequence, digest = log.append(RUN, "a", expected)
        assert sequence == expected
        assert type(digest) is bytes
        event = log.read(RUN, sequence)
        assert event is not None
        assert event.hash == digest
        assert len(digest) == 32


def test_each_event_has_the_hash_of_the_one_before_and_the_first_one_zeros(log: EventLog) -> None:
    digests = [log.append(RUN, "a", number)[1] for number in range(5)]
    assert [event.prev_hash for event in log.iter(RUN)] == [GENESIS, *digests[:-1]]
    assert [event.hash for event in log.iter(RUN)] == digests
    assert len(set(digests)) == 5


def test_an_event_tells_its_type_its_payload_and_when_it_was_committed(log: EventLog) -> None:
    before = time.time_ns() // 1000
    log.append(RUN, "tool_call", {"tool": "search", "args": [1, None, b"x"]})
    after = time.time_ns() // 1000
    event = log.head(RUN)
    assert event is not None
    assert event.event_type == "tool_call"
    assert event.payload == {"tool": "search", "args": [1, None, b"x"]}
    assert before <= event.timestamp_us <= after
    assert event.timestamp == event.timestamp_us // 1000


def test_sequences_are_those_of_the_run_whatever_the_type(log: EventLog) -> None:
    other = log.database.begin_run()
    found = [log.append(run, kind, 0)[0] for run in (RUN, other) for kind in "abab"]
    assert found == [0, 1, 2, 3] * 2
    assert [event.prev_hash for run in (RUN, other) for event in log.read_range(run, 0, 1)] == (
        [GENESIS] * 2
    )


def test_times_never_fall_with_the_sequence(log: EventLog) -> None:
    for number in range(300):
        log.append(RUN, "a", number)
    times = [event.timestamp_us for event in log.iter(RUN)]
    assert times == sorted(times)


def test_a_run_need_not_be_registered_and_may_be_named_by_its_string(log: EventLog) -> None:
    run = RunId.new()
    log.append(run, "a", 1)
    log.append(str(run), "a", 2)
    log.append("default", "a", 3)
    assert payloads(list(log.iter(str(run)))) == [1, 2]
    assert payloads(list(log.iter(RUN))) == [3]


def test_a_log_may_be_made_twice_and_holds_nothing_of_its_own(log: EventLog) -> None:
    EventLog(log.database).append(RUN, "a", 1)
    log.append(RUN, "a", 2)
    assert whole(log) == whole(EventLog(log.database))
    assert log.len(RUN) == 2


def test_events_cells_and_keys_of_one_name_are_apart(log: EventLog) -> None:
    log.append(RUN, "same", 1)
    KVStore(log.database).put(RUN, "same", 2)
    StateCell(log.database).init(RUN, "same", 3)
    assert payloads(log.read_by_type(RUN, "same")) == [1]
    assert log.len(RUN) == 1
    assert KVStore(log.database).list(RUN) == StateCell(log.database).list(RUN) == ["same"]


def test_an_append_counts_as_one_commit_and_so_does_a_batch(log: EventLog) -> None:
    log.append(RUN, "a", 1)
    log.append_batch(RUN, [("a", 1)] * 100)
    metrics = log.database.metrics()
    assert (metrics.transactions_committed, metrics.transactions_aborted) == (2, 0)


def test_a_payload_is_stored_as_it_was_when_it_was_appended(log: EventLog) -> None:
    payload = [1]
    log.append(RUN, "a", payload)
    payload.append(2)
    assert payloads(list(log.iter(RUN))) == [[1]]


def test_a_runs_retention_trims_no_event(log: EventLog) -> None:
    log.database.set_retention(RUN, RetentionPolicy.KeepLast(1))
    for number in range(50):
        log.append(RUN, "a", number)
    log.database._engine.sweep()
    assert payloads(list(log.iter(RUN))) == list(range(50))
    assert log.verify_chain(RUN) == ChainVerification(True, 50)


def test_no_event_and_no_version_goes_when_room_gets_scarce() -> None:
    with Database.ephemeral(map_size=MIB) as db:
        log, kv, cells = EventLog(db), KVStore(db), StateCell(db)
        for number in range(200):
            log.append(RUN, "a", number)
            cells.set(RUN, "cell", number)
        for number in range(20_000):
            kv.put(RUN, "key", [number] * 10)
        assert db.metrics().pressure_trimmed_versions > 0
        assert payloads(list(log.iter(RUN))) == list(range(200))
        assert log.verify_chain(RUN) == ChainVerification(True, 200)
        assert cells.set(RUN, "cell", "next") == 201


def test_appends_of_eight_threads_have_no_gap_and_keep_each_ones_order(log: EventLog) -> None:
    in_threads(8, lambda me: [log.append(RUN, f"t{me}", turn) for turn in range(100)])
    assert sequences(list(log.iter(RUN))) == list(range(800))
    for me in range(8):
        assert payloads(log.read_by_type(RUN, f"t{me}")) == list(range(100))
    assert log.verify_chain(RUN) == ChainVerification(True, 800)
    assert log.database.metrics().conflicts == 0


VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    -(2**63),
    0.5,
    -0.0,
    math.inf,
    -math.inf,
    math.nan,
    "",
    "🐚 text",
    b"",
    b"\x00\xff",
    [],
    [[], {}],
    {},
    {"": None, "a\0b": [1]},
]


@pytest.mark.parametrize("value", VALUES, ids=label)
def test_every_kind_of_value_is_a_payload(value: Any, log: EventLog) -> None:
    log.append(RUN, "a", value)
    log.append_batch(RUN, [("a", value), ("a", value)])
    found = payloads(list(log.iter(RUN)))
    assert repr(found) == repr([value] * 3)
    assert log.verify_chain(RUN).is_valid


# -- batches ----------------------------------------------------------------------------------


def test_a_batch_is_one_commit_whose_events_follow_one_another(log: EventLog) -> None:
    log.append(RUN, "a", "before")
    found = log.append_batch(RUN, [("a", 1), ("b", 2), ("a", 3)])
    assert [sequence for sequence, _ in found] == [1, 2, 3]
    events = log.read_range(RUN, 1, 4)
    assert [event.hash for event in events] == [digest for _, digest in found]
    assert len({event.timestamp_us for event in events}) == 1
    assert [(event.event_type, event.payload) for event in events] == [("a", 1), ("b", 2), ("a", 3)]
    assert log.verify_chain(RUN) == ChainVerification(True, 4)


BATCHES: dict[str, Callable[[], Any]] = {
    "list": lambda: [("a", 1), ("b", 2)],
    "tuple": lambda: (("a", 1), ("b", 2)),
    "lists": lambda: [["a", 1], ["b", 2]],
    "iterator": lambda: iter([("a", 1), ("b", 2)]),
    "items of a dict": lambda: {"a": 1, "b": 2}.items(),
    "generator": lambda: (pair for pair in [("a", 1), ("b", 2)]),
}


@pytest.mark.parametrize("make", BATCHES.values(), ids=BATCHES)
def test_a_batch_may_come_in_any_iterable(make: Callable[[], Any], log: EventLog) -> None:
    assert [sequence for sequence, _ in log.append_batch(RUN, make())] == [0, 1]
    assert [(event.event_type, event.payload) for event in log.iter(RUN)] == [("a", 1), ("b", 2)]


def test_an_empty_batch_commits_nothing(log: EventLog) -> None:
    assert log.append_batch(RUN, []) == []
    assert log.append_batch(RUN, iter(())) == []
    assert log.is_empty(RUN)
    assert log.database.metrics().transactions_committed == 0


def test_a_batch_of_ten_thousand_is_one_commit(log: EventLog) -> None:
    found = log.append_batch(RUN, [(f"t{number % 7}", number) for number in range(10_000)])
    assert [sequence for sequence, _ in found] == list(range(10_000))
    assert log.database.metrics().transactions_committed == 1
    assert payloads(log.read_by_type(RUN, "t3")) == list(range(3, 10_000, 7))
    assert log.verify_chain(RUN) == ChainVerification(True, 10_000)


class Odd(str):
    pass


BAD_PAYLOADS: dict[str, tuple[Any, type[errors.Error], str]] = {
    "tuple": ((1,), errors.WrongType, r"tuple at \$"),
    "set": ([{1}], errors.WrongType, r"set at \$\[0\]"),
    "object": ({"a": object()}, errors.WrongType, "object at"),
    "bytearray": (bytearray(b""), errors.WrongType, "bytearray"),
    "subclass": (Odd("x"), errors.WrongType, "Odd"),
    "key": ({1: 2}, errors.WrongType, "key 1"),
    "large int": (2**63, errors.ConstraintViolation, "64"),
    "small int": (-(2**63) - 1, errors.ConstraintViolation, "64"),
    "surrogate": ("\ud800", errors.SerializationError, "surrogate"),
}


@pytest.mark.parametrize(("payload", "kind", "match"), BAD_PAYLOADS.values(), ids=BAD_PAYLOADS)
def test_a_bad_payload_is_refused_and_nothing_is_appended(
    payload: Any, kind: type[errors.Error], match: str, log: EventLog
) -> None:
    log.append(RUN, "before", 0)
    before = whole(log)
    with refused(log.database, kind, match):
        log.append(RUN, "a", payload)
    for place in range(3):
        pairs: list[tuple[str, Any]] = [("good", 1), ("good", 2)]
        pairs.insert(place, ("a", payload))
        with refused(log.database, kind, match):
            log.append_batch(RUN, pairs)
    assert whole(log) == before
    assert log.append(RUN, "after", 1)[0] == 1
    assert log.verify_chain(RUN) == ChainVerification(True, 2)


BAD_TYPES: dict[str, tuple[Any, type[errors.Error]]] = {
    "empty": ("", errors.InvalidKey),
    "257 bytes": ("a" * 257, errors.InvalidKey),
    "258 bytes": ("é" * 129, errors.InvalidKey),
    "huge": ("a" * (1 << 20), errors.InvalidKey),
    "NUL": ("a\0b", errors.InvalidKey),
    "only NUL": ("\0", errors.InvalidKey),
    "surrogate": ("\ud800", errors.InvalidKey),
    "int": (5, errors.WrongType),
    "None": (None, errors.WrongType),
    "bytes": (b"a", errors.WrongType),
    "list": (["a"], errors.WrongType),
    "subclass": (Odd("x"), errors.WrongType),
}


@pytest.mark.parametrize(("bad", "kind"), BAD_TYPES.values(), ids=BAD_TYPES)
def test_a_bad_type_is_refused_wherever_one_is_asked_for(
    bad: Any, kind: type[errors.Error], log: EventLog
) -> None:
    log.append(RUN, "before", 0)
    before = whole(log)
    calls: list[Callable[[], Any]] = [
        lambda: log.append(RUN, bad, 1),
        lambda: log.append_batch(RUN, [("good", 1), (bad, 2), ("good", 3)]),
        lambda: log.read_by_type(RUN, bad),
    ]
    for call in calls:
        with refused(log.database, kind, "event type") as caught:
            call()
        assert len(str(caught.value)) < 300
    assert whole(log) == before


@pytest.mark.parametrize("name", ["a", "a" * 256, "é" * 128, " ", "_strata/x", "a/b:c", "🐚"])
def test_a_type_is_any_text_of_1_to_256_bytes(name: str, log: EventLog) -> None:
    log.append(RUN, name, 1)
    log.append_batch(RUN, [(name, 2)])
    assert log.event_types(RUN) == [name]
    assert [event.event_type for event in log.read_by_type(RUN, name)] == [name, name]


BAD_BATCHES: dict[str, Any] = {
    "None": None,
    "int": 5,
    "str": "ab",
    "bytes": b"ab",
    "no pairs": [1],
    "singles": [("a",)],
    "triples": [("a", 1, 2)],
    "strs of two": ["ab"],
    "bytes of two": [b"ab"],
    "dicts of two": [{"a": 1, "b": 2}],
    "one bad among good": [("a", 1), None, ("a", 2)],
}


@pytest.mark.parametrize("items", BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_a_batch_of_anything_but_pairs_is_refused(items: Any, log: EventLog) -> None:
    with refused(log.database, errors.WrongType, "pair"):
        log.append_batch(RUN, items)
    assert log.is_empty(RUN)


def test_a_batch_whose_iterator_raises_appends_nothing(log: EventLog) -> None:
    def pairs() -> Iterator[tuple[str, int]]:
        yield "a", 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        log.append_batch(RUN, pairs())
    assert log.is_empty(RUN)
    assert log.append(RUN, "a", 1)[0] == 0


# -- limits -----------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_the_depth_of_a_payload_is_its_own(log: EventLog) -> None:
    log.append(RUN, "a", nested(128))
    log.append_batch(RUN, [("a", nested(128))])
    assert payloads(list(log.iter(RUN))) == [nested(128)] * 2
    with refused(log.database, errors.ConstraintViolation, "128"):
        log.append(RUN, "a", nested(129))
    with refused(log.database, errors.ConstraintViolation, "128"):
        log.append_batch(RUN, [("a", 1), ("a", nested(129))])
    assert log.len(RUN) == 2


def test_a_string_of_16_mib_is_a_payload_and_one_more_byte_is_not(log: EventLog) -> None:
    log.append(RUN, "a", b"x" * (16 * MIB))
    with refused(log.database, errors.ConstraintViolation, "16 MiB"):
        log.append(RUN, "a", b"x" * (16 * MIB + 1))
    with refused(log.database, errors.ConstraintViolation, "16 MiB"):
        log.append_batch(RUN, [("a", 1), ("a", "x" * (16 * MIB + 1))])
    assert log.len(RUN) == 1


def two_parts(size: int) -> list[bytes]:
    """A value that has so many bytes when encoded."""
    each = size - 1 - 2 * 5
    return [b"x" * (each // 2), b"x" * (each - each // 2)]


def test_an_event_of_32_mib_encoded_is_appended_and_one_more_byte_is_not(log: EventLog) -> None:
    log.append(RUN, "a", two_parts(32 * MIB - AROUND))
    over = two_parts(32 * MIB - AROUND + 1)
    with refused(log.database, errors.ConstraintViolation, "32 MiB"):
        log.append(RUN, "a", over)
    with refused(log.database, errors.ConstraintViolation, "32 MiB"):
        log.append_batch(RUN, [("a", 1), ("a", over)])
    assert log.verify_chain(RUN) == ChainVerification(True, 1)


def test_a_batch_of_more_than_64_mib_is_refused_and_nothing_is_appended(log: EventLog) -> None:
    part = b"x" * (16 * MIB - 1000)
    log.append_batch(RUN, [("a", part)] * 4)
    with refused(log.database, errors.ConstraintViolation, "64 MiB"):
        log.append_batch(RUN, [("a", part)] * 5)
    assert log.len(RUN) == 4
    assert log.append(RUN, "a", 1)[0] == 4


def test_an_append_that_finds_no_room_appends_nothing() -> None:
    with Database.ephemeral(map_size=MIB) as db:
        log = EventLog(db)
        log.append(RUN, "a", 1)
        with pytest.raises(errors.StorageFull):
            log.append(RUN, "a", b"x" * (2 * MIB))
        with pytest.raises(errors.StorageFull):
            log.append_batch(RUN, [("b", b"x" * 300_000)] * 4)
        assert log.event_types(RUN) == ["a"]
        assert log.append(RUN, "a", 2)[0] == 1
        assert log.verify_chain(RUN) == ChainVerification(True, 2)


# -- runs that take no writes -----------------------------------------------------------------


def test_a_completed_run_takes_no_event_and_can_be_read(log: EventLog) -> None:
    run = log.database.begin_run()
    log.append_batch(run, [("a", 1), ("b", 2)])
    log.database.end_run(run)
    before = whole(log, run)
    calls: list[Callable[[], Any]] = [
        lambda: log.append(run, "a", 3),
        lambda: log.append_batch(run, [("a", 3), ("b", 4)]),
    ]
    for call in calls:
        with refused(log.database, errors.RunError, "Completed", runs=(run,)) as caught:
            call()
        assert isinstance(caught.value, errors.RunError)
        assert (str(caught.value.run), caught.value.state) == (str(run), "Completed")
    assert whole(log, run) == before
    assert log.head(run) == log.read(run, 1)
    assert list(log.follow(run, after=0, timeout=0)) == [log.read(run, 1)]


def test_update_and_delete_are_refused_and_change_nothing(log: EventLog) -> None:
    fill(log, 3)
    before = whole(log)
    calls: list[Callable[[int], Any]] = [
        lambda sequence: log.update(RUN, sequence, "changed"),
        lambda sequence: log.delete(RUN, sequence),
    ]
    for call, sequence in itertools.product(calls, (0, 2, 99, -1)):
        with refused(log.database, errors.InvalidOperation, "only grows"):
            call(sequence)
    assert whole(log) == before


# -- reading ----------------------------------------------------------------------------------


def test_an_empty_log_reads_as_empty(log: EventLog) -> None:
    assert log.len(RUN) == 0
    assert log.is_empty(RUN)
    assert log.head(RUN) is None
    assert log.read(RUN, 0) is None
    assert log.read_range(RUN, 0, 10) == []
    assert log.read_by_type(RUN, "a") == []
    assert log.read_by_time(RUN, 0, 2**62) == []
    assert log.event_types(RUN) == []
    assert list(log.iter(RUN)) == []
    assert log.verify_chain(RUN) == ChainVerification(True, 0, None, None)


def test_head_is_the_newest_and_len_counts_all(log: EventLog) -> None:
    for number in range(3):
        log.append(RUN, "a", number)
        assert log.head(RUN) == log.read(RUN, number)
        assert log.len(RUN) == number + 1
        assert not log.is_empty(RUN)


@pytest.mark.parametrize("sequence", [3, -1, 2**63, BEHIND_ALL - 1, BEHIND_ALL, 10**30, -(10**30)])
def test_a_sequence_that_there_is_not_reads_as_none(sequence: int, log: EventLog) -> None:
    fill(log, 3)
    assert log.read(RUN, sequence) is None


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 5, [0, 1, 2, 3, 4]),
        (1, 3, [1, 2]),
        (4, 5, [4]),
        (4, 100, [4]),
        (0, BEHIND_ALL, [0, 1, 2, 3, 4]),
        (0, 10**30, [0, 1, 2, 3, 4]),
        (-5, 2, [0, 1]),
        (-(10**30), 10**30, [0, 1, 2, 3, 4]),
        (2, 2, []),
        (3, 2, []),
        (5, 9, []),
        (10**30, 10**31, []),
        (0, 0, []),
        (-9, -3, []),
    ],
)
def test_read_range_is_half_open_and_in_order(
    start: int, end: int, expected: list[int], log: EventLog
) -> None:
    fill(log, 5)
    assert sequences(log.read_range(RUN, start, end)) == expected


@pytest.mark.parametrize("bad", [True, 1.0, "1", None, b"1", [1]], ids=label)
def test_a_sequence_or_time_that_is_no_int_is_refused(bad: Any, log: EventLog) -> None:
    fill(log, 3)
    calls: list[Callable[[], Any]] = [
        lambda: log.read(RUN, bad),
        lambda: log.read_range(RUN, bad, 3),
        lambda: log.read_range(RUN, 0, bad),
        lambda: log.read_by_time(RUN, bad, 3),
        lambda: log.read_by_time(RUN, 0, bad),
        lambda: log.read_by_type(RUN, "t", limit=bad),
        lambda: log.read_by_type(RUN, "t", after=bad),
        lambda: log.follow(RUN, after=bad),
    ]
    if bad is None:  # which these three take
        del calls[-3:]
    for call in calls:
        with refused(log.database, errors.WrongType, "int"):
            call()


RUN_CALLS: dict[str, Callable[[EventLog, Any], Any]] = {
    "append": lambda log, run: log.append(run, "a", 1),
    "append_batch": lambda log, run: log.append_batch(run, [("a", 1)]),
    "read": lambda log, run: log.read(run, 0),
    "read_range": lambda log, run: log.read_range(run, 0, 1),
    "read_by_time": lambda log, run: log.read_by_time(run, 0, 1),
    "read_by_type": lambda log, run: log.read_by_type(run, "a"),
    "head": lambda log, run: log.head(run),
    "len": lambda log, run: log.len(run),
    "is_empty": lambda log, run: log.is_empty(run),
    "iter": lambda log, run: log.iter(run),
    "event_types": lambda log, run: log.event_types(run),
    "follow": lambda log, run: log.follow(run),
    "follow from": lambda log, run: log.follow(run, after=-1),
    "verify_chain": lambda log, run: log.verify_chain(run),
}


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (None, errors.WrongType),
        (5, errors.WrongType),
        (b"default", errors.WrongType),
        ("", errors.InvalidKey),
        ("nope", errors.InvalidKey),
        ("Default", errors.InvalidKey),
    ],
    ids=label,
)
@pytest.mark.parametrize("call", RUN_CALLS.values(), ids=RUN_CALLS)
def test_what_names_no_run_is_refused_by_the_call_itself(
    call: Callable[[EventLog, Any], Any], run: Any, kind: type[errors.Error], log: EventLog
) -> None:
    with refused(log.database, kind):
        call(log, run)


@pytest.mark.parametrize("call", RUN_CALLS.values(), ids=RUN_CALLS)
def test_a_closed_handle_refuses_every_call(call: Callable[[EventLog, Any], Any]) -> None:
    with Database.ephemeral() as db:
        log = EventLog(db)
        log.append(RUN, "a", 1)
    with pytest.raises(errors.Closed):
        list(call(log, RUN))  # what is no list yet says so at the first step
    with pytest.raises(errors.Closed):
        EventLog(db)


@pytest.mark.parametrize("database", [5, None, "db", object()], ids=lambda it: type(it).__name__)
def test_a_log_is_made_of_a_database(database: Any) -> None:
    with pytest.raises(errors.WrongType, match="Database"):
        EventLog(database)


def test_iter_gives_all_in_order_from_the_snapshot_of_its_first_step(log: EventLog) -> None:
    fill(log, 2500)
    lazy = log.iter(RUN)
    log.append(RUN, "t", 2500)
    assert next(lazy).payload == 0
    log.append(RUN, "t", "too late")
    assert payloads(list(lazy)) == list(range(1, 2501))


def test_an_iter_given_up_half_way_lets_its_snapshot_go(log: EventLog) -> None:
    fill(log, 10)
    lazy = log.iter(RUN)
    next(lazy)
    assert log.database.metrics().snapshots == 1
    del lazy
    assert log.database.metrics().snapshots == 0


@pytest.mark.parametrize("count", [1023, 1024, 1025, 2048])
def test_ranges_meet_where_batches_of_reading_do(count: int, log: EventLog) -> None:
    fill(log, count)
    assert sequences(list(log.iter(RUN))) == list(range(count))
    assert sequences(log.read_range(RUN, 1, count)) == list(range(1, count))
    assert sequences(log.read_range(RUN, 0, count - 1)) == list(range(count - 1))
    assert log.verify_chain(RUN) == ChainVerification(True, count)


# -- by time ----------------------------------------------------------------------------------


def test_read_by_time_is_half_open(log: EventLog) -> None:
    for number in range(6):
        log.append(RUN, "a", number)
        passed = time.time_ns() // 1_000_000
        while time.time_ns() // 1_000_000 == passed:  # the next one is of another millisecond
            pass
    times = [event.timestamp for event in log.iter(RUN)]
    assert len(set(times)) == 6
    for first, last in itertools.product(range(6), range(6)):
        expected = list(range(first, last))
        assert payloads(log.read_by_time(RUN, times[first], times[last])) == expected
        expected = list(range(first, last + 1))
        assert payloads(log.read_by_time(RUN, times[first], times[last] + 1)) == expected


def test_read_by_time_gives_all_events_of_one_millisecond(log: EventLog) -> None:
    log.append_batch(RUN, [("a", number) for number in range(2000)])
    at = log.read_range(RUN, 0, 1)[0].timestamp
    assert payloads(log.read_by_time(RUN, at, at + 1)) == list(range(2000))
    assert log.read_by_time(RUN, at + 1, at + 2) == []
    assert log.read_by_time(RUN, at - 1, at) == []
    assert log.read_by_time(RUN, at, at) == log.read_by_time(RUN, at + 1, at) == []
    for low, high in ((-(10**30), 10**30), (0, 2**64), (-1, at + 1)):
        assert len(log.read_by_time(RUN, low, high)) == 2000
    for low, high in ((10**30, 10**31), (-2, -1), (10**30, -(10**30))):
        assert log.read_by_time(RUN, low, high) == []


# -- by type ----------------------------------------------------------------------------------


def test_read_by_type_gives_that_type_alone_and_in_order(log: EventLog) -> None:
    fill(log, 10, "abb")
    assert sequences(log.read_by_type(RUN, "a")) == [0, 3, 6, 9]
    assert sequences(log.read_by_type(RUN, "b")) == [1, 2, 4, 5, 7, 8]
    assert log.read_by_type(RUN, "c") == log.read_by_type(RUN, "A") == []
    assert log.read_by_type(RUN, "a")[1] == log.read(RUN, 3)


@pytest.mark.parametrize(
    ("limit", "after", "expected"),
    [
        (None, None, [0, 2, 4, 6, 8]),
        (2, None, [0, 2]),
        (0, None, []),
        (0, 3, []),
        (99, None, [0, 2, 4, 6, 8]),
        (10**30, None, [0, 2, 4, 6, 8]),
        (None, -1, [0, 2, 4, 6, 8]),
        (None, -(10**30), [0, 2, 4, 6, 8]),
        (None, 0, [2, 4, 6, 8]),
        (None, 1, [2, 4, 6, 8]),
        (2, 3, [4, 6]),
        (None, 7, [8]),
        (None, 8, []),
        (None, BEHIND_ALL, []),
        (None, 10**30, []),
    ],
)
def test_read_by_type_can_be_paged(
    limit: int | None, after: int | None, expected: list[int], log: EventLog
) -> None:
    fill(log, 10, "ab")
    assert sequences(log.read_by_type(RUN, "a", limit, after)) == expected
    assert sequences(log.read_by_type(RUN, "a", after=after, limit=limit)) == expected


def test_a_negative_limit_is_refused(log: EventLog) -> None:
    for limit in (-1, -(10**30)):
        with refused(log.database, errors.ConstraintViolation, "limit"):
            log.read_by_type(RUN, "a", limit)


def test_pages_of_a_type_make_up_the_whole(log: EventLog) -> None:
    fill(log, 3000, "aab")
    found: list[int] = []
    after: int | None = None
    while page := log.read_by_type(RUN, "a", 700, after):
        found += sequences(page)
        after = page[-1].sequence
    assert found == [number for number in range(3000) if number % 3 < 2]


NAMES = ["a", "ab", "abc", "a\x01", "a ", "b", "A", "é", "e", "日本", "日", "🐚", "\x7f", "a" * 256]


def test_types_that_begin_alike_or_are_not_ascii_are_kept_apart(log: EventLog) -> None:
    log.append_batch(RUN, [(name, name) for name in NAMES * 3])
    assert log.event_types(RUN) == sorted(NAMES, key=lambda name: name.encode())
    for place, name in enumerate(NAMES):
        found = log.read_by_type(RUN, name)
        assert payloads(found) == [name] * 3
        assert sequences(found) == [place + turn * len(NAMES) for turn in range(3)]


def test_types_are_told_however_many_events_each_has(log: EventLog) -> None:
    fill(log, 3000, "xyz")
    log.append(RUN, "last", None)
    assert log.event_types(RUN) == ["last", "x", "y", "z"]
    assert log.event_types(RunId.new()) == []


# -- the records ------------------------------------------------------------------------------


def test_an_event_is_an_immutable_tuple_with_names(log: EventLog) -> None:
    log.append(RUN, "a", 1)
    event = log.read(RUN, 0)
    assert event is not None
    assert event == log.head(RUN)
    assert event[:3] == (0, "a", 1)
    with pytest.raises(AttributeError):
        event.payload = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        log.verify_chain(RUN).length = 5  # type: ignore[misc]


def test_verify_chain_is_of_one_snapshot_while_others_append(log: EventLog) -> None:
    done = threading.Event()

    def append() -> None:
        for number in range(3000):
            log.append(RUN, "a", number)
        done.set()

    def verify() -> int:
        looks = 0
        while not done.is_set():
            found = log.verify_chain(RUN)
            assert found == ChainVerification(True, found.length)
            looks += 1
        return looks

    assert in_threads(2, lambda me: (append, verify)[me]())[1] > 0
    assert log.verify_chain(RUN) == ChainVerification(True, 3000)
