"""test_keys.py - which names a key may have, in what order keys come, and what names a run."""

from __future__ import annotations

import copy
import pickle
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shm_engine import Database, KVStore, RetentionPolicy, RunId, Snapshot, errors, keys
from tests.harness.labels import label
from tests.harness.refusal import refused

RUN = RunId.DEFAULT


class Name(str):
    __slots__ = ()


def in_snapshot(db: Database, read: Callable[[Snapshot], Any]) -> Any:
    with db.snapshot() as snapshot:
        return read(snapshot)


# Everything that may be asked for by a key, in every layer.
CALLS: dict[str, Callable[[Database, Any], Any]] = {
    "get": lambda db, key: KVStore(db).get(RUN, key),
    "get_versioned": lambda db, key: KVStore(db).get_versioned(RUN, key),
    "exists": lambda db, key: KVStore(db).exists(RUN, key),
    "ttl": lambda db, key: KVStore(db).ttl(RUN, key),
    "put": lambda db, key: KVStore(db).put(RUN, key, 1),
    "put_with_ttl": lambda db, key: KVStore(db).put_with_ttl(RUN, key, 1, 60),
    "delete": lambda db, key: KVStore(db).delete(RUN, key),
    "incr": lambda db, key: KVStore(db).incr(RUN, key),
    "cas_absent": lambda db, key: KVStore(db).cas(RUN, key, None, 1),
    "cas_zero": lambda db, key: KVStore(db).cas(RUN, key, 0, 1),
    "cas_version": lambda db, key: KVStore(db).cas(RUN, key, 7, 1),
    "get_many": lambda db, key: KVStore(db).get_many(RUN, ["good", key]),
    "get_many_map": lambda db, key: KVStore(db).get_many_map(RUN, ["good", key]),
    "mset_pairs": lambda db, key: KVStore(db).mset(RUN, [("good", 1), (key, 1)]),
    "mset_lists": lambda db, key: KVStore(db).mset(RUN, [["good", 1], [key, 1]]),  # type: ignore[list-item]
    "mdelete": lambda db, key: KVStore(db).mdelete(RUN, ["good", key]),
    "get_at": lambda db, key: KVStore(db).get_at(RUN, key, 1),
    "history": lambda db, key: KVStore(db).history(RUN, key),
    "scan_after": lambda db, key: KVStore(db).scan(RUN, after=key),
    "snapshot_get": lambda db, key: in_snapshot(db, lambda it: it.get(RUN, key)),
    "snapshot_exists": lambda db, key: in_snapshot(db, lambda it: it.exists(RUN, key)),
    "snapshot_versioned": lambda db, key: in_snapshot(db, lambda it: it.get_versioned(RUN, key)),
    "kv_get": lambda db, key: db.transaction(RUN, lambda txn: txn.kv_get(key)),
    "kv_exists": lambda db, key: db.transaction(RUN, lambda txn: txn.kv_exists(key)),
    "kv_put": lambda db, key: db.transaction(RUN, lambda txn: txn.kv_put(key, 1)),
    "kv_delete": lambda db, key: db.transaction(RUN, lambda txn: txn.kv_delete(key)),
    "kv_incr": lambda db, key: db.transaction(RUN, lambda txn: txn.kv_incr(key)),
}
PREFIX_CALLS: dict[str, Callable[[Database, Any], Any]] = {
    "list": lambda db, prefix: KVStore(db).list(RUN, prefix),
    "list_with_values": lambda db, prefix: KVStore(db).list_with_values(RUN, prefix),
    "scan": lambda db, prefix: KVStore(db).scan(RUN, prefix),
    "snapshot_scan": lambda db, prefix: in_snapshot(
        db, lambda it: list(it.scan_prefix(RUN, prefix))
    ),
    "kv_list": lambda db, prefix: db.transaction(RUN, lambda txn: txn.kv_list(prefix)),
    "scan_prefix": lambda db, prefix: db.transaction(RUN, lambda txn: txn.scan_prefix(prefix)),
}
BAD_NAMES = [
    ("", "empty"),
    ("k" * 1025, "has 1025 UTF-8 bytes; at most 1024"),
    ("é" * 512 + "x", "has 1025 UTF-8 bytes; at most 1024"),
    ("€" * 342, "has 1026 UTF-8 bytes; at most 1024"),
    ("🐚" * 257, "has 1028 UTF-8 bytes; at most 1024"),
    ("k" * 1_000_000, "has 1000000 UTF-8 bytes; at most 1024"),
    ("\0", "NUL"),
    ("a\0b", "NUL"),
    ("a\0", "NUL"),
    ("_strata/", "reserved"),
    ("_strata/secret", "reserved"),
    ("\ud800", "surrogate"),
    ("a\udfffb", "surrogate"),
]
NO_STRINGS: list[tuple[Any, str]] = [
    (b"a", "bytes"),
    (bytearray(b"a"), "bytearray"),
    (1, "int"),
    (None, "NoneType"),
    (True, "bool"),
    (1.5, "float"),
    (("a",), "tuple"),
    (["a"], "list"),
    ({"a": 1}, "dict"),
    ({"a"}, "set"),
    (Name("a"), "Name"),
    (object(), "object"),
]
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
each_prefix_call = pytest.mark.parametrize("call", PREFIX_CALLS.values(), ids=PREFIX_CALLS)


