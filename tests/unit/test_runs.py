"""test_runs.py - statuses and their transitions, the bytes of a run's record, the index keys."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shm_engine import (
    CreateRunOptions,
    RetentionPolicy,
    RunId,
    RunMetadata,
    RunQuery,
    RunStats,
    RunStatus,
    errors,
    keys,
    runs,
    values,
)
from shm_engine.runs import RunRecord
from tests.harness.labels import label

ALLOWED = {
    ("Active", "Completed"),
    ("Active", "Failed"),
    ("Active", "Cancelled"),
    ("Active", "Paused"),
    ("Active", "Archived"),
    ("Paused", "Active"),
    ("Paused", "Cancelled"),
    ("Paused", "Archived"),
    ("Completed", "Archived"),
    ("Failed", "Archived"),
    ("Cancelled", "Archived"),
}
RUN = RunId.from_bytes(bytes(range(16)))
PARENT = RunId.from_bytes(b"p" * 16)
FULL = RunRecord(
    status=3,
    retention=RetentionPolicy.KeepLast(2),
    name="nightly",
    parent=PARENT.bytes,
    created_us=1_700_000_000_123_456,
    updated_us=1_700_000_000_223_456,
    completed_us=1_700_000_000_323_999,
    tags=("a", "ü"),
    error="timeout",
    metadata={"n": [1, None, b"\x00"]},
)


# -- statuses ---------------------------------------------------------------------------------


def test_the_statuses_are_the_documented_ones() -> None:
    assert [status.as_str() for status in RunStatus] == [
        "Active",
        "Completed",
        "Failed",
        "Cancelled",
        "Paused",
        "Archived",
    ]
    assert [status.name for status in RunStatus] == [
        status.as_str().upper() for status in RunStatus
    ]
    assert [status.number for status in RunStatus] == [1, 2, 3, 4, 5, 6]
    for status in RunStatus:
        assert str(status) == status.as_str() == keys.RUN_STATUS_NAMES[status.number]


@pytest.mark.parametrize(("start", "end"), list(itertools.product(RunStatus, RunStatus)), ids=str)
def test_exactly_the_documented_transitions_are_allowed(start: RunStatus, end: RunStatus) -> None:
    """Story 193: valid transitions succeed, invalid ones fail, no resurrection, Archived is
    terminal."""
    allowed = (start.as_str(), end.as_str()) in ALLOWED
    assert start.can_transition_to(end) == allowed
    assert start.can_transition_to(end.as_str()) == allowed


def test_only_archived_is_terminal_and_three_are_finished() -> None:
    assert [status for status in RunStatus if status.is_terminal()] == [RunStatus.ARCHIVED]
    assert [status for status in RunStatus if status.is_finished()] == [
        RunStatus.COMPLETED,
        RunStatus.FAILED,
        RunStatus.CANCELLED,
    ]
    for status in RunStatus:
        nothing_follows = not any(status.can_transition_to(other) for other in RunStatus)
        assert status.is_terminal() == nothing_follows


@pytest.mark.parametrize("status", RunStatus, ids=str)
def test_a_status_is_named_by_its_member_or_in_three_spellings(status: RunStatus) -> None:
    """Story 191: RunStatus variants serialize and deserialize."""
    name = status.as_str()
    for spelling in (status, name, name.lower(), name.upper()):
        assert RunStatus.of(spelling) is status
    assert pickle.loads(pickle.dumps(status)) is status
    assert copy.deepcopy(status) is status


@pytest.mark.parametrize("name", ["", "aCtive", "Deleted", "deleted", "Active ", "1", "ended" * 99])
def test_a_status_of_no_known_name_breaks_a_rule(name: str) -> None:
    with pytest.raises(errors.ConstraintViolation, match="Paused") as caught:
        RunStatus.of(name)
    assert caught.value.reason == "status_unknown"
    with pytest.raises(errors.ConstraintViolation):
        RunStatus.ACTIVE.can_transition_to(name)


@pytest.mark.parametrize("status", [None, 1, b"Active", ["Active"], {}], ids=label)
def test_a_status_that_is_neither_member_nor_str_is_a_wrong_type(status: Any) -> None:
    with pytest.raises(errors.WrongType, match="RunStatus or str"):
        RunStatus.of(status)


# -- what users are shown ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "shown",
    [
        RunMetadata("nightly", str(RUN)),
        runs.metadata_of(RUN, FULL),
        RunQuery(status="Active", tags=["a"], limit=3),
        RunStats(total_runs=3, failed_runs=3),
        CreateRunOptions(run_id=RUN, tags=["a"], metadata={"a": 1}),
    ],
    ids=lambda shown: type(shown).__name__,
)
def test_what_users_are_shown_is_frozen_and_pickles(shown: Any) -> None:
    """Story 191: RunMetadata serializes and deserializes."""
    assert pickle.loads(pickle.dumps(shown)) == shown
    name = dataclasses.fields(shown)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(shown, name, None)


def test_metadata_shows_milliseconds_and_strings() -> None:
    assert runs.metadata_of(RUN, FULL) == RunMetadata(
        name="nightly",
        run_id=str(RUN),
        parent_run=str(PARENT),
        status=RunStatus.FAILED,
        created_at=1_700_000_000_123,
        updated_at=1_700_000_000_223,
        completed_at=1_700_000_000_323,
        tags=["a", "ü"],
        metadata={"n": [1, None, b"\x00"]},
        error="timeout",
    )
    assert runs.metadata_of(RUN, RunRecord(status=1)) == RunMetadata(str(RUN), str(RUN))


# -- the record -------------------------------------------------------------------------------


def test_a_record_has_the_bytes_that_format_md_says() -> None:
    packed = runs.pack(FULL)
    assert packed[:16].hex() == "03020000000000000200000000000000"
    assert packed[16] == 0x98
    assert msgpack.unpackb(packed[16:]) == [
        "nightly",
        PARENT.bytes,
        FULL.created_us,
        FULL.updated_us,
        FULL.completed_us,
        ["a", "ü"],
        "timeout",
        {"n": [1, None, b"\x00"]},
    ]
    assert runs.pack(RunRecord(status=1, created_us=1, updated_us=2)).hex() == (
        "0100000000000000000000000000000098c0c00102c090c0c0"
    )
    assert keys.unpack_run(packed) == (3, RetentionPolicy.KeepLast(2))


def test_a_record_comes_back_from_its_bytes() -> None:
    assert runs.unpack(runs.pack(FULL)) == FULL


def test_a_record_of_16_bytes_is_read_with_defaults() -> None:
    for status in range(8):
        found = runs.unpack(keys.pack_run(status, RetentionPolicy.KeepAll))
        assert found == RunRecord(status, RetentionPolicy.KeepAll, has_details=False)
        assert not found.has_entries
        assert found.is_registered == (1 <= status <= 6)
        assert found.is_deleted == (status == 7)
    assert len(runs.pack(found)) == 16


def test_metadata_may_be_as_deep_and_as_large_as_any_value() -> None:
    deep: Any = None
    for _ in range(values.DEPTH_MAX):
        deep = [deep]
    record = RunRecord(status=1, metadata=deep)
    assert runs.unpack(runs.pack(record)) == record
    with pytest.raises(errors.ConstraintViolation, match="containers in each other"):
        runs.pack(RunRecord(status=1, metadata=[deep]))
    half = bytes(values.STRING_BYTES_MAX)
    fits = [half, half[200:]]
    assert len(runs.pack(RunRecord(status=1, metadata=fits))) < values.ENCODED_BYTES_MAX
    with pytest.raises(errors.ConstraintViolation, match="32 MiB") as caught:
        runs.pack(RunRecord(status=1, metadata=fits, error="e" * 200))
    assert caught.value.reason == "value_too_large"


DETAILS: list[Any] = ["n", None, 1, 2, None, ["a"], None, None]


def changed(place: int, value: Any) -> bytes:
    details = [value if number == place else known for number, known in enumerate(DETAILS)]
    packed: bytes = keys.pack_run(1, None) + msgpack.packb(details)
    return packed


@pytest.mark.parametrize(
    "record",
    [
        b"",
        runs.pack(FULL)[:15],
        runs.pack(FULL)[:17],
        runs.pack(FULL)[:-1],
        runs.pack(FULL) + b"\xc0",
        b"\x08" + bytes(15),
        b"\x01\x04" + bytes(14),
        keys.pack_run(1, None) + b"\xc0",
        keys.pack_run(1, None) + msgpack.packb(DETAILS[:7]),
        keys.pack_run(1, None) + msgpack.packb([*DETAILS, None]),
        changed(0, 5),
        changed(1, b"short"),
        changed(1, "p" * 16),
        changed(2, -1),
        changed(2, None),
        changed(3, 1.5),
        changed(3, 2**63),
        changed(4, "now"),
        changed(5, None),
        changed(5, [1]),
        changed(6, b"error"),
    ],
    ids=bytes.hex,
)
def test_a_record_with_damage_is_corruption(record: bytes) -> None:
    assert runs.unpack(keys.pack_run(1, None) + msgpack.packb(DETAILS)).tags == ("a",)
    with pytest.raises(errors.Corruption):
        runs.unpack(record)


@given(st.integers(16, len(runs.pack(FULL)) - 1), st.integers(1, 255))
def test_any_changed_byte_of_the_details_is_corruption_or_a_record(place: int, mask: int) -> None:
    packed = bytearray(runs.pack(FULL))
    packed[place] ^= mask
    try:
        found = runs.unpack(bytes(packed))
    except errors.Corruption:
        return
    if found.is_registered:
        runs.metadata_of(RUN, found)


# -- the index keys ---------------------------------------------------------------------------

tags = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8
)
run_ids = st.binary(min_size=16, max_size=16).map(RunId.from_bytes)
records = st.builds(
    RunRecord,
    status=st.integers(0, 7),
    parent=st.none() | st.binary(min_size=16, max_size=16),
    created_us=st.integers(0, 2**63 - 1),
    tags=st.lists(tags, unique=True, max_size=4).map(tuple),
    has_details=st.just(True),
)


def test_the_entries_of_a_run_are_those_of_format_md() -> None:
    end = FULL.created_us.to_bytes(8, "big") + RUN.bytes
    start = bytes(16) + b"\x05\x01"
    assert list(runs._entries(RUN, FULL)) == [
        start + b"t" + end,
        start + b"s\x03" + end,
        start + b"ga\x00" + end,
        start + b"g" + "ü".encode() + b"\x00" + end,
        start + b"p" + b"p" * 16 + end,
    ]
    assert runs.count_of(3) == b"\x01c\x03"


def test_what_is_not_registered_has_no_entry() -> None:
    for status in (keys.RUN_UNREGISTERED, keys.RUN_DELETED):
        assert not runs._entries(RUN, dataclasses.replace(FULL, status=status))
    assert not runs._entries(RUN, dataclasses.replace(FULL, has_details=False))
    assert not runs._entries(RUN, None)


@given(st.lists(st.tuples(run_ids, records), min_size=1, max_size=6))
def test_no_key_is_a_prefix_of_another_one(found: list[tuple[RunId, RunRecord]]) -> None:
    every = {key for run, record in found for key in runs._entries(run, record)}
    every |= {runs.INDEX_START + runs.count_of(status) for status in range(8)}
    every |= {runs.INDEX_START + keys.BOOKKEEPING + b"e" + run.bytes for run, _ in found}
    every |= {runs._record_key(run) for run, _ in found} | {runs._record_key(RunId.DEFAULT)}
    ordered = sorted(every)
    for key, following in itertools.pairwise(ordered):
        assert not following.startswith(key)


@given(tags, tags)
def test_the_entries_of_one_tag_are_not_among_those_of_another(one: str, other: str) -> None:
    assert (one == other) == runs.by_tag(other).startswith(runs.by_tag(one))


# -- tags -------------------------------------------------------------------------------------


def test_tags_come_back_once_each_in_their_order() -> None:
    for given_tags in (["b", "a", "b"], ("b", "a"), iter(["b", "a", "a"]), {"b": 1, "a": 2}):
        assert runs.checked_tags(given_tags) == ("b", "a")
    assert runs.checked_tags([]) == ()
    assert runs.checked_tags(["x" * 256, "ü" * 128, " ", "_strata/"])


@pytest.mark.parametrize("tag", ["", "x" * 257, "ü" * 129, "a\0b", "\0", "\ud800"], ids=ascii)
def test_a_tag_that_breaks_the_rule_is_an_invalid_key(tag: str) -> None:
    with pytest.raises(errors.InvalidKey, match="tag"):
        runs.checked_tags(["fine", tag])


@pytest.mark.parametrize("given_tags", ["tag", b"tag", 5, None, [5], [None], [b"a"], [["a"]]])
def test_tags_that_are_no_strings_are_a_wrong_type(given_tags: Any) -> None:
    with pytest.raises(errors.WrongType, match="tag"):
        runs.checked_tags(given_tags)
