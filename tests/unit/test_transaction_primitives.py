"""test_transaction_primitives.py - keys, events and cells in one transaction: all or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shm_engine import (
    ChainVerification,
    Database,
    EventLog,
    KVStore,
    RunId,
    StateCell,
    Transaction,
    errors,
)
from tests.harness.labels import label
from tests.harness.refusal import assert_usable, refused
from tests.harness.threads import in_threads

RUN = RunId.DEFAULT
GENESIS = bytes(32)
ISOLATIONS = ["snapshot", "serializable"]
Step = Callable[[Transaction], Any]


class Faces:
    """The three primitives over one database."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.kv = KVStore(db)
        self.log = EventLog(db)
        self.cells = StateCell(db)

    def whole(self, run: RunId = RUN) -> tuple[Any, ...]:
        """All that there is in a run."""
        cells = [(name, self.cells.read(run, name)) for name in self.cells.list(run)]
        return self.kv.scan(run), list(self.log.iter(run)), cells

    def held(self, name: str, run: RunId = RUN) -> tuple[Any, int] | None:
        """Value and version of a cell."""
        state = self.cells.read(run, name)
        return None if state is None else (state.value, state.version)

    def events(self, run: RunId = RUN) -> list[tuple[str, Any]]:
        """Type and payload of each event; the chain is sound."""
        found = [(event.event_type, event.payload) for event in self.log.iter(run)]
        assert self.log.verify_chain(run) == ChainVerification(True, len(found))
        return found


@pytest.fixture
def at() -> Iterator[Faces]:
    with Database.ephemeral() as db:
        yield Faces(db)
        assert db.closed or db.metrics().snapshots == 0


def everything(txn: Transaction) -> tuple[int, int, int]:
    """One write of each primitive."""
    txn.kv_put("key", "value")
    sequence = txn.event_append("event", {"n": 1})
    return sequence, txn.state_init("cell", [1]), txn.state_set("other", 2)


def each_written(at: Faces, run: RunId = RUN) -> None:
    assert at.kv.scan(run) == [("key", "value")]
    assert at.events(run) == [("event", {"n": 1})]
    assert at.cells.list(run) == ["cell", "other"]
    assert (at.held("cell", run), at.held("other", run)) == (([1], 1), (2, 1))


# -- all or nothing ---------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_all_primitives_commit_together(isolation: str, at: Faces) -> None:
    """Story 197: all primitives work in one transaction."""
    assert at.db.transaction(RUN, everything, isolation=isolation) == (0, 1, 1)
    each_written(at)
    assert at.db.metrics().transactions_committed == 1
    event = at.log.head(RUN)
    state = at.cells.read(RUN, "cell")
    versioned = at.kv.get_versioned(RUN, "key")
    assert event is not None
    assert state is not None
    assert versioned is not None
    assert event.timestamp_us == versioned.timestamp
    assert state.updated_at == event.timestamp


def test_nothing_is_seen_by_others_before_the_commit(at: Faces) -> None:
    with at.db.begin(RUN) as txn:
        everything(txn)
        assert at.whole() == ([], [], [])
        with at.db.begin(RUN) as other:
            assert (other.kv_get("key"), other.event_read(0)) == (None, None)
            assert other.state_read("cell") is None
    each_written(at)


class Mine(Exception):
    pass


ENDS: dict[str, tuple[Step, type[BaseException]]] = {
    "raises": (lambda txn: (_ for _ in ()).throw(Mine("no")), Mine),
    "interrupted": (lambda txn: (_ for _ in ()).throw(KeyboardInterrupt()), KeyboardInterrupt),
    "stale cas": (lambda txn: txn.state_cas("known", 7, 0), errors.VersionMismatch),
    "cas of none": (lambda txn: txn.state_cas("none", 7, 0), errors.NotFound),
    "init of one": (lambda txn: txn.state_init("known", 0), errors.InvalidOperation),
    "bad event": (lambda txn: txn.event_append("t", object()), errors.WrongType),
    "bad type": (lambda txn: txn.event_append("", 0), errors.InvalidKey),
    "bad cell": (lambda txn: txn.state_set("_strata/a", 0), errors.InvalidKey),
    "bad increment": (lambda txn: txn.kv_incr("text"), errors.WrongType),
}


