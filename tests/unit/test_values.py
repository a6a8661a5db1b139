"""test_values.py - which values may be stored, what is said of the others, and their bytes."""

from __future__ import annotations

import collections
import contextlib
import copy
import datetime
import decimal
import doctest
import enum
import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgpack
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shm_engine import values
from shm_engine.errors import ConstraintViolation, Error, SerializationError, WrongType

MIB = 1024 * 1024

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(values.INT_MIN, values.INT_MAX),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.text(min_size=200, max_size=300),
)
plain_values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=20), st.dictionaries(st.text(), inner, max_size=20)
    ),
    max_leaves=30,
)


class Colour(enum.IntEnum):
    RED = 1


class Name(str):
    __slots__ = ()


class Big(int):
    pass


Point = collections.namedtuple("Point", "x y")

# Every one of these has a form that msgpack would take, or might be taken for a plain value.
FOREIGN: list[tuple[Any, str]] = [
    ((1, 2), "tuple"),
    ((), "tuple"),
    (Point(1, 2), "Point"),
    ({1, 2}, "set"),
    (frozenset(), "frozenset"),
    (bytearray(b"x"), "bytearray"),
    (memoryview(b"x"), "memoryview"),
    (numpy.int64(1), "numpy.int64"),
    (numpy.float64(1.0), "numpy.float64"),
    (numpy.bool_(True), "numpy.bool"),
    (numpy.str_("x"), "numpy.str_"),
    (numpy.zeros(2), "numpy.ndarray"),
    (Colour.RED, "Colour"),
    (Name("x"), "Name"),
    (Big(1), "Big"),
    (collections.OrderedDict(a=1), "collections.OrderedDict"),
    (collections.defaultdict(int), "collections.defaultdict"),
    (collections.deque(), "collections.deque"),
    (range(3), "range"),
    (1j, "complex"),
    (decimal.Decimal(1), "decimal.Decimal"),
    (datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), "datetime.datetime"),
    (msgpack.Timestamp(1), "msgpack.ext.Timestamp"),
    (msgpack.ExtType(1, b"x"), "msgpack.ext.ExtType"),
    (object(), "object"),
    (int, "type"),
    (len, "builtin_function_or_method"),
    (..., "ellipsis"),
]
each_foreign = pytest.mark.parametrize(
    ("value", "name"), FOREIGN, ids=[f"{i}-{name}" for i, (_, name) in enumerate(FOREIGN)]
)
each_way_to_check = pytest.mark.parametrize(
    "refuse", [values.explain, values.check, values.encode, values.encoded_size]
)


