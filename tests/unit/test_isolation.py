"""test_isolation.py - the checker of isolation finds each anomaly, and nothing where there is none.

By name in histories written down here, and against a search that tries every order of events in
thousands of small random ones.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from tests.harness.isolation import (
    Anomaly,
    Append,
    History,
    Level,
    Operation,
    Read,
    Record,
    Scan,
    Status,
    Values,
    check,
    described,
)

LEVELS: tuple[Level, ...] = ("snapshot", "guarded", "serializable")


def ran(number: int, *operations: Operation, status: Status = "committed") -> Record:
    """T<number>, in a process of its own."""
    return Record(f"T{number}", number, status, operations)


def timed(record: Record, began: int, ended: int | None) -> Record:
    """The same with times."""
    return replace(record, began=began, ended=ended)


def add(key: str, value: int) -> Append:
    return Append(key, value)


def see(key: str, *found: int) -> Read:
    return Read(key, found)


def look(prefix: str, **found: Values) -> Scan:
    return Scan(prefix, found)


def names(found: Iterable[Anomaly]) -> list[str]:
    return sorted(one.name for one in found)


def verdicts(*records: Record, **final: Values) -> list[list[str]]:
    """What is found at each of the levels, the weakest first."""
    return [names(check(History(records, final), level)) for level in LEVELS]


# -- cycles -----------------------------------------------------------------------------------

G_SINGLE = [["G-single"]] * 3


def test_a_clean_history_passes_at_every_level() -> None:
    one = timed(ran(1, see("x"), add("x", 1), see("x", 1)), 0, 10)
    two = timed(ran(2, see("x", 1), add("y", 2), look("", x=(1,), y=(2,))), 20, 30)
    late = timed(ran(3, see("x", 1), see("y", 2), add("x", 3), status="aborted"), 25, 40)
    assert verdicts(one, two, late, x=(1,), y=(2,)) == [[], [], []]
    assert verdicts() == [[], [], []]


def test_writes_in_opposite_orders_are_g0() -> None:
    one, two = ran(1, add("x", 1), add("y", 1)), ran(2, add("x", 2), add("y", 2))
    assert verdicts(one, two, x=(1, 2), y=(2, 1)) == [["G0"]] * 3
    assert verdicts(one, two, x=(1, 2), y=(1, 2)) == [[], [], []]


def test_an_append_between_two_of_one_transaction_is_g0() -> None:
    assert "G0" in verdicts(ran(1, add("x", 1), add("x", 3)), ran(2, add("x", 2)), x=(1, 2, 3))[0]


def test_transactions_that_see_each_other_are_g1c() -> None:
    one, two = ran(1, add("x", 1), see("y", 2)), ran(2, add("y", 2), see("x", 1))
    assert verdicts(one, two, x=(1,), y=(2,)) == [["G1c"]] * 3


def test_a_read_skew_is_g_single() -> None:
    writer = ran(1, add("x", 1), add("y", 1))
    reader = ran(2, see("x", 1), see("y"))
    assert verdicts(writer, reader, x=(1,), y=(1,)) == G_SINGLE


def test_an_update_of_an_old_list_is_g_single() -> None:
    one, two = ran(1, see("x"), add("x", 1)), ran(2, see("x"), add("x", 2))
    assert verdicts(one, two, x=(1, 2)) == G_SINGLE


def test_a_long_fork_is_forbidden_for_its_rw_edges_are_not_consecutive() -> None:
    records = [
        ran(1, add("x", 1)),
        ran(2, add("y", 2)),
        ran(3, see("x", 1), see("y")),
        ran(4, see("x"), see("y", 2)),
    ]
    assert verdicts(*records, x=(1,), y=(2,)) == [["G-nonadjacent"]] * 3


SKEW = (ran(1, see("x"), see("y"), add("x", 1)), ran(2, see("x"), see("y"), add("y", 2)))


def test_a_write_skew_on_keys_is_g2_which_snapshot_isolation_allows() -> None:
    assert verdicts(*SKEW, x=(1,), y=(2,)) == [[], ["G2"], ["G2"]]


def test_a_write_skew_by_phantoms_is_what_unguarded_ranges_allow() -> None:
    one, two = ran(1, look("p"), add("p1", 1)), ran(2, look("p"), add("p2", 2))
    assert verdicts(one, two, p1=(1,), p2=(2,)) == [[], [], ["G2"]]
    ordered = ran(2, look("p", p1=(1,)), add("p2", 2))
    assert verdicts(one, ordered, p1=(1,), p2=(2,)) == [[], [], []]


def test_a_write_skew_on_keys_that_a_scan_found_is_guarded() -> None:
    before = ran(0, add("p1", 10), add("p2", 20))
    found = look("p", p1=(10,), p2=(20,))
    one, two = ran(1, found, add("p1", 11)), ran(2, found, add("p2", 21))
    assert verdicts(before, one, two, p1=(10, 11), p2=(20, 21)) == [[], ["G2"], ["G2"]]


def test_a_key_that_was_scanned_and_then_read_is_guarded() -> None:
    one = ran(1, look("p"), see("p2"), add("p1", 1))
    two = ran(2, look("p"), see("p1"), add("p2", 2))
    assert verdicts(one, two, p1=(1,), p2=(2,)) == [[], ["G2"], ["G2"]]


def test_a_reader_alone_may_make_a_history_unserializable() -> None:
    """Fekete, O'Neil and O'Neil 2004."""
    one = ran(1, look("y"), add("x", 1))
    two = ran(2, add("y", 2))
    reader = ran(3, see("x"), see("y", 2))
    assert verdicts(one, two, reader, x=(1,), y=(2,)) == [[], [], ["G2"]]
    assert verdicts(one, two, x=(1,), y=(2,)) == [[], [], []]


def test_blind_appends_do_not_see_what_they_follow() -> None:
    one = ran(1, Append("log", 1, blind=True), add("x", 1))
    two = ran(2, look("x"), Append("log", 2, blind=True))
    reading = ran(2, look("x"), Append("log", 2))
    assert verdicts(one, two, log=(1, 2), x=(1,)) == [[], [], ["G-single"]]
    assert verdicts(one, reading, log=(1, 2), x=(1,)) == G_SINGLE
    # The key that was read is guarded, so at that level the second may not commit.
    guarding = ran(2, see("x"), Append("log", 2, blind=True))
    assert verdicts(one, guarding, log=(1, 2), x=(1,)) == [[], ["G-single"], ["G-single"]]


def test_each_knot_of_transactions_is_told() -> None:
    one, two = ran(1, add("x", 1), add("y", 1)), ran(2, add("x", 2), add("y", 2))
    three, four = ran(3, add("a", 3), see("b", 4)), ran(4, add("b", 4), see("a", 3))
    found = verdicts(one, two, three, four, x=(1, 2), y=(2, 1), a=(3,), b=(4,))
    assert found == [["G0", "G1c"]] * 3


# -- order ------------------------------------------------------------------------------------


def test_a_process_sees_what_it_has_done() -> None:
    one = ran(1, add("x", 1))
    two = Record("T2", 1, "committed", (see("x"),))
    assert verdicts(one, two, x=(1,)) == [["G-single-process"]] * 3
    assert verdicts(two, one, x=(1,)) == [[], [], []]


def test_a_process_sees_what_it_did_before_an_outcome_that_is_unknown() -> None:
    records = [
        ran(1, add("x", 1)),
        Record("T2", 1, "unknown", (add("y", 2),)),
        Record("T3", 1, "committed", (see("x"), see("y"))),
    ]
    assert verdicts(*records, x=(1,), y=(2,)) == [["G-single-process"]] * 3
    records[0] = ran(1)
    assert verdicts(*records, x=(), y=(2,)) == [[], [], []]


def test_a_process_sees_what_it_saw_before_it_was_aborted() -> None:
    seen = Record("T2", 2, "aborted", (see("x", 1),))
    later = Record("T3", 2, "committed", (see("x"),))
    assert verdicts(ran(1, add("x", 1)), seen, later, x=(1,)) == [["G-single-process"]] * 3


def test_serial_order_follows_real_time() -> None:
    one, two = ran(1, look("x"), add("y", 1)), ran(2, look("z"), add("x", 2))
    three = ran(3, add("z", 3))
    assert verdicts(one, two, three, x=(2,), y=(1,), z=(3,)) == [[], [], []]
    records = timed(one, 30, 40), timed(two, 0, 50), timed(three, 10, 20)
    assert verdicts(*records, x=(2,), y=(1,), z=(3,)) == [[], [], ["G2-realtime"]]


def test_real_time_orders_each_that_began_behind_several() -> None:
    writers = [timed(ran(n, add(f"k{n}", n)), 0, n) for n in (1, 2, 3)]
    final = {f"k{n}": (n,) for n in (1, 2, 3)}
    for missed in final:
        found = {key: values for key, values in final.items() if key != missed}
        reader = timed(ran(4, look("k", **found)), 10, 20)
        assert verdicts(*writers, reader, **final) == [["G-single-realtime"]] * 3


def test_what_had_ended_before_is_seen() -> None:
    writer, reader = ran(1, add("x", 1)), ran(2, see("x"))
    late = [["G-single-realtime"]] * 3
    assert verdicts(timed(writer, 0, 10), timed(reader, 11, 12), x=(1,)) == late
    assert verdicts(timed(writer, 0, 10), timed(reader, 10, 12), x=(1,)) == [[], [], []]
    assert verdicts(timed(writer, 0, None), timed(reader, 11, 12), x=(1,)) == [[], [], []]
    unknown = replace(writer, status="unknown")
    assert verdicts(timed(unknown, 0, 10), timed(reader, 11, 12), x=(1,)) == [[], [], []]


def test_what_had_ended_long_before_is_seen_and_told_in_one_step() -> None:
    between = [timed(ran(9 + n), 20 * n, 20 * n + 10) for n in range(1, 50)]
    writer, reader = timed(ran(1, add("x", 1)), 0, 10), timed(ran(2, see("x")), 2000, 2001)
    (found,) = check(History([reader, *between, writer], {"x": (1,)}), "snapshot")
    assert found.name == "G-single-realtime"
    assert sorted(found.transactions) == ["T1", "T2"]
    assert "T1 -realtime-> T2 because T1 had ended before T2 began" in found.explanation


def test_snapshots_do_not_go_back_in_time() -> None:
    writer = ran(1, add("x", 1))
    early, late = timed(ran(2, see("x", 1)), 0, 10), timed(ran(3, see("x")), 11, 20)
    assert verdicts(writer, early, late, x=(1,)) == [["G-single-realtime"]] * 3


def test_writes_against_real_time_are_found_by_that_order_alone() -> None:
    one, two = ran(1, add("x", 1)), ran(2, add("x", 2))
    records = timed(one, 20, 30), timed(two, 0, 10)
    assert verdicts(*records, x=(1, 2)) == [["G0-realtime"]] * 3


def test_an_allowed_cycle_hides_no_forbidden_one() -> None:
    one, two = timed(SKEW[0], 0, 10), timed(SKEW[1], 11, 20)
    found = verdicts(one, two, x=(1,), y=(2,))
    assert found[0] == ["G-single-realtime"]
    skewed = [*SKEW, ran(3, see("x", 1), see("y"), add("z", 3)), ran(4, see("z", 3), add("y", 4))]
    assert verdicts(*skewed, x=(1,), y=(4, 2), z=(3,))[0] == ["G-single"]


# -- lists ------------------------------------------------------------------------------------


def test_a_read_of_what_was_taken_back_is_g1a() -> None:
    aborted = ran(1, add("x", 1), status="aborted")
    found = check(History([aborted, ran(2, see("x", 1))], {"x": (1,)}), "snapshot")
    assert [(one.name, one.transactions[0]) for one in found] == [("G1a", "T1")]
    assert "G1a" in verdicts(aborted, ran(2, see("x", 1)), x=())[0]
    assert verdicts(aborted, x=(1,)) == [["G1a"]] * 3
    assert verdicts(aborted, ran(2, look("", x=(1,))), x=(1,)) == [["G1a"]] * 3


def test_a_read_between_two_appends_of_one_transaction_is_g1b() -> None:
    writer = ran(1, add("x", 1), add("x", 2))
    assert "G1b" in verdicts(writer, ran(2, see("x", 1)), x=(1, 2))[0]
    assert verdicts(writer, ran(2, see("x", 1, 2)), x=(1, 2)) == [[], [], []]
    twice = ran(1, add("x", 1), see("x", 1), add("x", 2), see("x", 1, 2))
    assert verdicts(twice, x=(1, 2)) == [[], [], []]


def test_an_acknowledged_append_that_is_gone_is_lost() -> None:
    one, two = ran(1, see("x"), add("x", 1)), ran(2, see("x"), add("x", 2))
    assert verdicts(one, two, x=(2,)) == [["lost append"]] * 3
    assert verdicts(one) == [["lost append"]] * 3


def test_an_append_that_was_read_and_is_gone_is_lost() -> None:
    for status in ("committed", "unknown"):
        writer = ran(1, add("x", 1), status=status)
        assert verdicts(writer, ran(2, see("x", 1)), x=()) == [["lost append"]] * 3


def test_a_value_that_is_there_twice_is_a_duplicate() -> None:
    assert verdicts(ran(1, add("x", 1)), x=(1, 1)) == [["duplicate append"]] * 3
    records = ran(1, add("x", 1)), ran(2, add("x", 2)), ran(3, see("x", 1, 1))
    found = verdicts(*records, x=(1, 2))[0]
    assert "duplicate append" in found
    assert "incompatible orders" in found


def test_a_value_that_nobody_appended_is_garbage() -> None:
    assert verdicts(x=(7,)) == [["garbage read"]] * 3
    assert verdicts(ran(1, see("x", 7))) == [["garbage read", "lost append"]] * 3


def test_lists_that_disagree_are_incompatible_orders() -> None:
    records = ran(1, add("x", 1)), ran(2, add("x", 2)), ran(3, see("x", 2))
    assert verdicts(*records, x=(1, 2)) == [["incompatible orders"]] * 3
    records = *records[:2], ran(3, see("x", 2, 1))
    (found,) = check(History(records, {"x": (1, 2)}), "snapshot")
    assert found.transactions == ("T3", "the final read")


@pytest.mark.parametrize(
    "operations",
    [
        (see("x"), see("x", 1)),
        (see("x", 1), see("x")),
        (see("x"), look("", x=(1,))),
        (see("x", 1), add("x", 2), see("x", 2)),
        (see("x", 1), add("x", 2), see("x", 1)),
        (add("x", 2), see("x", 1)),
        (add("x", 2), look("", x=(1,))),
        (add("x", 2), look("")),
        (see("x", 1, 2), add("x", 2)),
    ],
    ids=str,
)
def test_a_transaction_that_contradicts_itself_is_internal(
    operations: tuple[Operation, ...],
) -> None:
    final = (1, 2) if any(isinstance(one, Append) for one in operations) else (1,)
    for status in ("committed", "aborted"):
        last = final if status == "committed" else (1,)
        found = verdicts(ran(1, add("x", 1)), ran(2, *operations, status=status), x=last)
        assert "internal" in found[0]


def test_a_commit_of_unknown_outcome_is_whole_or_not_at_all() -> None:
    unknown = ran(1, add("x", 1), add("y", 1), status="unknown")
    assert verdicts(unknown, x=(1,), y=()) == [["torn commit"]] * 3
    assert verdicts(unknown, x=(1,), y=(1,)) == [[], [], []]
    assert verdicts(unknown, x=(), y=()) == [[], [], []]


def test_a_commit_of_unknown_outcome_counts_if_it_was_seen() -> None:
    unknown = replace(SKEW[0], status="unknown")
    assert verdicts(unknown, SKEW[1], x=(1,), y=(2,)) == [[], ["G2"], ["G2"]]
    assert verdicts(unknown, SKEW[1], y=(2,)) == [[], [], []]


def test_what_a_transaction_read_before_it_was_aborted_is_of_one_snapshot() -> None:
    writer = ran(1, add("x", 1), add("y", 1))
    reader = ran(2, see("x", 1), see("y"), add("z", 2), status="aborted")
    assert verdicts(writer, reader, x=(1,), y=(1,)) == G_SINGLE
    aborted = [replace(one, status="aborted") for one in SKEW]
    assert verdicts(*aborted) == [[], [], []]


def test_a_history_that_tells_nothing_is_refused() -> None:
    for records in (
        [ran(1), ran(1)],
        [ran(1, add("x", 1)), ran(2, add("x", 1))],
        [ran(1, Scan("p", {"x": (1,)}))],
    ):
        with pytest.raises(ValueError, match=r"T1|x"):
            check(History(records, {}), "snapshot")


def test_the_explanation_names_what_was_read_and_what_was_appended() -> None:
    records = ran(3, see("x"), add("y", 5)), ran(7, look("y"), add("x", 6))
    (found,) = check(History(records, {"x": (6,), "y": (5,)}), "serializable")
    assert sorted(found.transactions) == ["T3", "T7"]
    assert "T3 -rw-> T7 because T3 read x=() and T7 appended 6" in str(found)
    assert "T7 -rw-> T3 because T7 read y=() and T3 appended 5" in str(found)
    assert described([found]).startswith("1 anomalies\nG2: ")


# -- against every order of events ------------------------------------------------------------


def precedences(records: list[Record]) -> set[tuple[str, str]]:
    """Who ended before whom began."""
    found = set()
    for place, one in enumerate(records):
        if one.status == "unknown":
            continue
        for later, two in enumerate(records):
            if one.process == two.process and place < later:
                found.add((one.id, two.id))
            if one.ended is not None and two.began is not None and one.ended < two.began:
                found.add((one.id, two.id))
    return found


def starts_on(record: Record, state: dict[str, Values]) -> bool:
    """Whether the transaction can have seen this state."""
    local = dict(state)
    for one in record.operations:
        if isinstance(one, Append):
            local[one.key] = (*local.get(one.key, ()), one.value)
        elif isinstance(one, Read):
            if one.found != local.get(one.key, ()):
                return False
        elif one.found != {k: v for k, v in local.items() if k.startswith(one.prefix) and v}:
            return False
    return True


def commits_on(
    record: Record, seen: dict[str, Values], state: dict[str, Values], level: Level
) -> bool:
    """Whether nothing has changed that would be a conflict."""
    appends = list(record.appends())
    guarded = {one.key for one in appends if not one.blind}
    if level == "guarded" and appends:
        for one in record.operations:
            if isinstance(one, Read):
                guarded.add(one.key)
            elif isinstance(one, Scan):
                guarded |= {k for k, v in seen.items() if k.startswith(one.prefix) and v}
    return all(state.get(key, ()) == seen.get(key, ()) for key in guarded)


def is_possible(history: History, level: Level) -> bool:
    """Tries all orders of starts and commits, and both outcomes of what is unknown."""
    records = list(history.records)
    earlier = precedences(records)
    unknown = [one.id for one in records if one.status == "unknown"]

    def search(
        state: dict[str, Values], running: dict[str, dict[str, Values]], done: set[str]
    ) -> bool:
        if len(done) == len(records):
            keys = state.keys() | history.final.keys()
            return all(state.get(key, ()) == history.final.get(key, ()) for key in keys)
        for record in records:
            name = record.id
            if name in running:
                if level == "serializable" and name not in list(running)[-1:]:
                    continue
                if name in committed and not commits_on(record, running[name], state, level):
                    continue
                after = dict(state)
                for one in record.appends() if name in committed else ():
                    after[one.key] = (*after.get(one.key, ()), one.value)
                others = {key: value for key, value in running.items() if key != name}
                if search(after, others, done | {name}):
                    return True
            elif name not in done and not (level == "serializable" and running):
                ready = all(one in done for one, two in earlier if two == name)
                starts = ready and starts_on(record, state)
                if starts and search(state, {**running, name: state}, done):
                    return True
        return False

    for outcomes in itertools.product((False, True), repeat=len(unknown)):
        committed = {one.id for one in records if one.status == "committed"}
        committed |= {name for name, holds in zip(unknown, outcomes, strict=True) if holds}
        if search({}, {}, set()):
            return True
    return False


def some_operations(rng: random.Random, values: Iterator[int]) -> list[Operation]:
    """Reads are empty yet."""
    found: list[Operation] = []
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(["x", "y", "p1", "p2"])
        kind = rng.random()
        if kind < 0.5:
            found.append(Append(key, next(values), blind=rng.random() < 0.3))
        else:
            found.append(Read(key, ()) if kind < 0.8 else Scan("p", {}))
    return found


def with_reads(
    rng: random.Random, record: Record, final: dict[str, Values], snapshot: dict[str, Values]
) -> Record:
    """Each list as in the snapshot, or now and then another beginning of it."""
    local = {}
    for key in ("x", "y", "p1", "p2"):
        whole = final.get(key, ())
        local[key] = snapshot.get(key, ())
        if rng.random() < 0.15:
            local[key] = whole[: rng.randint(0, len(whole))]
    operations: list[Operation] = []
    for one in record.operations:
        if isinstance(one, Append):
            local[one.key] += (one.value,)
            operations.append(one)
        elif isinstance(one, Read):
            operations.append(Read(one.key, local[one.key]))
        else:
            operations.append(
                Scan("p", {k: v for k, v in local.items() if k.startswith("p") and v})
            )
    return replace(record, operations=tuple(operations))


STATUSES: list[Status] = [*["committed"] * 6, "aborted", "unknown"]  # type: ignore[list-item]


def some_history(rng: random.Random) -> History:
    """Small, and about as often possible as not."""
    values = itertools.count(1)
    records = []
    times = rng.random() < 0.5
    for number in range(rng.randint(2, 4)):
        status = rng.choice(STATUSES)
        began = rng.randint(0, 20)
        record = Record(
            f"T{number}",
            rng.randint(0, 3),
            status,
            tuple(some_operations(rng, values)),
            began if times else None,
            began + rng.randint(0, 10) if times and status != "unknown" else None,
        )
        records.append(record)
    final: dict[str, Values] = {}
    snapshots: list[dict[str, Values]] = [{}]
    for record in rng.sample(records, len(records)):
        if record.status == "committed" or (record.status == "unknown" and rng.random() < 0.5):
            for one in record.appends():
                final[one.key] = (*final.get(one.key, ()), one.value)
            snapshots.append(dict(final))
    for key in final:
        if rng.random() < 0.05:
            final[key] = tuple(rng.sample(final[key], len(final[key])))
    filled = [with_reads(rng, one, final, rng.choice(snapshots)) for one in records]
    return History(filled, final)


@pytest.mark.parametrize("level", LEVELS)
def test_the_checker_agrees_with_a_search_of_all_orders(level: Level) -> None:
    found = 0
    for seed in range(1500):
        history = some_history(random.Random(seed))
        anomalies = check(history, level)
        assert bool(anomalies) != is_possible(history, level), (
            f"seed {seed}: {history}\n{described(anomalies)}"
        )
        found += bool(anomalies)
    assert 300 < found < 1200


# -- large ------------------------------------------------------------------------------------


def large_history(level: Level, count: int, seed: int) -> History:
    """Transactions of a plain store with snapshots, up to eight at a time."""
    rng = random.Random(seed)
    values = itertools.count(1)
    store: dict[str, list[tuple[int, int]]] = {f"k{n:03}": [] for n in range(150)}
    running: dict[int, tuple[Record, int]] = {}
    records: list[Record] = []
    version = 0
    for clock in itertools.count():
        if len(records) == count and not running:
            break
        process = rng.randrange(8)
        if process not in running:
            if len(records) + len(running) < count:
                record = Record(f"T{clock}", process, "unknown", (), clock)
                running[process] = record, version
            continue
        record, seen = running.pop(process)
        operations: list[Operation] = []
        local = rng.sample(sorted(store), 4)
        stale = False
        for key in local:
            found = tuple(value for value, made in store[key] if made <= seen)
            operations.append(Read(key, found))
            changed = len(found) < len(store[key])
            writes = rng.random() < 0.3
            stale |= changed and (writes or level == "serializable")
            if writes:
                operations.append(Append(key, next(values)))
        appends = [one for one in operations if isinstance(one, Append)]
        status: Status = "aborted" if stale and appends else "committed"
        if status == "committed" and appends:
            version += 1
            for one in appends:
                store[one.key].append((one.value, version))
        done = replace(record, status=status, operations=tuple(operations), ended=clock)
        records.append(done)
    final = {key: tuple(value for value, _ in found) for key, found in store.items()}
    return History(records, final)


def test_five_thousand_transactions_of_a_plain_store_pass_at_its_level() -> None:
    assert check(large_history("serializable", 5000, 1), "serializable") == []
    skewed = large_history("snapshot", 5000, 1)
    assert check(skewed, "snapshot") == []
    assert {one.name.split("-")[0] for one in check(skewed, "serializable")} == {"G2"}


def test_one_anomaly_among_two_thousand_transactions_is_found() -> None:
    history = large_history("serializable", 2000, 2)
    records = list(history.records)
    place = next(n for n in range(1500, 2000) if not any(records[n].appends()))
    read, *others = records[place].operations
    assert isinstance(read, Read)
    stale = Read(read.key, read.found[:-4])
    records[place] = replace(records[place], operations=(stale, *others))
    (found,) = check(History(records, history.final), "snapshot")
    assert found.name.startswith("G-")
    assert records[place].id in found.transactions