@pytest.mark.parametrize(("end", "kind"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_whatever_fails_takes_everything_back(
    end: Step, kind: type[BaseException], isolation: str, at: Faces
) -> None:
    """Story 197: rollback affects all primitives."""
    at.kv.put(RUN, "text", "x")
    at.log.append(RUN, "before", 0)
    at.cells.init(RUN, "known", 0)
    before = at.whole()
    with pytest.raises(kind):
        at.db.transaction(RUN, lambda txn: (everything(txn), end(txn)), isolation=isolation)
    assert at.whole() == before
    assert_usable(at.db)
    assert at.db.transaction(RUN, everything)[0] == 1, "an aborted append leaves no gap"
    assert at.events() == [("before", 0), ("event", {"n": 1})]


def test_a_rollback_in_the_middle_leaves_nothing(at: Faces) -> None:
    with at.db.begin(RUN) as txn:
        everything(txn)
        txn.rollback()
    assert at.whole() == ([], [], [])


def test_a_transaction_of_events_and_cells_alone_commits(at: Faces) -> None:
    version = at.db.metrics().version
    txn = at.db.begin(RUN)
    txn.event_append("a", 1)
    assert txn.commit() > version
    txn = at.db.begin(RUN)
    txn.state_set("a", 1)
    assert txn.commit() > version + 1
    assert (at.events(), at.held("a")) == ([("a", 1)], (1, 1))


# -- what it sees -----------------------------------------------------------------------------


def test_it_sees_its_snapshot_of_every_primitive(at: Faces) -> None:
    at.kv.put(RUN, "key", 1)
    at.log.append(RUN, "old", 1)
    at.cells.init(RUN, "cell", 1)
    with at.db.begin(RUN) as txn:
        at.kv.put(RUN, "key", 2)
        at.log.append(RUN, "new", 2)
        at.cells.set(RUN, "cell", 2)
        at.cells.init(RUN, "later", 2)
        event = txn.event_read(0)
        assert event == at.log.read(RUN, 0)
        assert (txn.kv_get("key"), txn.event_read(1)) == (1, None)
        assert (txn.state_read("cell"), txn.state_read("later")) == (1, None)


def test_own_events_can_be_read_and_have_no_hash_yet(at: Faces) -> None:
    at.log.append(RUN, "before", 0)
    with at.db.begin(RUN) as txn:
        payload = [1]
        assert txn.event_read(1) is None
        assert [txn.event_append("own", payload), txn.event_append("own", 2)] == [1, 2]
        payload.append(2)
        own = txn.event_read(1)
        assert own is not None
        assert (own.sequence, own.event_type, own.payload) == (1, "own", [1])
        assert own.prev_hash == own.hash == GENESIS
        assert abs(own.timestamp_us - time.time_ns() // 1000) < 10_000_000
        assert [event and event.payload for event in map(txn.event_read, range(4))] == [
            0,
            [1],
            2,
            None,
        ]
    assert at.events() == [("before", 0), ("own", [1]), ("own", 2)]


@pytest.mark.parametrize("sequence", [-1, 2**63, 2**64 - 1, 2**64, 10**30, -(10**30)])
def test_a_sequence_beyond_all_reads_as_none_and_guards_nothing_that_comes(
    sequence: int, at: Faces
) -> None:
    with at.db.begin(RUN) as txn:
        assert txn.event_read(sequence) is None
        txn.kv_put("key", 1)
        at.log.append(RUN, "a", 1)
    assert at.kv.get(RUN, "key") == 1


def test_own_cells_can_be_read_and_count_on(at: Faces) -> None:
    at.cells.set(RUN, "cell", 0)
    with at.db.begin(RUN) as txn:
        assert [txn.state_set("cell", 1), txn.state_set("cell", 2)] == [2, 3]
        assert txn.state_read("cell") == 2
        assert txn.state_cas("cell", 3, 3) == 4
        assert txn.state_init("new", "x") == 1
        assert txn.state_cas("new", 1, "y") == 2
        assert txn.state_set("new", "z") == 3
        assert (txn.state_read("cell"), txn.state_read("new")) == (3, "z")
    assert (at.held("cell"), at.held("new")) == ((3, 4), ("z", 3))
    assert at.cells.cas(RUN, "cell", 4, 5) == 5


def test_a_cell_that_holds_none_is_there(at: Faces) -> None:
    with at.db.begin(RUN) as txn:
        assert txn.state_init("cell", None) == 1
        assert txn.state_read("cell") is None
        with pytest.raises(errors.InvalidOperation, match="exists already, at version 1"):
            txn.state_init("cell", 1)
    assert at.held("cell") == (None, 1)


def test_a_cas_from_version_0_makes_a_cell(at: Faces) -> None:
    """Story 197 writes state_cas("workflow", 0, ..) for a cell that is not there."""
    assert at.db.transaction(RUN, lambda txn: txn.state_cas("workflow", 0, "step1")) == 1
    assert at.held("workflow") == ("step1", 1)
    with pytest.raises(errors.VersionMismatch):
        at.db.transaction(RUN, lambda txn: txn.state_cas("workflow", 0, "step1"))


def test_a_cell_deleted_before_begins_at_1_again(at: Faces) -> None:
    for value in range(3):
        at.cells.set(RUN, "cell", value)
    at.cells.delete(RUN, "cell")
    with at.db.begin(RUN) as txn:
        assert txn.state_read("cell") is None
        assert txn.state_set("cell", "new") == 1
    assert at.held("cell") == ("new", 1)


def test_a_value_is_encoded_when_it_is_written(at: Faces) -> None:
    value = [1]
    with at.db.begin(RUN) as txn:
        txn.state_set("cell", value)
        txn.event_append("event", value)
        value.append(2)
    assert (at.held("cell"), at.events()) == (([1], 1), [("event", [1])])


# -- cas --------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", [0, 1, 3, -1, 2**63, 10**30])
def test_a_stale_cas_fails_the_whole_transaction_and_tells_both_versions(
    expected: int, at: Faces
) -> None:
    at.cells.set(RUN, "cell", "a")
    at.cells.set(RUN, "cell", "b")
    before = at.whole()
    txn = at.db.begin(RUN)
    txn.kv_put("key", 1)
    txn.event_append("event", 1)
    with pytest.raises(errors.VersionMismatch, match="nothing of the transaction") as caught:
        txn.state_cas("cell", expected, "c")
    assert (caught.value.expected, caught.value.actual) == (expected, 2)
    with pytest.raises(errors.InvalidState):
        txn.commit()
    assert at.whole() == before


def test_a_stale_cas_that_the_closure_forgives_still_writes_nothing(at: Faces) -> None:
    at.cells.set(RUN, "cell", "a")
    before = at.whole()

    def forgiving(txn: Transaction) -> None:
        txn.kv_put("key", 1)
        with pytest.raises(errors.VersionMismatch):
            txn.state_cas("cell", 5, "b")

    at.db.transaction(RUN, forgiving)
    assert at.whole() == before


def test_a_stale_cas_is_not_tried_again(at: Faces) -> None:
    at.cells.set(RUN, "cell", "a")
    tries = []

    def stale(txn: Transaction) -> None:
        tries.append(1)
        txn.state_cas("cell", 5, "b")

    with pytest.raises(errors.VersionMismatch):
        at.db.transaction_with_retry(RUN, stale)
    assert len(tries) == 1


@pytest.mark.parametrize("version", [True, 1.0, "1", None], ids=label)
def test_a_version_or_sequence_that_is_no_int_is_refused(version: Any, at: Faces) -> None:
    at.cells.init(RUN, "cell", 1)
    with refused(at.db, errors.WrongType, "expected_version"):
        at.db.transaction(RUN, lambda txn: txn.state_cas("cell", version, 1))
    with refused(at.db, errors.WrongType, "sequence"):
        at.db.transaction(RUN, lambda txn: txn.event_read(version))
    assert at.held("cell") == (1, 1)


# -- conflicts --------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_an_append_behind_anothers_is_a_conflict_in_words(isolation: str, at: Faces) -> None:
    at.log.append(RUN, "a", 0)
    txn = at.db.begin(RUN, isolation)
    assert txn.event_append("mine", 1) == 1
    txn.kv_put("key", 1)
    at.log.append(RUN, "theirs", 1)
    with pytest.raises(errors.TransactionConflict, match="another event was appended") as caught:
        txn.commit()
    assert caught.value.key is None
    assert caught.value.is_retryable()
    assert not txn.is_active
    assert at.events() == [("a", 0), ("theirs", 1)]
    assert at.kv.scan(RUN) == []


def test_an_append_of_before_the_first_own_one_is_a_conflict_too(at: Faces) -> None:
    """The sequence that event_append gives is that of the snapshot."""
    txn = at.db.begin(RUN)
    txn.kv_get("key")
    at.log.append(RUN, "theirs", 1)
    assert txn.event_append("mine", 1) == 0
    with pytest.raises(errors.TransactionConflict):
        txn.commit()
    assert at.events() == [("theirs", 1)]


def read_missing_event(txn: Transaction) -> None:
    assert txn.event_read(1) is None


GUARDS: dict[str, tuple[Step, Callable[[Faces], Any]]] = {
    "a missing event": (read_missing_event, lambda at: at.log.append(RUN, "b", 1)),
    "a cell": (lambda txn: txn.state_read("cell"), lambda at: at.cells.set(RUN, "cell", 2)),
    "a cell's same value": (
        lambda txn: txn.state_read("cell"),
        lambda at: at.cells.cas(RUN, "cell", 1, 1),
    ),
    "a deleted cell": (
        lambda txn: txn.state_read("cell"),
        lambda at: at.cells.delete(RUN, "cell"),
    ),
    "a cell made anew": (
        lambda txn: txn.state_read("cell"),
        lambda at: (at.cells.delete(RUN, "cell"), at.cells.init(RUN, "cell", 1)),
    ),
    "a missing cell": (lambda txn: txn.state_read("new"), lambda at: at.cells.set(RUN, "new", 1)),
    "a cell that was set": (
        lambda txn: txn.state_set("cell", 5),
        lambda at: at.cells.set(RUN, "cell", 2),
    ),
    "a cell that was made": (
        lambda txn: txn.state_init("new", 5),
        lambda at: at.cells.init(RUN, "new", 2),
    ),
    "a cell from its version": (
        lambda txn: txn.state_cas("cell", 1, 5),
        lambda at: at.cells.transition(RUN, "cell", lambda state: (2, None)),
    ),
    "a key": (lambda txn: txn.kv_get("key"), lambda at: at.kv.put(RUN, "key", 2)),
}


@pytest.mark.parametrize(("read", "change"), GUARDS.values(), ids=GUARDS)
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_what_was_read_and_has_changed_is_a_conflict(
    read: Step, change: Callable[[Faces], Any], isolation: str, at: Faces
) -> None:
    at.log.append(RUN, "a", 0)
    at.cells.init(RUN, "cell", 1)
    txn = at.db.begin(RUN, isolation)
    read(txn)
    txn.kv_put("mine", 1)
    change(at)
    after = at.whole()
    with pytest.raises(errors.TransactionConflict) as caught:
        txn.commit()
    assert not isinstance(caught.value.key, bytes)
    assert "\\x" not in str(caught.value), "a message for people"
    assert at.whole() == after


FREE: dict[str, tuple[Step, Callable[[Faces], Any]]] = {
    "an event that was there": (
        lambda txn: txn.event_read(0),
        lambda at: at.log.append(RUN, "b", 1),
    ),
    "another cell": (
        lambda txn: txn.state_read("cell"),
        lambda at: at.cells.set(RUN, "other", 2),
    ),
    "a key of the cell's name": (
        lambda txn: txn.state_read("cell"),
        lambda at: at.kv.put(RUN, "cell", 2),
    ),
    "a blind write": (lambda txn: txn.kv_put("key", 5), lambda at: at.kv.put(RUN, "key", 2)),
    "a later event": (lambda txn: txn.event_read(5), lambda at: at.log.append(RUN, "b", 1)),
}


@pytest.mark.parametrize(("read", "change"), FREE.values(), ids=FREE)
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_what_was_not_read_is_no_conflict(
    read: Step, change: Callable[[Faces], Any], isolation: str, at: Faces
) -> None:
    at.log.append(RUN, "a", 0)
    at.cells.init(RUN, "cell", 1)
    with at.db.begin(RUN, isolation) as txn:
        read(txn)
        txn.kv_put("mine", 1)
        change(at)
    assert at.kv.get(RUN, "mine") == 1


def test_a_transaction_that_only_read_always_commits(at: Faces) -> None:
    at.cells.init(RUN, "cell", 1)
    with at.db.begin(RUN, "serializable") as txn:
        assert (txn.state_read("cell"), txn.event_read(0), txn.kv_list()) == (1, None, [])
        everything_again(at)
        assert (txn.state_read("cell"), txn.event_read(0), txn.kv_list()) == (1, None, [])


def everything_again(at: Faces) -> None:
    at.cells.set(RUN, "cell", 2)
    at.log.append(RUN, "event", 1)
    at.kv.put(RUN, "key", 1)


def test_serializable_guards_ranges_beside_the_other_primitives(at: Faces) -> None:
    for isolation, phantom in (("snapshot", False), ("serializable", True)):
        txn = at.db.begin(RUN, isolation)
        txn.kv_list(f"{isolation}/")
        txn.event_append("event", isolation)
        txn.state_set("cell", isolation)
        at.kv.put(RUN, f"{isolation}/new", 1)
        if phantom:
            with pytest.raises(errors.TransactionConflict):
                txn.commit()
        else:
            txn.commit()
    assert at.events() == [("event", "snapshot")]
    assert at.held("cell") == ("snapshot", 1)


def test_write_skew_between_a_key_and_a_cell_is_a_conflict(at: Faces) -> None:
    first, second = at.db.begin(RUN), at.db.begin(RUN)
    assert first.state_read("cell") is None
    assert second.kv_get("key") is None
    first.kv_put("key", 1)
    second.state_set("cell", 1)
    first.commit()
    with pytest.raises(errors.TransactionConflict):
        second.commit()
    assert at.whole() == ([("key", 1)], [], [])


# -- retries ----------------------------------------------------------------------------------


def test_a_conflict_in_any_primitive_is_tried_again_on_a_new_snapshot(at: Faces) -> None:
    disturbances: list[Callable[[], Any]] = [
        lambda: at.log.append(RUN, "theirs", 1),
        lambda: at.cells.set(RUN, "cell", "theirs"),
        lambda: at.kv.put(RUN, "key", "theirs"),
    ]
    tries = []

    def work(txn: Transaction) -> tuple[int, int]:
        tries.append(1)
        txn.kv_put("key", [txn.kv_get("key")])
        sequence = txn.event_append("mine", txn.state_read("cell"))
        version = txn.state_set("cell", "mine")
        if disturbances:
            disturbances.pop(0)()
        return sequence, version

    assert at.db.transaction_with_retry(RUN, work) == (1, 2)
    assert len(tries) == 4
    assert at.events() == [("theirs", 1), ("mine", "theirs")]
    assert (at.held("cell"), at.kv.get(RUN, "key")) == (("mine", 2), ["theirs"])


def test_a_conflict_of_every_try_reaches_the_caller(at: Faces) -> None:
    def work(txn: Transaction) -> None:
        txn.event_append("mine", 1)
        at.log.append(RUN, "theirs", 1)

    with pytest.raises(errors.TransactionConflict, match="another event"):
        at.db.transaction_with_retry(RUN, work, max_retries=2)
    assert at.events() == [("theirs", 1)] * 3


def test_transactions_of_many_threads_over_all_primitives_lose_nothing(at: Faces) -> None:
    def work(txn: Transaction) -> int:
        count = txn.state_read("count") or 0
        sequence = txn.event_append("counted", count)
        assert sequence == count
        txn.kv_incr("sum", count)
        assert txn.state_set("count", count + 1) == count + 1
        return count

    def many(_: int) -> list[int]:
        return [at.db.transaction_with_retry(RUN, work, max_retries=1000) for _ in range(20)]

    found = sorted(count for counts in in_threads(4, many) for count in counts)
    assert found == list(range(80))
    assert at.events() == [("counted", number) for number in range(80)]
    assert at.held("count") == (80, 80)
    assert at.kv.get(RUN, "sum") == sum(range(80))


# -- closures that use the database -----------------------------------------------------------


def test_a_closure_that_writes_directly_commits_apart(at: Faces) -> None:
    def work(txn: Transaction) -> None:
        txn.kv_put("mine", 1)
        at.kv.put(RUN, "direct", 1)
        at.cells.init(RUN, "direct", 1)
        at.log.append(RUN, "direct", 1)
        raise Mine

    with pytest.raises(Mine):
        at.db.transaction(RUN, work)
    assert at.kv.scan(RUN) == [("direct", 1)]
    assert at.events() == [("direct", 1)]
    assert at.held("direct") == (1, 1)


def test_a_closure_that_waits_for_its_own_commit_gets_none(at: Faces) -> None:
    def work(txn: Transaction) -> None:
        txn.state_set("cell", 1)
        txn.event_append("a", 1)
        assert at.cells.wait(RUN, "cell", 0, 0.01) is None
        assert list(at.log.follow(RUN, -1, 0.01)) == []

    at.db.transaction(RUN, work)
    assert (at.held("cell"), at.events()) == ((1, 1), [("a", 1)])


# -- the end ----------------------------------------------------------------------------------

USES: dict[str, Step] = {
    "event_append": lambda txn: txn.event_append("a", 1),
    "event_read": lambda txn: txn.event_read(0),
    "event_read of none": lambda txn: txn.event_read(-1),
    "state_read": lambda txn: txn.state_read("cell"),
    "state_init": lambda txn: txn.state_init("new", 1),
    "state_set": lambda txn: txn.state_set("cell", 1),
    "state_cas": lambda txn: txn.state_cas("cell", 1, 1),
    "state_cas of none": lambda txn: txn.state_cas("none", 1, 1),
}
FINISHES: dict[str, tuple[Step, str]] = {
    "commit": (lambda txn: txn.commit(), "committed"),
    "rollback": (lambda txn: txn.rollback(), "rolled back"),
}


@pytest.mark.parametrize(("finish", "state"), FINISHES.values(), ids=FINISHES)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_finished_transaction_refuses_every_use(
    use: Step, finish: Step, state: str, at: Faces
) -> None:
    at.cells.init(RUN, "cell", 1)
    txn = at.db.begin(RUN)
    everything_but_cells(txn)
    finish(txn)
    before = at.whole()
    with refused(at.db, errors.InvalidState, state):
        use(txn)
    assert at.whole() == before


def everything_but_cells(txn: Transaction) -> int:
    txn.kv_put("key", 1)
    return txn.event_append("event", 1)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_after_its_time_every_use_and_the_commit_are_refused(use: Step, at: Faces) -> None:
    at.cells.init(RUN, "cell", 1)
    before = at.whole()
    txn = at.db.begin(RUN, timeout=0.005)
    everything_but_cells(txn)
    began = time.monotonic()
    while time.monotonic() - began < 0.006:
        pass
    with pytest.raises(errors.TransactionTimeout):
        use(txn)
    with pytest.raises((errors.TransactionTimeout, errors.InvalidState)):
        txn.commit()
    txn.rollback()
    assert at.whole() == before


def test_a_timeout_of_zero_writes_nothing(at: Faces) -> None:
    with refused(at.db, errors.TransactionTimeout):
        at.db.transaction(RUN, everything, timeout=0)
    assert at.whole() == ([], [], [])


WRITES: dict[str, Step] = {
    "event": lambda txn: txn.event_append("a", 1),
    "init": lambda txn: txn.state_init("new", 1),
    "set": lambda txn: txn.state_set("cell", 1),
    "cas": lambda txn: txn.state_cas("cell", 1, 1),
    "all": lambda txn: (everything_but_cells(txn), txn.state_set("cell", 1)),
}


@pytest.mark.parametrize("ends_first", [True, False])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_completed_run_refuses_the_commit_and_nothing_is_written(
    write: Step, ends_first: bool, at: Faces
) -> None:
    run = at.db.begin_run()
    at.cells.init(run, "cell", 0)
    before = at.whole(run)
    if ends_first:
        at.db.end_run(run)
    txn = at.db.begin(run)
    write(txn)
    if not ends_first:
        at.db.end_run(run)
    with pytest.raises(errors.RunError, match="Completed"):
        txn.commit()
    assert at.whole(run) == before
    assert not txn.is_active
    assert_usable(at.db)


# -- much -------------------------------------------------------------------------------------


def test_ten_thousand_events_are_one_commit(at: Faces) -> None:
    at.log.append(RUN, "before", None)
    with at.db.begin(RUN) as txn:
        for number in range(10_000):
            assert txn.event_append(f"t{number % 3}", number) == number + 1
        txn.kv_put("key", 1)
        for number in range(1000):
            txn.state_set(f"c{number % 100}", number)
        own = txn.event_read(10_000)
        assert own is not None
        assert own.payload == 9_999
    assert at.log.verify_chain(RUN) == ChainVerification(True, 10_001)
    assert len({event.timestamp_us for event in at.log.read_range(RUN, 1, 10_001)}) == 1
    assert len(at.log.read_by_type(RUN, "t1")) == 3333
    assert at.held("c99") == (999, 10)
    assert at.db.metrics().transactions_committed == 2


def test_more_than_a_commit_can_hold_is_refused_as_a_whole(at: Faces) -> None:
    part = b"x" * (9 << 20)

    def much(txn: Transaction) -> None:
        txn.kv_put("key", 1)
        for number in range(8):
            txn.event_append("large", part)
            txn.state_set(f"c{number}", number)

    with refused(at.db, errors.ConstraintViolation, "64 MiB"):
        at.db.transaction(RUN, much)
    assert at.whole() == ([], [], [])


def test_a_commit_that_finds_no_room_writes_nothing() -> None:
    with Database.ephemeral(map_size=1 << 20) as db:
        at = Faces(db)

        def much(txn: Transaction) -> None:
            everything(txn)
            txn.event_append("large", b"x" * (2 << 20))

        with pytest.raises(errors.StorageFull):
            db.transaction(RUN, much)
        assert at.whole() == ([], [], [])
        assert db.transaction(RUN, everything) == (0, 1, 1)
        each_written(at)


# -- runs -------------------------------------------------------------------------------------


def test_runs_share_no_key_no_sequence_and_no_cell(at: Faces) -> None:
    """Story 198: isolation of keys, events and cells; queries respect the run."""
    runs = [RUN, at.db.begin_run(), RunId.new()]
    for number, run in enumerate(runs):
        for turn in range(number + 1):
            at.kv.put(run, "key", number)
            assert at.log.append(run, "event", [number, turn])[0] == turn
            assert at.cells.set(run, "cell", number) == turn + 1
    for number, run in enumerate(runs):
        assert at.kv.scan(run) == [("key", number)]
        assert at.held("cell", run) == (number, number + 1)
        expected = [("event", [number, turn]) for turn in range(number + 1)]
        assert at.events(run) == expected
        assert [event.payload for event in at.log.read_by_type(run, "event")] == [
            payload for _, payload in expected
        ]
        assert at.log.event_types(run) == ["event"]
        assert at.log.read_range(run, 0, 1)[0].prev_hash == GENESIS


def test_a_transaction_touches_its_own_run_alone(at: Faces) -> None:
    """Story 198."""
    other = at.db.begin_run()
    everything_in = at.db.transaction(other, everything)
    before = at.whole(other)
    assert at.db.transaction(RUN, everything) == everything_in
    assert at.whole(other) == before
    with at.db.begin(RUN) as txn:
        assert txn.state_read("other") == 2
        txn.state_set("other", 3)
        txn.event_append("event", 2)
        at.log.append(other, "theirs", 1)
        at.cells.set(other, "other", 9)
        at.kv.delete(other, "key")
    assert at.held("other") == (3, 2)
    assert len(at.events()) == len(at.events(other)) == 2