def nested(depth: int, shape: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    """A scalar inside `depth` containers."""
    value: Any = 0
    for _ in range(depth):
        value = shape(value)
    return value


def error_of(value: Any) -> Error:
    with pytest.raises(Error) as caught:
        values.explain(value)
    return caught.value


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(values).failed == 0


# -- what is taken ----------------------------------------------------------------------------


@given(plain_values)
def test_a_value_comes_back_strictly_equal(value: Any) -> None:
    assert values.strict_equal(values.decode(values.encode(value)), value)


@given(plain_values)
def test_the_counted_size_is_the_length_of_the_bytes(value: Any) -> None:
    values.explain(value)
    assert values.encoded_size(value) == len(values.encode(value))


@pytest.mark.parametrize("bits", [4, 5, 7, 8, 15, 16, 31, 32, 63])
def test_ints_at_the_edges_of_each_width_come_back(bits: int) -> None:
    for number in (2**bits - 1, 2**bits, -(2**bits), -(2**bits) - 1):
        if values.INT_MIN <= number <= values.INT_MAX:
            assert values.decode(values.encode(number)) == number
            assert values.encoded_size(number) == len(values.encode(number))


@pytest.mark.parametrize("length", [15, 16, 31, 32, 255, 256, 65535, 65536])
def test_lengths_at_the_edges_of_each_width_come_back(length: int) -> None:
    samples: list[Any] = ["x" * length, b"x" * length, [0] * length]
    samples.append({str(i): None for i in range(length)})
    for value in samples:
        assert values.encoded_size(value) == len(values.encode(value))
        assert values.decode(values.encode(value)) == value


def test_floats_keep_every_bit() -> None:
    for number in (math.inf, -math.inf, 5e-324, 1.7976931348623157e308):
        assert values.decode(values.encode(number)) == number
    assert math.isnan(values.decode(values.encode(math.nan)))
    assert math.copysign(1, values.decode(values.encode(-0.0))) == -1


def test_values_at_their_limits_are_taken() -> None:
    values.explain("x" * (16 * MIB))
    values.explain("é" * (8 * MIB))
    values.explain(b"x" * (16 * MIB))
    values.explain({"x" * (16 * MIB): 0})
    values.explain([None] * 1_000_000)
    values.explain(dict.fromkeys(map(str, range(1_000_000))))
    values.explain([values.INT_MIN, values.INT_MAX])
    values.explain(nested(128))
    values.explain(nested(128, lambda inner: {"a": inner}))
    assert values.decode(values.encode(nested(128))) == nested(128)


def test_32_mib_encoded_are_taken_and_one_byte_more_is_not() -> None:
    # 1 for the list, 5 for each of the lengths.
    room = values.ENCODED_BYTES_MAX - 1 - 3 * 5
    fits = [b"x" * (10 * MIB), b"x" * (10 * MIB), b"x" * (room - 20 * MIB)]
    assert len(values.encode(fits)) == values.ENCODED_BYTES_MAX
    fits[2] += b"x"
    error = error_of(fits)
    assert isinstance(error, ConstraintViolation)
    assert error.reason == "value_too_large"
    assert "$" in str(error)
    assert "32 MiB" in str(error)


# -- what is refused --------------------------------------------------------------------------


@each_foreign
@each_way_to_check
def test_a_foreign_type_is_refused_by_name_and_place(
    value: Any, name: str, refuse: Callable[[Any], object]
) -> None:
    for holder, path in [
        (value, "$"),
        ([0, value], "$[1]"),
        ({"users": [0, 1, 2, {"name": value}]}, "$.users[3].name"),
    ]:
        with pytest.raises(WrongType) as caught:
            refuse(holder)
        assert caught.value.actual.endswith(name)
        assert f"at {path} " in str(caught.value)


@pytest.mark.parametrize(("value", "base"), [(Colour.RED, "int"), (Name("x"), "str")])
def test_a_subclass_is_told_from_its_plain_type(value: Any, base: str) -> None:
    assert f"a subclass of {base}" in str(error_of(value))


@pytest.mark.parametrize(
    "key", [1, 1.5, True, None, b"x", (1,), Name("x"), Colour.RED, 10**5000], ids=range(9)
)
@each_way_to_check
def test_a_key_that_is_no_str_is_refused_by_type_and_place(
    key: Any, refuse: Callable[[Any], object]
) -> None:
    with pytest.raises(WrongType) as caught:
        refuse({"a": [{key: 1}]})
    assert caught.value.expected == "str"
    assert caught.value.actual.endswith(type(key).__name__)
    assert "dict at $.a[0] " in str(caught.value)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64 - 1, 2**64, 10**5000], ids=range(5))
