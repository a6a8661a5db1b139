"""state_cell.py - StateCell, named values that processes agree on.

Why:        a key that several agents change needs to say which state a change was made from. Each
            cell counts its writes; `cas` and `transition` change it only from the state seen.
Used by:    any thread of any process that has the database open; holds no state of its own
Invariants: a cell's version grows by 1 with every write, in every process's eyes (tests/unit/
            test_state_cell, tests/procs/test_state_cell)
Errors:     those of each method; an error leaves the cell unchanged and usable
Cost:       read about one get, set and cas about one put, transition both
"""

from __future__ import annotations

import builtins
import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from shm_engine import errors, keys
from shm_engine._core import NAMES, RunId
from shm_engine.primitives.arguments import as_int, as_seconds, engine_of
from shm_engine.states import State

if TYPE_CHECKING:
    from shm_engine.database import Database

__all__ = ["StateCell"]

T = TypeVar("T")
TAG: Final = keys.TAG_STATE
TRIES: Final = 200
HURRIES: Final = 3  # tries at once: the other's commit is over when the conflict is known
BACKOFF_FIRST_S: Final = 0.001
BACKOFF_MAX_S: Final = 0.050
VERSION_MAX: Final = 2**63 - 1


class StateCell:
    """The state cells of each run. Make as many as you like: `StateCell(db)`.

    A cell's name is a str of 1 to 1024 UTF-8 bytes without NUL that does not start with
    ``_strata/``; else InvalidKey (WrongType if it is no str). A value is any value of the engine.
    `run` is a RunId or its string; it need not be registered. Writes to a registered run that is
    not active raise RunError. Each write is one commit, visible to every process when the call
    returns, and as durable as the database's mode says.

    >>> from shm_engine import Database, StateCell
    >>> with Database.ephemeral() as db:
    ...     cells = StateCell(db)
    ...     run = db.begin_run()
    ...     _ = cells.init(run, "worker/1", "idle")
    ...     _ = cells.cas(run, "worker/1", 1, "busy")
    ...     result, version = cells.transition(run, "worker/1", lambda state: ("done", state.value))
    ...     result, version, cells.read(run, "worker/1").value
    ('busy', 3, 'done')
    """

    __slots__ = ("_bump", "_engine", "_read", "_transition", "database")

    def __init__(self, database: Database) -> None:
        engine = engine_of(database)
        self.database = database
        self._engine = engine
        self._bump = engine.bump
        self._read = engine.read_counted
        self._transition = engine.try_transition

    # -- reading ------------------------------------------------------------------------------

    def read(self, run: RunId | str, name: str) -> State | None:
        """The cell's state, or None if there is no such cell."""
        return self._read(run, TAG, name, State)

    def exists(self, run: RunId | str, name: str) -> bool:
        """Whether there is such a cell."""
        return self._read(run, TAG, name, State) is not None

    def list(self, run: RunId | str) -> builtins.list[str]:
        """The names of the run's cells, in the order of their UTF-8 bytes."""
        pin = self._engine.open_pin()
        try:
            return self._engine.scan(run, TAG, "", pin, None, None, NAMES)[0]
        finally:
            pin.close()

    def wait(
        self,
        run: RunId | str,
        name: str,
        after_version: int = 0,
        timeout: timedelta | float | None = None,
    ) -> State | None:
        """The cell's state as soon as its version is not `after_version`; sleeps till then.

        Args:
            after_version: The version that the caller knows; 0: return when the cell exists.
            timeout: Seconds; then None comes back. None: wait for ever.

        A cell that is deleted has no state: the wait goes on until it is made again. Sleeping costs
        nothing; it ends some 50 us after the commit (in strict mode: after the sync). Closing the
        database's handle in another thread ends it with Closed.
        """
        known = as_int("after_version", after_version)
        seconds = as_seconds("timeout", timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            watched = self._engine.watch(run, TAG, name)
            state = self.read(run, name)
            if state is not None and state.version != known:
                return state
            left = 1.0 if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return None
            self._engine.wait_for(watched, left)

    # -- writing ------------------------------------------------------------------------------

    def init(self, run: RunId | str, name: str, value: Any) -> int:
        """Makes the cell; returns its version, 1. InvalidOperation if it exists already."""
        version = self._bump(run, TAG, name, value, 0)
        if version < 0:
            raise errors.InvalidOperation(
                f"The state cell {name!r} exists already, at version {-1 - version}; change it "
                f"with cas() or set()."
            )
        return version

    def set(self, run: RunId | str, name: str, value: Any) -> int:
        """Writes the value whatever the cell holds, and makes the cell if there is none; returns
        the new version. Never conflicts: the version is counted inside the commit."""
        return self._bump(run, TAG, name, value)

    def cas(self, run: RunId | str, name: str, expected_version: int, new_value: Any) -> int:
        """Writes the value if the cell is at `expected_version`; returns the new version.

        Raises:
            VersionMismatch: it is at another version; `expected` and `actual` tell which.
            NotFound: there is no such cell; `init` makes it.
        """
        if type(expected_version) is not int or not 0 < expected_version <= VERSION_MAX:
            return self._cas_nothing(run, name, expected_version, new_value)
        version = self._bump(run, TAG, name, new_value, expected_version)
        if version < 0:
            raise _mismatch(name, expected_version, -1 - version)
        return version

    def _cas_nothing(self, run: RunId | str, name: str, expected: Any, value: Any) -> int:
        """No cell is ever at such a version; the arguments are checked all the same."""
        as_int("expected_version", expected)
        self._engine.check_name(name)
        self._engine.encode(value)
        state = self.read(run, name)
        raise _mismatch(name, expected, 0 if state is None else state.version)

    def transition(
        self, run: RunId | str, name: str, fn: Callable[[State], tuple[Any, T]]
    ) -> tuple[T, int]:
        """Changes the cell by a function of its state: ``fn(state) -> (new value, result)``.

        Returns (result, new version). If another process changes the cell meanwhile, `fn` is called
        again with the new state, up to 200 times, with a pause of 1 to 50 ms from the third on; so
        it should do nothing but compute. An exception that it raises comes through unchanged, and
        nothing is written.

        Raises:
            NotFound: there is no such cell.
            VersionMismatch: others were quicker 200 times.
            WrongType: `fn` returned no pair.
        """
        done = self._transition(run, TAG, name, fn, State)
        if type(done) is not tuple:
            done = self._try_again(run, name, fn, done)
        if done is None:
            raise _missing(name)
        made: tuple[T, int] = done
        return made

    def _try_again(
        self, run: RunId | str, name: str, fn: Callable[[State], tuple[Any, T]], done: Any
    ) -> tuple[T, int] | None:
        """Until it is `done`: not a list of two versions that differ. None: there is no cell."""
        for attempt in range(TRIES - 1):
            if type(done) is not list:
                break
            _pause(attempt)
            done = self._transition(run, TAG, name, fn, State)
        if type(done) is not list:
            made: tuple[T, int] | None = done
            return made
        raise errors.VersionMismatch(
            done[0],
            done[1],
            f"The state cell {name!r} was changed by others {TRIES} times in a row, each time "
            f"before the transition was done.",
        )

    def transition_or_init(
        self,
        run: RunId | str,
        name: str,
        initial: Any,
        fn: Callable[[State], tuple[Any, T]],
    ) -> tuple[T, int]:
        """`transition`, but a missing cell is made first, with `initial`: that then ends at
        version 2, and `fn` gets the initial state."""
        while True:
            done = self._transition(run, TAG, name, fn, State)
            made = self._try_again(run, name, fn, done)
            if made is not None:
                return made
            self._bump(run, TAG, name, initial, 0)

    def delete(self, run: RunId | str, name: str) -> bool:
        """Removes the cell; whether it existed. Made again it begins at version 1."""
        return self._engine.delete(run, TAG, name)


def _pause(attempt: int) -> None:
    if attempt < HURRIES:
        return
    bound = min(BACKOFF_FIRST_S * 2 ** (attempt - HURRIES), BACKOFF_MAX_S)
    time.sleep(random.uniform(BACKOFF_FIRST_S, max(BACKOFF_FIRST_S, bound)))


def _missing(name: str) -> errors.NotFound:
    return errors.NotFound(f"There is no state cell {name!r}; init() makes it.")


def _mismatch(name: str, expected: int, actual: int) -> errors.Error:
    if actual == 0:
        return _missing(name)
    return errors.VersionMismatch(
        expected,
        actual,
        f"The state cell {name!r} is at version {actual}, not {expected}; read it again.",
    )
