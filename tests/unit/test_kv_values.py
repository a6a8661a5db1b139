"""test_kv_values.py - which values the store takes, at their limits, and whose they are after."""

from __future__ import annotations

import collections
import enum
import gc
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shm_engine import Database, KVStore, RunId, errors, values
from tests.harness.refusal import assert_usable, refused

RUN = RunId.DEFAULT
MIB = 1024 * 1024


class Colour(enum.IntEnum):
    RED = 1


class Name(str):
    __slots__ = ()


class Number(int):
    pass


class Row(dict[str, Any]):
    pass


Point = collections.namedtuple("Point", "x y")


def nested(depth: int, kind: type = list) -> Any:
    """A scalar inside `depth` containers."""
    value: Any = 0
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


# Each is refused with this error at this path.
BAD_VALUES: list[tuple[str, Any, type[errors.Error], str]] = [
    ("tuple", (1, 2), errors.WrongType, "tuple at $ "),
    ("empty tuple", (), errors.WrongType, "tuple at $ "),
    ("named tuple", {"p": Point(1, 2)}, errors.WrongType, "Point at $.p "),
    ("set", {"a": [1, {2}]}, errors.WrongType, "set at $.a[1] "),
    ("frozenset", [frozenset()], errors.WrongType, "frozenset at $[0] "),
    ("bytearray", {"a": {"b": bytearray(b"x")}}, errors.WrongType, "bytearray at $.a.b "),
    ("memoryview", [0, memoryview(b"x")], errors.WrongType, "memoryview at $[1] "),
    ("numpy int", {"n": numpy.int64(1)}, errors.WrongType, "numpy.int64 at $.n "),
    ("numpy float", [numpy.float64(1)], errors.WrongType, "numpy.float64"),
    ("numpy bool", [numpy.bool_(1)], errors.WrongType, "numpy.bool"),
    ("numpy array", numpy.zeros(2), errors.WrongType, "numpy.ndarray at $ "),
    ("enum", {"c": Colour.RED}, errors.WrongType, "Colour (a subclass of int) at $.c "),
    ("str subclass", Name("x"), errors.WrongType, "Name (a subclass of str) at $ "),
    ("int subclass", [Number(1)], errors.WrongType, "Number (a subclass of int) at $[0] "),
    ("dict subclass", Row(a=1), errors.WrongType, "Row (a subclass of dict) at $ "),
    ("ordered dict", collections.OrderedDict(), errors.WrongType, "OrderedDict"),
    ("complex", [1j], errors.WrongType, "complex at $[0] "),
    ("object", {"a b": object()}, errors.WrongType, 'object at $["a b"] '),
    ("class", int, errors.WrongType, "type at $ "),
    ("generator", (x for x in "a"), errors.WrongType, "generator at $ "),
    ("int key", {"a": {1: 2}}, errors.WrongType, "key 1 of the dict at $.a is a int"),
    ("None key", {None: 2}, errors.WrongType, "key None of the dict at $ is a NoneType"),
    ("bytes key", [{b"k": 2}], errors.WrongType, "key of the dict at $[0] is a bytes"),
    ("str subclass key", {Name("k"): 2}, errors.WrongType, "key of the dict at $ is a"),
    ("int beyond", 2**63, errors.ConstraintViolation, "9223372036854775808 at $ "),
    ("unsigned 64 bits", [2**64 - 1], errors.ConstraintViolation, "at $[0] does not fit"),
    ("int below", {"n": -(2**63) - 1}, errors.ConstraintViolation, "at $.n does not fit"),
    ("huge int", [10**5000], errors.ConstraintViolation, "an int of 16,610 bits at $[0]"),
    ("129 lists", nested(129), errors.ConstraintViolation, "more than 128 containers"),
    ("129 dicts", nested(129, dict), errors.ConstraintViolation, "more than 128 containers"),
    ("2000 lists", nested(2000), errors.ConstraintViolation, "more than 128 containers"),
    ("lone surrogate", ["a\ud800"], errors.SerializationError, "U+D800 at index 1"),
    ("surrogate in a key", {"\udfff": 1}, errors.SerializationError, "U+DFFF"),
    ("str of 16 MiB and 1", "x" * (16 * MIB + 1), errors.ConstraintViolation, "at most 16 MiB"),
    ("bytes of the same", [b"x" * (16 * MIB + 1)], errors.ConstraintViolation, "bytes of 16,777,"),
    ("two-byte text", "é" * (8 * MIB + 1), errors.ConstraintViolation, "at most 16 MiB"),
    ("long dict key", {"x" * (16 * MIB + 1): 1}, errors.ConstraintViolation, "a key of $"),
    ("a million and 1", [None] * 1_000_001, errors.ConstraintViolation, "1,000,001 entries at $"),
    ("32 MiB and 7", [b"x" * (16 * MIB)] * 2, errors.ConstraintViolation, "32 MiB"),
]
each_bad_value = pytest.mark.parametrize(
    ("value", "kind", "said"),
    [bad[1:] for bad in BAD_VALUES],
    ids=[bad[0].replace(" ", "-") for bad in BAD_VALUES],
)


