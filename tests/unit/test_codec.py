"""test_codec.py - the engine's own encoder and decoder of plain values agree with msgpack.

What they take they must treat as the library does, byte for byte and value for value; what they do
not take is left to the library, so only speed would suffer.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shm_engine import values
from shm_engine._core import decode_plain, encode_plain
from tests.unit.test_values import FOREIGN, plain_values

NOT_TAKEN = object()
PACKER = msgpack.Packer(strict_types=True)
EDGES = sorted(
    {
        sign * (2**bits) + step
        for bits in (0, 4, 5, 7, 8, 15, 16, 31, 32, 62)
        for sign in (1, -1)
        for step in (-2, -1, 0, 1, 2)
    }
    | {values.INT_MIN, values.INT_MAX}
)
LENGTHS = [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 31, 32, 33, 255, 256, 257, 300]
# The first bytes of every form, and bytes that make small sizes of what follows them.
HEADS = st.sampled_from(
    bytes.fromhex("00 01 02 03 61 7f 80 81 82 90 91 92 a0 a1 a2 a3 ff") + bytes(range(0xC0, 0xE1))
)


def library(data: bytes) -> object:
    """What the library makes of the bytes, as text that tells all types apart; None: an error."""
    try:
        return repr(msgpack.unpackb(data))
    except (ValueError, OverflowError, TypeError):
        return None


def same_as_library(data: bytes) -> bool:
    """Whether decode_plain gives what the library gives, or nothing; True if it took the bytes."""
    found = decode_plain(data, NOT_TAKEN)
    if found is NOT_TAKEN:
        return False
    assert repr(found) == library(data), data.hex()
    return True


@given(plain_values)
def test_plain_values_have_the_library_s_bytes_and_come_back(value: Any) -> None:
    packed = PACKER.pack(value)
    found = encode_plain(value)
    assert found == packed or (found is None and len(packed) > 500)
    assert same_as_library(packed)
    assert values.strict_equal(decode_plain(packed), value)


@pytest.mark.parametrize("number", EDGES)
def test_every_width_of_int_is_the_library_s(number: int) -> None:
    assert encode_plain(number) == PACKER.pack(number)
    assert decode_plain(PACKER.pack(number)) == number


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1, 10**50])
def test_an_int_beyond_64_bits_is_not_plain(number: int) -> None:
    assert encode_plain(number) is None
    assert encode_plain([1, {"a": number}]) is None


@pytest.mark.parametrize("length", LENGTHS)
def test_every_width_of_text_bytes_and_container_is_the_library_s(length: int) -> None:
    for value in (
        "x" * length,
        "ä" * length,
        "\U0001f600" * length,
        b"\x80" * length,
        [None] * length,
        {f"{index:03}": index for index in range(length)},
        {"k" * length: 1, "ü" * length: 2},
    ):
        packed = PACKER.pack(value)
        assert encode_plain(value) == packed
        assert decode_plain(packed) == value


@pytest.mark.parametrize("number", [0.0, -0.0, 1.5, math.inf, -math.inf, 5e-324, math.pi])
def test_floats_keep_their_bits(number: float) -> None:
    packed = PACKER.pack(number)
    assert encode_plain(number) == packed
    assert struct.pack(">d", decode_plain(packed)) == packed[1:]


def test_nan_is_the_library_s() -> None:
    assert encode_plain(math.nan) == PACKER.pack(math.nan)
    assert math.isnan(decode_plain(PACKER.pack(math.nan)))


@pytest.mark.parametrize("value", [foreign for foreign, _ in FOREIGN])
def test_what_is_no_value_is_not_taken(value: Any) -> None:
    assert encode_plain(value) is None
    assert encode_plain([value]) is None
    assert encode_plain({"a": {"b": value}}) is None


@pytest.mark.parametrize("key", [1, None, b"a", True, 1.5, ("a",)])
def test_a_key_that_is_no_str_is_not_taken(key: Any) -> None:
    assert encode_plain({key: 1}) is None
    assert not same_as_library(b"\x81" + msgpack.packb(key) + b"\x01")


def test_a_lone_surrogate_is_not_taken() -> None:
    assert encode_plain("a\ud800") is None
    assert encode_plain({"a\ud800": 1}) is None


def test_deep_values_are_left_to_the_library() -> None:
    value: Any = []
    for _ in range(200):
        value = [value]
        found = encode_plain(value)
        assert found is None or found == PACKER.pack(value)
        same_as_library(PACKER.pack(value))
    looped: list[Any] = []
    looped.append(looped)
    assert encode_plain(looped) is None


def test_keys_of_maps_are_interned_like_the_library_s() -> None:
    for key in ("name", "k" * 40, "ü", ""):
        [mine] = decode_plain(PACKER.pack({key: 1}))
        [theirs] = msgpack.unpackb(PACKER.pack({key: 1}))
        assert mine is theirs


def test_many_keys_with_the_same_ends_stay_apart() -> None:
    for length in (1, 2, 3, 5, 9, 17, 31, 32, 33):
        for number in range(3000):
            key = f"{number:x}".center(length, "-")
            assert decode_plain(PACKER.pack({key: number})) == {key: number}


@given(plain_values, st.data())
@settings(max_examples=300)
def test_damage_is_refused_or_read_like_the_library(value: Any, data: st.DataObject) -> None:
    packed = bytearray(PACKER.pack(value))
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] = data.draw(st.one_of(HEADS, st.integers(0, 255)))
    end = data.draw(st.integers(0, len(packed)))
    same_as_library(bytes(packed))
    same_as_library(bytes(packed[:end]))
    same_as_library(bytes(packed) + b"\xc0")


@given(st.lists(HEADS, max_size=24).map(bytes))
@settings(max_examples=1000)
@example(b"\x82\xa1a\x01\xa1a\x02")  # a key twice: the later value, in the earlier place
@example(b"\xd9\x01a")
@example(b"\x81\xd9\x01a\xcf\xff\xff\xff\xff\xff\xff\xff\xff")
@example(b"\x81\xda\x00\x01a\x01")
@example(b"\xa2\xc3\x28")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xca\x3f\x80\x00\x00")
@example(b"\xd6\xff\x00\x00\x00\x00")
@example(b"\xc1")
@example(b"")
def test_any_bytes_are_refused_or_read_like_the_library(data: bytes) -> None:
    same_as_library(data)