@pytest.fixture(scope="module")
def db() -> Iterator[Database]:
    with Database.ephemeral() as database:
        KVStore(database).mset(RUN, {"good": 1, "other": [1, 2]})
        yield database


@pytest.fixture
def fresh() -> Iterator[KVStore]:
    with Database.ephemeral() as database:
        yield KVStore(database)


# -- what is refused --------------------------------------------------------------------------


@each_call
def test_a_bad_name_is_invalid_in_every_call_reading_included(
    call: Callable[[Database, Any], Any], db: Database
) -> None:
    for name, said in BAD_NAMES:
        with refused(db, errors.InvalidKey, said):
            call(db, name)


@each_call
def test_a_key_that_is_no_str_is_a_wrong_type_in_every_call(
    call: Callable[[Database, Any], Any], db: Database
) -> None:
    for name, said in NO_STRINGS:
        if name is None and call is CALLS["scan_after"]:
            continue  # None: from the beginning
        with refused(db, errors.WrongType, said) as caught:
            call(db, name)
        assert isinstance(caught.value, errors.WrongType)
        assert caught.value.expected == "str"
        assert caught.value.actual.endswith(said)


@each_prefix_call
def test_a_prefix_that_no_key_can_have_is_invalid(
    call: Callable[[Database, Any], Any], db: Database
) -> None:
    for name, said in BAD_NAMES:
        if name:  # the empty prefix is that of all keys
            with refused(db, errors.InvalidKey, said):
                call(db, name)


@each_prefix_call
def test_a_prefix_that_is_no_str_is_a_wrong_type(
    call: Callable[[Database, Any], Any], db: Database
) -> None:
    for name, said in NO_STRINGS:
        if name is not None:  # None: all keys, where there is a default
            with refused(db, errors.WrongType, said):
                call(db, name)


def test_a_long_key_is_quoted_in_part(db: Database) -> None:
    with refused(db, errors.InvalidKey) as caught:
        KVStore(db).get(RUN, "k" * 5000)
    assert "k" * 40 + "..." in caught.value.message
    assert len(caught.value.message) < 150


def test_own_writes_do_not_hide_that_the_key_is_no_str(db: Database) -> None:
    """A str subclass is equal to the str that was written, and was once taken for it."""
    txn = db.begin(RUN)
    txn.kv_put("a", 1)
    for read in (txn.kv_get, txn.kv_exists, txn.kv_delete):
        with pytest.raises(errors.WrongType, match="Name"):
            read(Name("a"))
    assert txn.kv_get("a") == 1
    txn.rollback()


def test_a_refused_prefix_does_not_spoil_the_transaction(fresh: KVStore) -> None:
    txn = fresh.database.begin(RUN, isolation="serializable")
    for prefix in ("a\0", 5, ["a"]):
        with pytest.raises((errors.InvalidKey, errors.WrongType)):
            txn.scan_prefix(prefix)  # type: ignore[arg-type]
    txn.kv_put("a", 1)
    assert txn.kv_list() == ["a"]
    txn.commit()
    assert fresh.get(RUN, "a") == 1