@pytest.fixture
def kv() -> Iterator[KVStore]:
    with Database.ephemeral() as db:
        yield KVStore(db)


def writes(kv: KVStore, key: str, value: Any) -> dict[str, Callable[[], Any]]:
    db = kv.database
    return {
        "put": lambda: kv.put(RUN, key, value),
        "put_with_ttl": lambda: kv.put_with_ttl(RUN, key, value, 60),
        "cas_absent": lambda: kv.cas(RUN, key, None, value),
        "cas": lambda: kv.cas(RUN, key, 1, value),
        "mset": lambda: kv.mset(RUN, {"before": 1, key: value, "after": 2}),
        "mset_pairs": lambda: kv.mset(RUN, [("before", 1), (key, value)]),
        "kv_put": lambda: db.transaction(RUN, lambda txn: txn.kv_put(key, value)),
    }


# -- what is refused --------------------------------------------------------------------------


@each_bad_value
def test_a_bad_value_is_refused_by_name_and_path_in_every_write(
    value: Any, kind: type[errors.Error], said: str, kv: KVStore
) -> None:
    kv.put(RUN, "a", "old")
    for key in ("a", "new"):
        for write in writes(kv, key, value).values():
            with refused(kv.database, kind) as caught:
                write()
            assert said in caught.value.message
    assert kv.list_with_values(RUN) == [("a", "old")]


def test_a_value_that_contains_itself_is_too_deep(kv: KVStore) -> None:
    ring: list[Any] = []
    ring.append({"again": ring})
    with refused(kv.database, errors.ConstraintViolation, "contain itself"):
        kv.put(RUN, "a", ring)


def test_a_bad_put_leaves_the_transaction_as_it_was(kv: KVStore) -> None:
    with kv.database.begin(RUN) as txn:
        txn.kv_put("a", 1)
        for _, value, kind, _ in BAD_VALUES[:10]:
            with pytest.raises(kind):
                txn.kv_put("a", value)
            with pytest.raises(kind):
                txn.kv_put("b", value)
        assert txn.kv_list() == ["a"]
        assert txn.kv_get("a") == 1
    assert kv.list_with_values(RUN) == [("a", 1)]


# -- what is taken, to the last byte ----------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        2**63 - 1,
        -(2**63),
        nested(128),
        nested(128, dict),
        [nested(127), {"a": nested(126, dict)}],
        "x" * (16 * MIB),
        b"\0" * (16 * MIB),
        "é" * (8 * MIB),
        {"x" * (16 * MIB): 1},
        [None] * 1_000_000,
        [b"x" * (16 * MIB), b"x" * (16 * MIB - 5 - 5 - 1)],
        "",
        b"",
        [],
        {},
        {"": {"": []}},
        math.inf,
        -0.0,
        "\0\x7f\u0080\uffff\U0010ffff",
    ],
    ids=lambda value: f"{type(value).__name__}-{str(value)[:12] if value else 'empty'!r}"[:30],
)
def test_a_value_at_the_limit_is_taken_and_comes_back(value: Any, kv: KVStore) -> None:
    for write in list(writes(kv, "a", value).values()):
        write()
        assert values.strict_equal(kv.get(RUN, "a"), value)
    assert values.strict_equal(dict(kv.scan(RUN))["a"], value)
    with kv.database.snapshot() as snapshot:
        assert values.strict_equal(snapshot.get(RUN, "a"), value)
    assert values.strict_equal(kv.history(RUN, "a", limit=1)[0].value, value)


