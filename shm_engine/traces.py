"""traces.py - the trace: what an agent did or thought, its six kinds, and the tree of them.

Why:        a trace answers later what an agent saw, chose and why, so it has a form that programs
            can ask for: a kind with named fields, tags, and the trace that it belongs to.
Used by:    primitives/trace_store.py, trace_layout.py, and users; instances are immutable but for
            the values that they hold, and for TraceTree
Invariants: T1 whatever a kind takes can be stored, but for the limits of the whole (test_traces)
            T2 nothing here recurses along a tree: its depth has no limit (test_traces)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, NamedTuple

from shm_engine import errors, values
from shm_engine._core import encode_plain

__all__ = [
    "FILLERS",
    "KINDS",
    "KIND_NAMES",
    "NAME_BYTES_MAX",
    "Custom",
    "Decision",
    "ErrorTrace",
    "Query",
    "Thought",
    "ToolCall",
    "Trace",
    "TraceOptions",
    "TraceTree",
    "TraceType",
    "check_value",
    "short_name",
]

NAME_BYTES_MAX: Final = 256


class TraceType:
    """What was traced: ToolCall, Decision, Query, Thought, ErrorTrace or Custom.

    The six are subclasses, frozen, compared field by field, and can be reached from here too, the
    fifth as `TraceType.Error`. Text is a str, a count an int from 0 to 2**63 - 1, and ``Any`` a
    value of the engine (None, bool, int, float, str, bytes, list, dict with str keys), nested up
    to 126 deep; nothing is converted, so True is no count. Anything else is WrongType,
    ConstraintViolation or SerializationError, naming the field. What the values hold is looked at
    when the trace is recorded, too: they may have changed since.

    >>> TraceType.Thought("try the cache first", confidence=0.8)
    Thought(content='try the cache first', confidence=0.8)
    >>> TraceType.Error("Timeout", "no answer", recoverable=True).type_name()
    'Error'
    """

    __slots__ = ()

    ToolCall: ClassVar[type[_ToolCall]]
    Decision: ClassVar[type[_Decision]]
    Query: ClassVar[type[_Query]]
    Thought: ClassVar[type[_Thought]]
    Error: ClassVar[type[_Error]]
    Custom: ClassVar[type[_Custom]]

    _name: ClassVar[str]

    def __init__(self) -> None:
        raise errors.WrongType("a kind of trace", "TraceType", f"A trace is one of {_KIND_LIST}.")

    def type_name(self) -> str:
        """The name that `query_by_type` finds it by."""
        return self._name


@dataclass(frozen=True, slots=True, init=False)
class ToolCall(TraceType):
    """A tool was called.

    >>> ToolCall("search", {"query": "cats"}, result=[], duration_ms=150).type_name()
    'ToolCall'
    """

    tool_name: str
    arguments: Any
    result: Any
    duration_ms: int | None

    def __init__(
        self,
        tool_name: str,
        arguments: Any = None,
        result: Any = None,
        duration_ms: int | None = None,
    ) -> None:
        if type(tool_name) is not str:
            raise _no_text("ToolCall.tool_name", tool_name)
        if arguments is not None and encode_plain(arguments) is None:
            check_value("ToolCall.arguments", arguments)
        if result is not None and encode_plain(result) is None:
            check_value("ToolCall.result", result)
        if duration_ms is not None:
            _check_count("ToolCall.duration_ms", duration_ms)
        _fill_tool_call(self, (tool_name, arguments, result, duration_ms))


@dataclass(frozen=True, slots=True, init=False)
class Decision(TraceType):
    """One of several options was chosen. The options are kept as a tuple.

    >>> Decision("which cache?", ["redis", "none"], chosen="none").options
    ('redis', 'none')
    """

    question: str
    options: tuple[str, ...]
    chosen: str
    reasoning: str | None

    def __init__(
        self,
        question: str,
        options: Sequence[str] = (),
        chosen: str = "",
        reasoning: str | None = None,
    ) -> None:
        if type(question) is not str:
            raise _no_text("Decision.question", question)
        if type(options) is not tuple and type(options) is not list:
            kind = values.class_name(options)
            raise errors.WrongType(
                "list or tuple of str", kind, f"Decision.options is a list of str, not {kind}."
            )
        for index, option in enumerate(options):
            if type(option) is not str:
                raise _no_text(f"Decision.options[{index}]", option)
        if type(chosen) is not str:
            raise _no_text("Decision.chosen", chosen)
        if reasoning is not None and type(reasoning) is not str:
            raise _no_text("Decision.reasoning", reasoning, " or None")
        _fill_decision(self, (question, tuple(options), chosen, reasoning))


@dataclass(frozen=True, slots=True, init=False)
class Query(TraceType):
    """Something was looked up.

    >>> Query("vector", "nearest to cats", results_count=3).results_count
    3
    """

    query_type: str
    query: str
    results_count: int | None

    def __init__(self, query_type: str, query: str, results_count: int | None = None) -> None:
        if type(query_type) is not str:
            raise _no_text("Query.query_type", query_type)
        if type(query) is not str:
            raise _no_text("Query.query", query)
        if results_count is not None:
            _check_count("Query.results_count", results_count)
        _fill_query(self, (query_type, query, results_count))


@dataclass(frozen=True, slots=True, init=False)
class Thought(TraceType):
    """A step of reasoning. The confidence is a float or an int, and stays what it is.

    >>> Thought("the index is stale").confidence is None
    True
    """

    content: str
    confidence: float | None

    def __init__(self, content: str, confidence: float | None = None) -> None:
        if type(content) is not str:
            raise _no_text("Thought.content", content)
        if confidence is not None and type(confidence) is not float:
            _check_number("Thought.confidence", confidence)
        _fill_thought(self, (content, confidence))


@dataclass(frozen=True, slots=True, init=False)
class ErrorTrace(TraceType):
    """Something failed; `TraceType.Error`.

    >>> ErrorTrace("IoError", "disk full").recoverable
    False
    """

    error_type: str
    message: str
    recoverable: bool

    def __init__(self, error_type: str, message: str, recoverable: bool = False) -> None:
        if type(error_type) is not str:
            raise _no_text("ErrorTrace.error_type", error_type)
        if type(message) is not str:
            raise _no_text("ErrorTrace.message", message)
        _check_flag("ErrorTrace.recoverable", recoverable)
        _fill_error(self, (error_type, message, recoverable))


@dataclass(frozen=True, slots=True, init=False)
class Custom(TraceType):
    """A kind of one's own, found by its name: a str of 1 to 256 UTF-8 bytes without NUL.

    Another name is InvalidKey (WrongType if it is no str).

    >>> Custom("deploy", {"version": 7}).type_name()
    'deploy'
    """

    name: str
    data: Any

    def __init__(self, name: str, data: Any = None) -> None:
        if type(name) is not str or not 0 < len(name) <= 64 or "\0" in name or not name.isascii():
            short_name("Custom.name", name)
        if data is not None and encode_plain(data) is None:
            check_value("Custom.data", data)
        _fill_custom(self, (name, data))

    def type_name(self) -> str:
        """Its own name."""
        return self.name


# By the number that is stored; a number means the same for ever.
KINDS: Final[dict[int, type[TraceType]]] = {
    1: ToolCall,
    2: Decision,
    3: Query,
    4: Thought,
    5: ErrorTrace,
    6: Custom,
}
KIND_NAMES: Final[dict[type[TraceType], str]] = {
    kind: "Error" if kind is ErrorTrace else kind.__name__ for kind in KINDS.values()
}
_KIND_LIST: Final = ", ".join(kind.__name__ for kind in KINDS.values())

_ToolCall = ToolCall
_Decision = Decision
_Query = Query
_Thought = Thought
_Error = ErrorTrace
_Custom = Custom
for _kind, _name in KIND_NAMES.items():
    setattr(TraceType, _name, _kind)
    _kind._name = _name


def _filler(kind: Any) -> Callable[[Any, Sequence[Any]], None]:
    """What sets all fields of a new instance, past its frozen __setattr__.

    Written out for each count of fields: a loop would double the time.
    """
    puts = [kind.__dict__[field.name].__set__ for field in fields(kind)]
    if len(puts) == 4:
        put_1, put_2, put_3, put_4 = puts

        def fill_four(self: Any, found: Sequence[Any]) -> None:
            one, two, three, four = found
            put_1(self, one)
            put_2(self, two)
            put_3(self, three)
            put_4(self, four)

        return fill_four
    if len(puts) == 3:
        put_1, put_2, put_3 = puts

        def fill_three(self: Any, found: Sequence[Any]) -> None:
            one, two, three = found
            put_1(self, one)
            put_2(self, two)
            put_3(self, three)

        return fill_three
    put_1, put_2 = puts

    def fill_two(self: Any, found: Sequence[Any]) -> None:
        one, two = found
        put_1(self, one)
        put_2(self, two)

    return fill_two


# Fills a new instance with what was stored, which was checked before.
FILLERS: Final = {kind: _filler(kind) for kind in KINDS.values()}
_fill_tool_call = FILLERS[ToolCall]
_fill_decision = FILLERS[Decision]
_fill_query = FILLERS[Query]
_fill_thought = FILLERS[Thought]
_fill_error = FILLERS[ErrorTrace]
_fill_custom = FILLERS[Custom]


# -- checks of fields -------------------------------------------------------------------------


def short_name(what: str, name: str) -> bytes:
    """The UTF-8 bytes of a type's name or a tag, checked: 1 to 256, without NUL."""
    if type(name) is not str:
        raise _no_text(what, name)
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise errors.InvalidKey(
            f"{what} {name[:40]!a} holds a lone surrogate, which UTF-8 cannot write."
        ) from None
    if not encoded:
        raise errors.InvalidKey(f"{what} must not be empty: it has 1 to 256 UTF-8 bytes.")
    if len(encoded) > NAME_BYTES_MAX:
        raise errors.InvalidKey(
            f"{what} {name[:40]!r}... has {len(encoded)} UTF-8 bytes; at most 256 are allowed."
        )
    if b"\0" in encoded:
        raise errors.InvalidKey(f"{what} {name[:40]!r} holds a NUL character, which it must not.")
    return encoded