# -- what is taken ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "k",
        "k" * 1024,
        "é" * 512,
        "€" * 341 + "x",
        "🐚" * 256,
        " ",
        "\t\n",
        "\x01",
        "\x7f",
        "\u0080",
        "\uffff",
        "\U0010ffff",
        "_strata",
        "_strat",
        "_Strata/x",
        "x_strata/",
        "a/b:c.d",
        "ключ",
        "e\u0301",
        "\u00e9",
    ],
    ids=ascii,
)
def test_any_other_name_is_a_key_and_comes_back_as_it_was(name: str, fresh: KVStore) -> None:
    fresh.put(RUN, name, "value")
    assert fresh.get(RUN, name) == "value"
    assert fresh.list(RUN) == fresh.list(RUN, name) == [name]
    assert fresh.database.transaction(RUN, lambda txn: list(txn.scan_prefix(name))) == [
        (name, "value")
    ]
    assert fresh.delete(RUN, name)
    assert fresh.list(RUN) == []


def test_keys_that_look_alike_are_different_keys(fresh: KVStore) -> None:
    names = ["e\u0301", "\u00e9", "K", "\u212a", "k", "a", "a\x01", "a\x01\x01", "a "]
    fresh.mset(RUN, {name: index for index, name in enumerate(names)})
    assert fresh.get_many(RUN, names) == list(range(len(names)))


def test_a_key_of_1024_bytes_may_be_scanned_past(fresh: KVStore) -> None:
    first, last = "k" * 1024, "k" * 1023 + "l"
    fresh.mset(RUN, {first: 1, last: 2})
    assert fresh.scan(RUN, after=first) == [(last, 2)]
    assert fresh.scan(RUN, after=last) == []
    assert fresh.scan(RUN, "k" * 1024) == [(first, 1)]


names = st.text(
    st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=30
).filter(lambda name: not name.startswith("_strata/"))