def test_the_largest_value_has_32_mib_and_not_a_byte_more(kv: KVStore) -> None:
    def sized(size: int) -> list[bytes]:
        return [b"x" * (16 * MIB), b"y" * (size - 16 * MIB - 5 - 5 - 1)]

    assert values.encoded_size(sized(32 * MIB)) == 32 * MIB
    kv.put(RUN, "a", sized(32 * MIB))
    assert kv.get(RUN, "a") == sized(32 * MIB)
    with refused(kv.database, errors.ConstraintViolation, "32 MiB"):
        kv.put(RUN, "a", sized(32 * MIB + 1))


def test_nan_is_kept_as_nan(kv: KVStore) -> None:
    kv.put(RUN, "a", [math.nan])
    assert math.isnan(kv.get(RUN, "a")[0])


plain_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.text(),
        st.binary(),
        st.text().map(lambda text: text + "x" * 9000),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=20), st.dictionaries(st.text(), inner, max_size=20)
    ),
    max_leaves=20,
)


@settings(max_examples=50)
@given(st.lists(plain_values, min_size=1, max_size=5))
def test_every_value_comes_back_strictly_equal_by_every_way(stored: list[Any]) -> None:
    with Database.ephemeral() as db:
        kv = KVStore(db)
        kv.mset(RUN, {str(i): value for i, value in enumerate(stored)})
        kv.put(RUN, "alone", stored[0])
        db.transaction(RUN, lambda txn: txn.kv_put("in a transaction", txn.kv_get("alone")))
        ways: list[list[Any]] = [
            kv.get_many(RUN, [str(i) for i in range(len(stored))]),
            [value for _, value in kv.scan(RUN, limit=len(stored))],
            [kv.get(RUN, str(i)) for i in range(len(stored))],
        ]
        for found in ways:
            assert values.strict_equal(found, stored)
        assert values.strict_equal(kv.get(RUN, "in a transaction"), stored[0])


# -- whose they are ---------------------------------------------------------------------------


def test_what_was_put_and_what_was_read_are_copies(kv: KVStore) -> None:
    value = {"list": [1, 2], "deep": {"a": [3]}}
    kv.put(RUN, "a", value)
    with kv.database.begin(RUN) as txn:
        txn.kv_put("b", value)
        value["list"].append("changed")  # type: ignore[attr-defined]
        read = txn.kv_get("b")
        read["deep"]["a"].append("changed")
        assert txn.kv_get("b") == {"list": [1, 2], "deep": {"a": [3]}}
    for key in ("a", "b"):
        first, second = kv.get(RUN, key), kv.get(RUN, key)
        assert first == second == {"list": [1, 2], "deep": {"a": [3]}}
        first["list"].append("changed")
        first.clear()
        assert kv.get(RUN, key) == second


@pytest.mark.parametrize("size", [10, 8192, 100_000])
def test_bytes_and_text_outlive_the_store(size: int) -> None:
    with Database.ephemeral() as db:
        kv = KVStore(db)
        kv.put(RUN, "a", [b"x" * size, "y" * size, {"z" * size: b"z" * size}])
        found = [kv.get(RUN, "a"), kv.scan(RUN)[0][1], kv.history(RUN, "a")[0].value]
    for value in found:
        assert value == [b"x" * size, "y" * size, {"z" * size: b"z" * size}]


# -- finalizers, which run in the middle of anything ------------------------------------------