def _no_text(field: str, found: object, others: str = "") -> errors.WrongType:
    kind = values.class_name(found)
    return errors.WrongType(f"str{others}", kind, f"{field} is a str{others}, not {kind}.")


def check_value(field: str, value: Any) -> None:
    """Raises what is wrong with a value, if anything is, naming the field that it is for."""
    try:
        values.check(value)
    except errors.Error as error:
        error.message = f"{field}: {error.message}"
        error.args = (error.message,)
        raise


def _check_flag(field: str, flag: object) -> None:
    if type(flag) is not bool:
        kind = values.class_name(flag)
        raise errors.WrongType("bool", kind, f"{field} is a bool, not {kind}.")


def _check_number(field: str, number: object) -> None:
    if type(number) is not int:
        kind = values.class_name(number)
        raise errors.WrongType("float or None", kind, f"{field} is a float or None, not {kind}.")
    if not values.INT_MIN <= number <= values.INT_MAX:
        raise errors.ConstraintViolation(
            "int_out_of_range",
            f"{field} is {values.printable(number)}, which does not fit 64 bits; give a float.",
        )


def _check_count(field: str, count: object) -> None:
    if type(count) is not int:
        kind = values.class_name(count)
        raise errors.WrongType("int or None", kind, f"{field} is an int or None, not {kind}.")
    if not 0 <= count <= values.INT_MAX:
        raise errors.ConstraintViolation(
            "count_out_of_range",
            f"{field} is {values.printable(count)}; give 0 to 2**63 - 1, or None.",
        )