@each_way_to_check
def test_an_int_beyond_64_bits_is_refused(number: int, refuse: Callable[[Any], object]) -> None:
    with pytest.raises(ConstraintViolation, match=r"\$\.n\[0\] does not fit") as caught:
        refuse({"n": [number]})
    assert caught.value.reason == "int_out_of_range"


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\udc80" * 3])
@each_way_to_check
def test_text_without_a_utf8_form_is_refused(text: str, refuse: Callable[[Any], object]) -> None:
    with pytest.raises(SerializationError, match=r"at \$\[0\] has a lone surrogate U\+D"):
        refuse([text])
    with pytest.raises(SerializationError, match=r"at a key of \$ has a lone surrogate"):
        refuse({text: 1})
    # Its own message has to be printable.
    str(error_of({text: object()})).encode()


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: "x" * (16 * MIB + 1), "$"),
        (lambda: "é" * (8 * MIB) + "x", "$"),
        (lambda: b"x" * (16 * MIB + 1), "$"),
        (lambda: {"a": [b"x" * (16 * MIB + 1)]}, "$.a[0]"),
        (lambda: [{"x" * (16 * MIB + 1): 1}], "a key of $[0]"),
        (lambda: [[None] * 1_000_001], "$[0]"),
        (lambda: {"a": dict.fromkeys(map(str, range(1_000_001)))}, "$.a"),
        (lambda: ["x" * (16 * MIB)] * 2, "$"),
    ],
    ids=["str", "utf8", "bytes", "deep-bytes", "key", "list", "dict", "shared"],
)
def test_what_is_too_large_is_refused_with_its_place(make: Callable[[], Any], path: str) -> None:
    error = error_of(make())
    assert isinstance(error, ConstraintViolation)
    assert error.reason == "value_too_large"
    assert f" at {path};" in str(error)


@pytest.mark.parametrize("shape", [lambda v: [v], lambda v: {"a": v}], ids=["list", "dict"])
@pytest.mark.parametrize("depth", [129, 130, 1000, 100_000])
def test_nesting_beyond_128_is_refused(shape: Callable[[Any], Any], depth: int) -> None:
    error = error_of(nested(depth, shape))
    assert isinstance(error, ConstraintViolation)
    assert error.reason == "nesting_too_deep"
    assert len(str(error)) < 400


def test_a_value_that_contains_itself_is_refused() -> None:
    ring: list[Any] = []
    ring.append({"again": [ring]})
    table: dict[str, Any] = {}
    table["a"], table["b"] = table, table
    for value in (ring, table):
        error = error_of(value)
        assert isinstance(error, ConstraintViolation)
        assert "contain itself" in str(error)


def test_shared_containers_are_walked_once() -> None:
    """Forty lists, each twice in the next, are 2**40 entries; the walk must not take years."""
    value: Any = ["x"]
    for _ in range(40):
        value = [value, value]
    started = time.monotonic()
    assert "32 MiB" in str(error_of(value))
    assert time.monotonic() - started < 5


def test_a_shared_container_is_refused_where_it_ends_too_deep() -> None:
    shared = nested(100)
    values.explain([shared, nested(27, lambda inner: [inner])])
    deep: Any = shared
    for _ in range(27):
        deep = [deep]
    values.explain([shared, deep])  # 1 + 27 + 100
    error = error_of([shared, [deep]])
    assert isinstance(error, ConstraintViolation)
    assert error.reason == "nesting_too_deep"
    assert "at $[1][0][0]" in str(error)


@given(plain_values, st.data())
def test_a_fault_put_anywhere_is_found_there(value: Any, data: st.DataObject) -> None:
    fault = object()
    spoiled = [copy.deepcopy(value)]
    path, holder, step = "$", spoiled, 0
    while True:
        path += f"[{step}]" if isinstance(step, int) else f"[{step!r}]"
        inner = holder[step]
        if type(inner) not in (list, dict) or not inner or data.draw(st.booleans()):
            break
        steps = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        holder, step = inner, data.draw(st.sampled_from(steps))
    holder[step] = fault
    with pytest.raises(WrongType) as caught:
        values.encode(spoiled)
    assert caught.value.actual == "object"
    # The indexes of the path; how keys are written has a test of its own.
    assert "at $[0]" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "step"),
    [
        ("name", ".name"),
        ("größe", ".größe"),
        ("a b", '["a b"]'),
        ("", '[""]'),
        ('q"', '["q\\""]'),
        ("x.y", '["x.y"]'),
        ("3", '["3"]'),
        ("k" * 50, '["' + "k" * 37 + '..."]'),
    ],
)
def test_a_key_in_a_path_is_written_so_that_it_can_be_read(key: str, step: str) -> None:
    assert f"at ${step}[0] " in str(error_of({key: [()]}))


# -- decoding ---------------------------------------------------------------------------------