class Finalizer:
    """Runs `action` whenever the collector comes by, from wherever it was called."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action
        self.runs = 0
        self.failures: list[BaseException] = []
        self.active = False

    def __enter__(self) -> Finalizer:
        self.thresholds = gc.get_threshold()
        self.active = True
        self.sow()
        gc.set_threshold(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.active = False
        gc.set_threshold(*self.thresholds)
        gc.collect()

    def sow(self) -> None:
        owner = self

        class Cycle:
            def __init__(self) -> None:
                self.myself = self

            def __del__(self) -> None:
                owner.reap()

        Cycle()

    def reap(self) -> None:
        if not self.active:
            return
        self.runs += 1
        try:
            self.action()
        except BaseException as failure:
            self.failures.append(failure)
        self.sow()


BIG = {f"key {i}": [i, {"n": i}] for i in range(700)}


def test_finalizers_may_use_the_store_while_a_value_is_packed_or_decoded(kv: KVStore) -> None:
    kv.put(RUN, "big", BIG)

    def use() -> None:
        kv.incr(RUN, "finalized")
        kv.put(RUN, "own", [{"own": [1]}])
        assert kv.get(RUN, "own") == [{"own": [1]}]
        with kv.database.snapshot() as snapshot:
            assert list(snapshot.scan_prefix(RUN, "own")) == [("own", [{"own": [1]}])]
        kv.database.transaction(RUN, lambda txn: txn.kv_put("other", txn.kv_list()))

    rounds = 3
    with Finalizer(use) as finalizer:
        for _ in range(rounds):
            assert kv.get(RUN, "big") == BIG
            kv.put(RUN, "copy", BIG)
            kv.mset(RUN, {"copy": BIG, "copy 2": BIG})
            assert kv.get_many(RUN, ["big", "copy"]) == [BIG, BIG]
            assert kv.get_versioned(RUN, "copy 2").value == BIG  # type: ignore[union-attr]
            assert dict(kv.scan(RUN))["copy 2"] == BIG
            assert kv.history(RUN, "copy", limit=1)[0].value == BIG
            kv.database.transaction(RUN, lambda txn: txn.kv_put("big", txn.kv_get("copy")))
    assert finalizer.failures == []
    assert finalizer.runs > 20 * rounds
    assert kv.get(RUN, "finalized") == finalizer.runs
    assert kv.list(RUN) == ["big", "copy", "copy 2", "finalized", "other", "own"]
    assert kv.get(RUN, "copy") == BIG


@pytest.mark.parametrize("read", ["get", "get_versioned", "get_many", "history", "scan", "get_at"])
def test_a_finalizer_may_close_the_handle_while_a_value_is_decoded(read: str) -> None:
    """The mapping was once taken from under the decoder: a crash of the interpreter."""
    with Database.ephemeral() as db:
        kv = KVStore(db)
        version = kv.mset(RUN, {"big": BIG})
        calls: dict[str, Callable[[], Any]] = {
            "get": lambda: kv.get(RUN, "big"),
            "get_versioned": lambda: kv.get_versioned(RUN, "big").value,  # type: ignore[union-attr]
            "get_many": lambda: kv.get_many(RUN, ["big"])[0],
            "history": lambda: kv.history(RUN, "big")[0].value,
            "scan": lambda: kv.scan(RUN)[0][1],
            "get_at": lambda: kv.get_at(RUN, "big", version).value,
        }
        calls[read]()
        with Finalizer(db.close) as finalizer:
            for _ in range(3):
                try:
                    assert calls[read]() == BIG
                except errors.Closed:
                    break
        assert finalizer.runs > 0
        assert finalizer.failures == []
        with pytest.raises(errors.Closed):
            kv.get(RUN, "big")


def test_another_thread_may_close_the_handle_while_a_value_is_decoded() -> None:
    for _ in range(3):
        with Database.ephemeral() as db:
            kv = KVStore(db)
            kv.put(RUN, "big", BIG)
            closer = threading.Thread(target=db.close)

            def close_elsewhere(closer: threading.Thread = closer) -> None:
                if closer.ident is None:
                    closer.start()
                    closer.join()

            with Finalizer(close_elsewhere):
                try:
                    assert kv.get(RUN, "big") == BIG
                    assert kv.get(RUN, "big") == BIG
                except errors.Closed:
                    pass
            with pytest.raises(errors.Closed):
                kv.get(RUN, "big")


def test_snapshots_and_transactions_in_garbage_cycles_are_let_go(kv: KVStore) -> None:
    """The collector once took a snapshot's store away before the snapshot: a crash."""

    class Owner:
        pass

    for _ in range(50):
        snapshot = kv.database.snapshot()
        txn = kv.database.begin(RUN)
        early, late = Owner(), Owner()
        early.__dict__.update(me=early, snapshot=snapshot, txn=txn)
        late.__dict__.update(me=late, snapshot=kv.database.snapshot(), early=early)
        scan = kv.database.snapshot().scan_prefix(RUN)
        late.__dict__.update(scan=scan)
        del snapshot, txn, early, late, scan
    gc.collect()
    assert kv.database.metrics().snapshots == 0
    assert_usable(kv.database)


def test_a_whole_database_in_a_garbage_cycle_is_let_go() -> None:
    class Owner:
        pass

    for _ in range(5):
        owner = Owner()
        db = Database.ephemeral()
        owner.__dict__.update(me=owner, db=db, kv=KVStore(db), snapshot=db.snapshot())
        owner.__dict__.update(txn=db.begin(RUN), scan=db.snapshot().scan_prefix(RUN))
        del owner, db
        gc.collect()
