"""engine.py - Engine, what a Database needs of the store beneath it.

Why:        the primitives know keys, values, snapshots and write sets, not shared memory. An engine
            over another store has to offer these methods and nothing else.
Used by:    database.py, transaction.py, the primitives
Invariants: all methods take a run, a type tag (keys.py) and a name; each write is one commit
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from shm_engine._core import VALUES, Store, WriteSet
from shm_engine._core import RunId as RunId

__all__ = ["Engine", "Name", "Operation", "Pinned", "SharedMemoryEngine"]

T = TypeVar("T")

# A user's name is a str, a primitive's own key bytes: all behind run and tag. With tag 0 the bytes
# are the whole key, run and tag included.
Name = str | bytes

# kind, type tag, name, packed value or None, expires_us (0 = never), argument
Operation = tuple[int, int, Name, bytes | None, int, int]


class Pinned(Protocol):
    """A snapshot that the engine keeps readable until it is closed."""

    @property
    def version(self) -> int:
        """The newest commit that it sees."""

    @property
    def now_us(self) -> int:
        """The time that decides which values have run out."""

    @property
    def closed(self) -> bool:
        """Whether it was closed."""

    def close(self) -> None:
        """Lets the engine trim what only this snapshot needed."""


class Engine(Protocol):
    """Reads at snapshots, commits of write sets, history. See `shm_engine._core.Store`."""

    def get(
        self, run: RunId | str, tag: int, name: Name, pin: Any = None, default: Any = None
    ) -> Any: ...
    def get_record(
        self, run: RunId | str, tag: int, name: Name, pin: Any = None
    ) -> tuple[Any, int, int, int] | None: ...
    def get_counted(
        self, run: RunId | str, tag: int, name: Name, pin: Any = None
    ) -> tuple[Any, int, int] | None: ...
    def get_many(
        self,
        run: RunId | str,
        tag: int,
        names: Iterable[Name],
        pin: Any,
        default: Any = None,
        form: int = VALUES,
    ) -> list[Any]: ...
    def scan(
        self,
        run: RunId | str,
        tag: int,
        prefix: Name,
        pin: Any,
        after: Name | None = None,
        limit: int | None = None,
        form: int = VALUES,
        stop: bytes | None = None,
    ) -> tuple[list[Any], list[Any] | None]: ...
    def descend(
        self, run: RunId | str, tag: int, start: bytes, root: bytes, pin: Any
    ) -> tuple[list[bytes], list[int]]: ...
    def history(
        self,
        run: RunId | str,
        tag: int,
        name: Name,
        limit: int | None = None,
        before: int | None = None,
    ) -> tuple[list[tuple[Any, int, int, bool]], bool]: ...
    def get_at(
        self, run: RunId | str, tag: int, name: Name, version: int
    ) -> tuple[Any, int, int, bool] | int: ...
    def open_pin(self) -> Any: ...
    def check_name(self, name: str, prefix: bool = False) -> None: ...
    def encode(self, value: Any) -> bytes: ...
    def encode_counted(self, value: Any) -> bytes: ...
    def encode_event(self, event_type: str, payload: Any) -> bytes: ...
    def put(
        self, run: RunId | str, tag: int, name: Name, value: Any, expires_us: int = 0
    ) -> int: ...
    def delete(self, run: RunId | str, tag: int, name: Name) -> bool: ...
    def increment(self, run: RunId | str, tag: int, name: Name, delta: int) -> int: ...
    def compare_and_set(
        self, run: RunId | str, tag: int, name: Name, expected: int, value: Any
    ) -> int | None: ...
    def bump(
        self, run: RunId | str, tag: int, name: Name, value: Any, expected: int = -1
    ) -> int: ...
    def read_counted(
        self, run: RunId | str, tag: int, name: Name, state_type: type[T]
    ) -> T | None: ...
    def try_transition(
        self,
        run: RunId | str,
        tag: int,
        name: Name,
        fn: Callable[[T], tuple[Any, Any]],
        state_type: type[T],
    ) -> Any: ...
    def append_one(self, run: RunId | str, event_type: str, payload: Any) -> tuple[int, bytes]: ...
    def append(
        self, run: RunId | str, events: Iterable[tuple[str, Any]]
    ) -> list[tuple[int, bytes]]: ...
    def erase(self, run: RunId | str) -> bool: ...
    def watch(self, run: RunId | str, tag: int, name: Name) -> Any: ...
    def wait_for(self, watched: Any, seconds: float) -> None: ...
    def put_many(self, run: RunId | str, tag: int, names: list[str], values: list[Any]) -> int: ...
    def delete_many(self, run: RunId | str, tag: int, names: Iterable[str]) -> int: ...
    def write_set(self, run: RunId | str) -> WriteSet: ...
    def commit(
        self,
        run: RunId | str,
        ops: Sequence[Operation] | WriteSet,
        snapshot: int,
    ) -> tuple[int, int, int]: ...
    def put_run_record(
        self, run: RunId | str, record: bytes, expected: int | None = None
    ) -> int | None: ...
    def get_run_record(self, run: RunId | str) -> tuple[bytes, int] | None: ...
    def figures(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


SharedMemoryEngine = Store