@given(plain_values, st.data())
def test_a_truncated_value_is_no_value(value: Any, data: st.DataObject) -> None:
    encoded = values.encode(value)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(SerializationError):
        values.decode(encoded[:cut])


@given(plain_values)
def test_bytes_after_a_value_are_refused(value: Any) -> None:
    with pytest.raises(SerializationError):
        values.decode(values.encode(value) + b"\xc0")


@given(st.binary(max_size=64))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(SerializationError):
        values.decode(data)


@pytest.mark.parametrize(
    "data", [b"\xc1", b"\xd4\x05x", b"\xa1\xff", b"\x81\x01\x01", b"\x91" * 5000, b""]
)
def test_damaged_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SerializationError):
        values.decode(data)


def test_any_buffer_can_be_decoded() -> None:
    encoded = values.encode({"a": [1]})
    for data in (encoded, bytearray(encoded), memoryview(encoded)):
        assert values.decode(data) == {"a": [1]}


# -- names, equality, durations ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "Null"),
        (True, "Bool"),
        (1, "Int"),
        (1.0, "Float"),
        ("", "String"),
        (b"", "Bytes"),
        ([], "Array"),
        ({}, "Object"),
        ((), "tuple"),
        (numpy.int64(1), "numpy.int64"),
    ],
)
def test_a_type_has_the_name_of_the_value_model(value: Any, name: str) -> None:
    assert values.type_name(value) == name


def test_no_two_types_are_equal() -> None:
    samples: list[Any] = [None, True, 1, 1.0, "1", b"1", [1], {"1": 1}, False, 0, 0.0, "", b"", []]
    for i, left in enumerate(samples):
        for j, right in enumerate(samples):
            assert values.strict_equal(left, right) == (i == j)
            assert values.strict_equal([left], [right]) == (i == j)
            assert values.strict_equal({"k": left}, {"k": right}) == (i == j)


@given(plain_values, plain_values)
def test_strict_equality_is_equality_of_bytes_apart_from_order_and_zero(a: Any, b: Any) -> None:
    assert values.strict_equal(a, copy.deepcopy(a))
    if values.encode(a) == values.encode(b):
        assert values.strict_equal(a, b)
    if values.strict_equal(a, b):
        assert a == b


def test_nan_is_unequal_to_itself_wherever_it_stands() -> None:
    for value in (math.nan, [math.nan], {"a": [1, math.nan]}):
        assert not values.strict_equal(value, value)


def test_zeros_are_equal_and_order_of_entries_does_not_count() -> None:
    assert values.strict_equal(-0.0, 0.0)
    assert values.strict_equal({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert not values.strict_equal({"a": 1}, {"a": 1, "b": 2})
    assert not values.strict_equal({"a": 1}, {"b": 1})
    assert not values.strict_equal([1, 2], [2, 1])


def test_equality_of_foreign_types_is_refused_and_no_value_equals_one() -> None:
    assert not values.strict_equal(1, numpy.int64(1))
    assert not values.strict_equal([1], (1,))
    with pytest.raises(WrongType):
        values.strict_equal((1,), (1,))


def test_equality_of_deep_values_needs_no_stack() -> None:
    assert values.strict_equal(nested(50_000), nested(50_000))


def test_durations_are_taken_as_timedelta_or_seconds() -> None:
    assert values.as_timedelta(timedelta(days=1)) == timedelta(days=1)
    assert values.as_timedelta(90) == timedelta(minutes=1, seconds=30)
    assert values.as_timedelta(-0.25) == -timedelta(milliseconds=250)


def test_durations_of_other_kinds_are_refused_by_name() -> None:
    others: list[Any] = [True, "1", None, [1]]
    for other in others:
        with pytest.raises(WrongType, match="ttl is a"):
            values.as_timedelta(other, "ttl")
    for number in (math.nan, math.inf, -math.inf, 1e300, 10**400, 10**5000):
        with pytest.raises(ConstraintViolation, match="ttl is"):
            values.as_timedelta(number, "ttl")