# -- a trace, and traces ----------------------------------------------------------------------


class Trace(NamedTuple):
    """A trace as it was recorded; it stays valid after the database is closed.

    >>> trace = Trace("trace-1", None, Thought("hm"), 1_700_000_000_000, ["draft"], None)
    >>> trace.trace_type.content, trace.tags
    ('hm', ['draft'])
    """

    id: str
    """Its own, "trace-<uuid>" if none was given."""
    parent_id: str | None
    """The id of the trace that it belongs to; None for a root."""
    trace_type: TraceType
    """What was traced."""
    timestamp: int
    """When it was recorded, in milliseconds since 1970 (UTC)."""
    tags: list[str]
    """Each once, in the order in which they were given."""
    metadata: Any
    """Any value."""


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """What `record_with_options` takes beside the trace's type; checked there.

    Attributes:
        id: An id of one's own, a str as a key of KVStore; None for a new "trace-<uuid>".
        parent_id: The id of an existing trace; None for a root.
        tags: Each a str of 1 to 256 UTF-8 bytes without NUL.
        metadata: Any value.

    >>> TraceOptions(id="step-1", tags=["draft"]).parent_id is None
    True
    """

    id: str | None = None
    parent_id: str | None = None
    tags: Iterable[str] = ()
    metadata: Any = None


class TraceTree:
    """A trace and, in `children`, the trees of the traces below it, in the order of their time.

    Attributes:
        trace: The `Trace` at the top; also `root`.
        children: A list of `TraceTree`.

    ``len(tree)`` is the number of its traces, this one included. Trees are equal if their traces
    and children are, picklable and copyable; none of this recurses, so they may be of any depth.
    Cost: O(traces) each.

    >>> leaf = TraceTree(Trace("b", "a", Thought("then"), 2, [], None))
    >>> tree = TraceTree(Trace("a", None, Thought("first"), 1, [], None), [leaf])
    >>> for depth, trace in tree.walk():
    ...     print("  " * depth + trace.id)
    a
      b
    """

    __slots__ = ("children", "trace")

    trace: Trace
    children: list[TraceTree]

    def __init__(self, trace: Trace, children: Iterable[TraceTree] = ()) -> None:
        self.trace = trace
        self.children = list(children)

    @property
    def root(self) -> Trace:
        """The trace at the top."""
        return self.trace

    def walk(self) -> Iterator[tuple[int, Trace]]:
        """(depth, trace) of all of them, each before those below it; the depth of the top is 0."""
        left = [(0, self)]
        while left:
            depth, tree = left.pop()
            yield depth, tree.trace
            left.extend((depth + 1, child) for child in reversed(tree.children))

    def __len__(self) -> int:
        return sum(1 for _ in self.walk())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TraceTree):
            return NotImplemented
        pairs = [(self, other)]
        while pairs:
            left, right = pairs.pop()
            if left is right:
                continue
            if left.trace != right.trace or len(left.children) != len(right.children):
                return False
            pairs.extend(zip(left.children, right.children, strict=True))
        return True

    # Its children may change.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<TraceTree {self.trace.id}, {len(self)} traces>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _planted, (list(self.walk()),)


def _planted(walked: list[tuple[int, Trace]]) -> TraceTree:
    """The tree that walks like this."""
    path: list[TraceTree] = []
    for depth, trace in walked:
        tree = TraceTree(trace)
        if depth:
            path[depth - 1].children.append(tree)
        del path[depth:]
        path.append(tree)
    return path[0]