@given(st.dictionaries(names, st.integers(-5, 5), max_size=30), names)
def test_keys_come_in_the_order_of_their_bytes_and_prefixes_find_theirs(
    content: dict[str, int], prefix: str
) -> None:
    with Database.ephemeral() as db:
        kv = KVStore(db)
        kv.mset(RUN, content)
        ordered = sorted(content, key=lambda name: name.encode())
        assert kv.list(RUN) == ordered
        for start in {prefix, prefix[:1], *(name[: len(name) // 2 + 1] for name in content)}:
            expected = [name for name in ordered if name.startswith(start)]
            assert kv.list(RUN, start) == expected
            assert kv.list_with_values(RUN, start) == [(name, content[name]) for name in expected]
            after = [name for name in expected if name.encode() > prefix.encode()]
            assert [name for name, _ in kv.scan(RUN, start, after=prefix)] == after


# -- runs keep apart --------------------------------------------------------------------------


def test_runs_do_not_see_each_others_keys(fresh: KVStore) -> None:
    runs = [RunId.from_bytes(bytes(15) + bytes([number])) for number in range(1, 4)]
    for number, run in enumerate(runs):
        fresh.mset(run, {"same": number, f"own{number}": number})
    for number, run in enumerate(runs):
        assert fresh.list_with_values(run) == [(f"own{number}", number), ("same", number)]
        assert fresh.delete(run, "same")
    assert fresh.list(RUN) == []


def test_neither_a_runs_record_nor_its_retention_is_seen_among_its_keys(fresh: KVStore) -> None:
    run = fresh.database.begin_run()
    fresh.database.set_retention(run, RetentionPolicy.KeepLast(2))
    assert fresh.list(run) == []
    with fresh.database.snapshot() as snapshot:
        assert list(snapshot.scan_prefix(run)) == []
    assert fresh.database.transaction(run, lambda txn: txn.kv_list()) == []


@pytest.mark.parametrize("status", [keys.RUN_UNREGISTERED, keys.RUN_ACTIVE, 2])
@pytest.mark.parametrize(
    "policy",
    [
        None,
        RetentionPolicy.KeepAll,
        RetentionPolicy.KeepLast(1),
        RetentionPolicy.KeepLast(2**63 - 1),
        RetentionPolicy.KeepFor(0.000001),
    ],
    ids=label,
)
def test_a_runs_record_keeps_status_and_retention(
    status: int, policy: RetentionPolicy | None
) -> None:
    packed = keys.pack_run(status, policy)
    assert len(packed) == 16
    assert keys.unpack_run(packed) == (status, policy)


# -- what names a run -------------------------------------------------------------------------


def test_a_run_may_be_named_by_its_string_wherever_a_run_is_asked_for(fresh: KVStore) -> None:
    db = fresh.database
    run = db.begin_run()
    fresh.put(str(run), "a", 1)
    assert fresh.get(run, "a") == fresh.get(str(run), "a") == fresh.get(str(run).upper(), "a") == 1
    assert db.transaction(str(run), lambda txn: txn.kv_get("a")) == 1
    with db.begin(str(run)) as txn, db.snapshot() as snapshot:
        assert txn.run == run
        assert snapshot.get(str(run), "a") == 1
    db.set_retention(str(run), RetentionPolicy.KeepLast(1))
    assert db.retention(str(run)) == RetentionPolicy.KeepLast(1)
    db.end_run(str(run))


def test_default_names_the_nil_uuid() -> None:
    assert RunId.DEFAULT == RunId("default") == RunId(str(uuid.UUID(int=0)))
    assert str(RunId.DEFAULT) == "default"
    assert repr(RunId.DEFAULT) == "RunId('default')"
    assert RunId.DEFAULT.bytes == bytes(16)


def test_run_ids_hash_compare_sort_copy_and_pickle() -> None:
    low, high = RunId.from_bytes(b"\1" * 16), RunId.from_bytes(b"\2" * 16)
    assert low == RunId(low) == RunId(str(low)) == RunId.from_bytes(low.bytes)
    assert len({low, RunId(str(low)), high}) == 2
    assert low != high
    assert low != str(low)
    assert low < high <= high
    assert high > low >= low
    assert sorted([high, low]) == [low, high]
    assert pickle.loads(pickle.dumps(low)) == copy.deepcopy(low) == low
    assert len({RunId.new() for _ in range(1000)}) == 1000
    assert uuid.UUID(str(RunId.new())).version == 4


@pytest.mark.parametrize(
    "name", ["", "Default", "nope", "a" * 32 + "b", "\ud800", "a\0"], ids=ascii
)
def test_a_str_that_names_no_run_is_invalid(name: str, db: Database) -> None:
    kv = KVStore(db)
    calls: list[Callable[[], Any]] = [
        lambda: RunId(name),
        lambda: kv.get(name, "a"),
        lambda: kv.put(name, "a", 1),
        lambda: kv.list(name),
        lambda: kv.mset(name, {"a": 1}),
        lambda: db.begin(name),
        lambda: db.begin_run(name),
        lambda: db.end_run(name),
        lambda: db.retention(name),
        lambda: in_snapshot(db, lambda it: it.get(name, "a")),
        lambda: in_snapshot(db, lambda it: list(it.scan_prefix(name))),
    ]
    for call in calls:
        with refused(db, errors.InvalidKey, "begin_run"):
            call()


@pytest.mark.parametrize(
    "name", [5, None, b"default", uuid.UUID(int=7), ["default"], {}], ids=label
)
def test_a_run_that_is_neither_a_run_id_nor_a_str_is_a_wrong_type(name: Any, db: Database) -> None:
    kv = KVStore(db)
    calls: list[Callable[[], Any]] = [
        lambda: RunId(name),
        lambda: kv.get(name, "a"),
        lambda: kv.put(name, "a", 1),
        lambda: kv.incr(name, "a"),
        lambda: kv.list(name),
        lambda: kv.mset(name, {"a": 1}),
        lambda: kv.mdelete(name, []),
        lambda: kv.transaction(name, lambda txn: None),
        lambda: db.begin(name),
        lambda: db.end_run(name),
        lambda: db.set_retention(name, RetentionPolicy.KeepAll),
        lambda: in_snapshot(db, lambda it: it.get(name, "a")),
    ]
    for call in calls:
        with refused(db, errors.WrongType, "RunId"):
            call()


def test_a_run_id_has_16_bytes() -> None:
    for size in (0, 15, 17):
        with pytest.raises(errors.InvalidKey, match=f"16 bytes, not {size}"):
            RunId.from_bytes(bytes(size))
    with pytest.raises(errors.WrongType, match="bytes"):
        RunId.from_bytes("0123456789abcdef")  # type: ignore[arg-type]
