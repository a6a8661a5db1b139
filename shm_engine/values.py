"""values.py - what may be stored: the eight types, their limits, their bytes.

Why:        a value has to come back exactly as it went in, in every process and every release. So
            eight plain types and nothing else; whatever would be changed on the way (a tuple to a
            list, a numpy scalar to an int, an enum to its number) is refused by name and place
            instead. The engine's hot path encodes in C and comes here only when something is
            wrong, to find out what and where.
Used by:    shm_engine._core on a bad value, the primitives, the facade; any thread
Invariants: V1 decode(encode(v)) is strictly equal to v, NaN aside (test_values)
            V2 check() passes exactly what encode() takes (test_values)
            V3 the size that check() counts is the length that encode() gives (test_values)
Errors:     WrongType, ConstraintViolation, SerializationError; each names the path, as `$.a[3]`
Cost:       check: O(distinct containers + their entries), whatever is shared between them
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from json import dumps
from typing import Any, TypeAlias

import msgpack

from shm_engine.errors import ConstraintViolation, Error, SerializationError, WrongType

__all__ = [
    "CONTAINER_ENTRIES_MAX",
    "DEPTH_MAX",
    "ENCODED_BYTES_MAX",
    "INT_MAX",
    "INT_MIN",
    "STRING_BYTES_MAX",
    "Value",
    "as_timedelta",
    "check",
    "class_name",
    "decode",
    "encode",
    "encoded_size",
    "explain",
    "printable",
    "strict_equal",
    "type_name",
]

Value: TypeAlias = Any
"""None, bool, int, float, str, bytes, list of values or dict of str to values."""

INT_MIN = -(2**63)
INT_MAX = 2**63 - 1
STRING_BYTES_MAX = 16 * 1024 * 1024
ENCODED_BYTES_MAX = 32 * 1024 * 1024
CONTAINER_ENTRIES_MAX = 1_000_000
DEPTH_MAX = 128

_ALLOWED = "None, bool, int, float, str, bytes, list or dict with str keys"
_NAMES: dict[type, str] = {
    type(None): "Null",
    bool: "Bool",
    int: "Int",
    float: "Float",
    str: "String",
    bytes: "Bytes",
    list: "Array",
    dict: "Object",
}
# A path is rendered in full up to this many steps, then its middle is left out.
_PATH_STEPS_MAX = 24
_KEY_CHARACTERS_MAX = 40


def type_name(value: object) -> str:
    """The name of a value's type: "Null", "Bool", "Int", "Float", "String", "Bytes", "Array",
    "Object"; for anything else the name of its Python class, as "tuple" or "numpy.int64".

    >>> type_name([1]), type_name(None), type_name((1,))
    ('Array', 'Null', 'tuple')
    """
    return _NAMES.get(type(value)) or class_name(value)


def class_name(value: object) -> str:
    """The name of a value's Python class, with its module: what messages on arguments say.

    >>> class_name("a"), class_name(timedelta(0))
    ('str', 'datetime.timedelta')
    """
    kind = type(value)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def strict_equal(a: Value, b: Value) -> bool:
    """Whether two values are equal as the engine compares them: of the same type, all through.

    Nothing is coerced, so 1, 1.0 and True all differ; NaN is unequal to itself; -0.0 equals 0.0;
    the order of a dict's entries does not matter.

    Raises:
        WrongType: both are of one type that is no value's, such as tuple.

    Cost: O(entries); the nesting may be of any depth.

    >>> strict_equal([1, {"a": b"x"}], [1, {"a": b"x"}])
    True
    >>> strict_equal(1, 1.0) or strict_equal(1, True) or strict_equal(float("nan"), float("nan"))
    False
    """
    pairs = [(a, b)]
    while pairs:
        left, right = pairs.pop()
        kind = type(left)
        if kind is not type(right):
            return False
        if kind is list:
            if len(left) != len(right):
                return False
            pairs.extend(zip(left, right, strict=True))
        elif kind is dict:
            if left.keys() != right.keys():
                return False
            pairs.extend((item, right[key]) for key, item in left.items())
        elif kind not in _NAMES:
            raise WrongType(_ALLOWED, class_name(left))
        elif left != right:
            return False
    return True


def encode(value: Value) -> bytes:
    """The bytes of a value, in MessagePack with the str and bytes families kept apart.

    Returns:
        At most ENCODED_BYTES_MAX bytes, which `decode` turns into an equal value.

    Raises:
        WrongType, ConstraintViolation, SerializationError: as `explain`.

    Thread-safe. Cost: O(entries), a check in Python before the encoding in C.

    >>> encode({"a": [1, None]}).hex()
    '81a1619201c0'
    """
    check(value)
    packed: bytes = _codec.packer.pack(value)
    return packed


def decode(data: bytes | bytearray | memoryview) -> Value:
    """The value that `encode` turned into these bytes; it owns its memory.

    Raises:
        SerializationError: the bytes are not one whole encoded value.

    >>> decode(encode({"a": [1, None]}))
    {'a': [1, None]}
    """
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True, ext_hook=_refuse_extension)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise SerializationError(
            f"{len(data)} bytes are not one encoded value ({error or type(error).__name__}); "
            "they were damaged, or written by something else"
        ) from error


def encoded_size(value: Value) -> int:
    """How many bytes `encode(value)` has, without encoding; checks the value as `explain` does.

    >>> encoded_size("abc")
    4
    """
    try:
        if type(value) is list or type(value) is dict:
            return _measure(value, 1, {})[0]
        return _scalar_size(value)
    except _Fault as fault:
        raise fault.error_at(_render(fault.steps)) from None


def check(value: Value) -> None:
    """Returns if the value may be stored, else raises what `explain` does.

    >>> check({"a": [1, 2.5, None, b"x"]})
    """
    encoded_size(value)


def explain(value: Value) -> None:
    """Finds out what is wrong with a value, and raises it with the path to the place.

    Never returns for a value that cannot be stored; returns None for one that can.

    Raises:
        WrongType: a tuple, set, bytearray, numpy scalar, subclass, non-str key or the like.
        ConstraintViolation: an int beyond 64 bits signed (`int_out_of_range`); more than
            16 MiB in a string or bytes, 32 MiB encoded, 1,000,000 entries in a container
            (`value_too_large`); more than 128 containers in each other (`nesting_too_deep`).
        SerializationError: text that has no UTF-8 form (a lone surrogate).

    A value that contains itself is too deep. Cost: as `check`.

    >>> explain({"users": [{"name": (1, 2)}]})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    shm_engine.errors.WrongType: tuple at $.users[0].name cannot be stored; convert it to None, ...
    """
    encoded_size(value)


def as_timedelta(duration: timedelta | float, name: str = "duration") -> timedelta:
    """A duration given as a timedelta or in seconds, as a timedelta of whole microseconds.

    Raises:
        WrongType: it is neither a timedelta nor an int or float (a bool is none).
        ConstraintViolation: NaN, infinite, or beyond what a timedelta holds.

    >>> as_timedelta(1.5)
    datetime.timedelta(seconds=1, microseconds=500000)
    """
    if isinstance(duration, timedelta):
        return duration
    if isinstance(duration, bool) or not isinstance(duration, int | float):
        actual = class_name(duration)
        raise WrongType(
            "timedelta or seconds",
            actual,
            f"{name} is a {actual}; give a timedelta, or seconds as an int or float",
        )
    try:
        return timedelta(seconds=duration)
    except (OverflowError, ValueError):
        raise ConstraintViolation(
            "duration_out_of_range",
            f"{name} is {printable(duration)} seconds; "
            f"give a finite duration of at most {timedelta.max.days:,} days",
        ) from None


def printable(number: object) -> str:
    """A number as a message shows it: the decimal form of a huge int is slow to make, and refused
    by Python beyond 4300 digits.

    >>> printable(-5), printable(10**5000)
    ('-5', 'an int of 16,610 bits')
    """
    if isinstance(number, int) and number.bit_length() > 128:
        return f"an int of {number.bit_length():,} bits"
    return repr(number)


# -- the walk ---------------------------------------------------------------------------------


class _Fault(Exception):
    """A fault on its way up, which collects the steps of its path, the innermost first."""

    def __init__(self, error_at: Callable[[str], Error]) -> None:
        super().__init__()
        self.error_at = error_at
        self.steps: list[str | int] = []


def _measure(
    container: list[Any] | dict[Any, Any], depth: int, known: dict[int, tuple[int, int]]
) -> tuple[int, int]:
    """The encoded size of a container that is the `depth`-th of those around it, and how many
    containers are nested in it, itself counted.

    `known` has the answers for the containers that are done, by id: what is shared is walked
    once, or a value of a few kilobytes could take hours.
    """
    if depth > DEPTH_MAX:
        raise _Fault(_too_deep)
    found = known.get(id(container))
    # A shared container that would end too deep here is walked again, to find the place.
    if found is not None and depth + found[1] - 1 <= DEPTH_MAX:
        return found
    entries = len(container)
    if entries > CONTAINER_ENTRIES_MAX:
        raise _Fault(_limit(f"{entries:,} entries", f"{CONTAINER_ENTRIES_MAX:,}"))
    size = 1 if entries < 16 else 3 if entries < 2**16 else 5
    height = 1
    step: str | int | None = None
    try:
        if type(container) is dict:
            for key in container:
                step = None
                size += _key_size(key)
                step = key
                item_size, item_height = _measure_item(container[key], depth, known)
                size += item_size
                height = max(height, item_height + 1)
        else:
            for step, item in enumerate(container):  # noqa: B007 - the step of a fault's path
                item_size, item_height = _measure_item(item, depth, known)
                size += item_size
                height = max(height, item_height + 1)
    except _Fault as fault:
        if step is not None:
            fault.steps.append(step)
        raise
    if size > ENCODED_BYTES_MAX:
        raise _Fault(_limit("more than 32 MiB encoded", "32 MiB"))
    known[id(container)] = size, height
    return size, height


def _measure_item(item: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """The encoded size of an entry, and how many containers are nested in it."""
    kind = type(item)
    if kind is list or kind is dict:
        return _measure(item, depth + 1, known)
    return _scalar_size(item), 0


def _scalar_size(value: Any) -> int:
    """The encoded size of a value that is no container."""
    kind = type(value)
    if kind is str:
        return _text_size(value)
    if kind is int:
        return _int_size(value)
    if kind is float:
        return 9
    if value is None or kind is bool:
        return 1
    if kind is bytes:
        size = len(value)
        _check_length(size, "bytes")
        return size + (2 if size < 2**8 else 3 if size < 2**16 else 5)
    raise _Fault(_foreign(value))


def _int_size(value: int) -> int:
    """The encoded size of an int."""
    if not INT_MIN <= value <= INT_MAX:
        raise _Fault(_int_out_of_range(value))
    if value >= 0:
        if value < 2**7:
            return 1
        return 2 if value < 2**8 else 3 if value < 2**16 else 5 if value < 2**32 else 9
    if value >= -(2**5):
        return 1
    return 2 if value >= -(2**7) else 3 if value >= -(2**15) else 5 if value >= -(2**31) else 9


def _text_size(text: str) -> int:
    """The encoded size of a str."""
    size = len(text)
    # Before encoding: every character takes at least a byte.
    _check_length(size, "str")
    if not text.isascii():
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise _Fault(_lone_surrogate(error.object[error.start], error.start)) from None
        _check_length(size, "str")
    return size + (1 if size < 32 else 2 if size < 2**8 else 3 if size < 2**16 else 5)


def _key_size(key: object) -> int:
    """The encoded size of a dict's key."""
    if type(key) is not str:
        raise _Fault(_foreign_key(key))
    try:
        return _text_size(key)
    except _Fault as fault:
        inner = fault.error_at
        raise _Fault(lambda path: inner(f"a key of {path}")) from None


def _check_length(size: int, kind: str) -> None:
    if size > STRING_BYTES_MAX:
        raise _Fault(_limit(f"{kind} of {size:,} bytes or more", "16 MiB"))


# -- what is said of a fault ------------------------------------------------------------------


def _foreign(value: object) -> Callable[[str], Error]:
    actual = class_name(value)
    base = next((base for base in type(value).__mro__[1:] if base in _NAMES), None)
    origin = f" (a subclass of {base.__name__})" if base else ""
    return lambda path: WrongType(
        _ALLOWED,
        actual,
        f"{actual}{origin} at {path} cannot be stored; convert it to {_ALLOWED}",
    )


def _foreign_key(key: object) -> Callable[[str], Error]:
    actual = class_name(key)
    plain = key is None or type(key) in (bool, int, float)
    shown = f" {printable(key)}" if plain else ""
    return lambda path: WrongType(
        "str",
        actual,
        f"key{shown} of the dict at {path} is a {actual}; keys must be str, exactly",
    )


def _limit(found: str, allowed: str) -> Callable[[str], Error]:
    return lambda path: ConstraintViolation(
        "value_too_large", f"{found} at {path}; at most {allowed} can be stored, split it"
    )


def _too_deep(path: str) -> Error:
    return ConstraintViolation(
        "nesting_too_deep",
        f"more than {DEPTH_MAX} containers in each other at {path}; "
        "flatten the value, and see that it does not contain itself",
    )


def _int_out_of_range(value: int) -> Callable[[str], Error]:
    shown = printable(value)
    return lambda path: ConstraintViolation(
        "int_out_of_range",
        f"{shown} at {path} does not fit a signed 64-bit integer; store it as str or bytes",
    )


def _lone_surrogate(character: str, index: int) -> Callable[[str], Error]:
    return lambda path: SerializationError(
        f"str at {path} has a lone surrogate U+{ord(character):04X} at index {index}, "
        "which UTF-8 cannot hold; store it as bytes"
    )


def _render(steps: list[str | int]) -> str:
    """The path of a fault, `$.users[3].name`, from its steps, the innermost first."""
    rendered = [
        f"[{step}]"
        if isinstance(step, int)
        else f".{step}"
        if step.isidentifier() and len(step) <= _KEY_CHARACTERS_MAX
        else f"[{dumps(_shorten(step))}]"
        for step in reversed(steps)
    ]
    if len(rendered) > _PATH_STEPS_MAX:
        half = _PATH_STEPS_MAX // 2
        omitted = len(rendered) - 2 * half
        rendered[half:-half] = [f"...({omitted} steps)..."]
    return "$" + "".join(rendered)


def _shorten(text: str) -> str:
    return text if len(text) <= _KEY_CHARACTERS_MAX else text[: _KEY_CHARACTERS_MAX - 3] + "..."


# -- the codec --------------------------------------------------------------------------------


class _Codec(threading.local):
    """A Packer for each thread: it is made once, and is no thread's but its own."""

    def __init__(self) -> None:
        self.packer = msgpack.Packer(strict_types=True, use_bin_type=True)


_codec = _Codec()


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} of {len(data)} bytes")
