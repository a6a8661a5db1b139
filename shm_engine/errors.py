"""errors.py - the exceptions of shm_engine, one tree, one class for each thing to do next.

Why:        a caller has to know whose fault an error is and what helps: another argument, another
            try, more room, or a person. So classes follow remedies, fields hold the facts for
            programs, and the message tells a person what was asked, what was found, what to do.
Used by:    every layer, shm_engine._core included; imports nothing of the package
Invariants: E1 every error pickles with its class, message and fields (test_errors)
            E2 `code` is the name of the class (test_errors)

    Error
      NotFound            KeyNotFound, HistoryTrimmed
      WrongType, InvalidKey, InvalidPath, ConstraintViolation
      Conflict            TransactionConflict, VersionMismatch, TransactionTimeout
      InvalidOperation    InvalidStatusTransition, InvalidState, Closed
      RunError
      StorageError        StorageFull, Corruption, FormatMismatch, IoError, Unavailable
      SerializationError, InternalError
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "Closed",
    "Conflict",
    "ConstraintViolation",
    "Corruption",
    "Error",
    "FormatMismatch",
    "HistoryTrimmed",
    "InternalError",
    "InvalidKey",
    "InvalidOperation",
    "InvalidPath",
    "InvalidState",
    "InvalidStatusTransition",
    "IoError",
    "KeyNotFound",
    "NotFound",
    "RunError",
    "SerializationError",
    "StorageError",
    "StorageFull",
    "TransactionConflict",
    "TransactionTimeout",
    "Unavailable",
    "VersionMismatch",
    "WrongType",
]


def _rebuild(cls: type[Error], args: tuple[Any, ...], fields: dict[str, Any]) -> Error:
    """Makes an unpickled error without calling its constructor, whose arguments differ."""
    error = cls.__new__(cls, *args)
    error.__dict__.update(fields)
    return error


class Error(Exception):
    """The base of every error that shm_engine raises on purpose.

    Args:
        message: What was asked, what was found, what to do.

    Attributes:
        code: The name of the class, stable across releases.
        message: The text, also `str(error)`.

    Errors pickle with all their fields, so they cross process boundaries unchanged.

    >>> error = KeyNotFound("no key 'a' in run 'default'; use get() to have None instead")
    >>> error.code, error.is_not_found(), error.is_retryable()
    ('KeyNotFound', True, False)
    """

    code: ClassVar[str] = "Error"
    message: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.code = cls.__name__

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))

    def is_retryable(self) -> bool:
        """Whether the same call may succeed if it is made again, with fresh reads.

        True for conflicts, and for `Unavailable` unless the outcome is in doubt.

        >>> TransactionConflict("stock").is_retryable()
        True
        """
        return False

    def is_not_found(self) -> bool:
        """Whether what was asked for does not exist (any more).

        >>> NotFound("no run 'a'").is_not_found()
        True
        """
        return isinstance(self, NotFound)

    def is_conflict(self) -> bool:
        """Whether another's commit, or the wait for one, was in the way.

        >>> VersionMismatch(3, 4).is_conflict()
        True
        """
        return isinstance(self, Conflict)

    def is_serious(self) -> bool:
        """Whether a person has to look: stored data is damaged, or the engine has a bug.

        >>> Corruption("wal/1.wal", 4096).is_serious(), StorageFull().is_serious()
        (True, False)
        """
        return isinstance(self, Corruption | InternalError)


# -- what was asked for is not there ----------------------------------------------------------


class NotFound(Error):
    """What was named does not exist. Check the name, or create it first."""


class KeyNotFound(NotFound):
    """The key has no value at the version that was read. Use `get`, which returns None."""


class HistoryTrimmed(NotFound):
    """The version asked for is older than the history that is kept, or than the key itself.

    Read at `earliest` or later; to keep more, set a wider retention policy on the run.

    Args:
        requested: The `Version` asked for.
        earliest: The oldest `Version` that can be read; None if none can.
        message: In place of the text made from the two.

    >>> print(HistoryTrimmed(3, 8))
    version 3 is no longer kept, the earliest is 8; read at that or later, or retain more history
    """

    requested: Any
    earliest: Any

    def __init__(self, requested: Any, earliest: Any = None, message: str | None = None) -> None:
        if message is None and earliest is None:
            message = f"nothing is kept at or before version {requested}; retain more history"
        elif message is None:
            message = (
                f"version {requested} is no longer kept, the earliest is {earliest}; "
                "read at that or later, or retain more history"
            )
        super().__init__(message)
        self.requested = requested
        self.earliest = earliest


# -- the caller's arguments -------------------------------------------------------------------


class WrongType(Error):
    """A value is of a type that is not allowed there. Convert it; the engine never does.

    Args:
        expected: The types that are allowed.
        actual: The type that was found.
        message: In place of the text made from the two; it names the place.

    >>> error = WrongType("int", "str")
    >>> error.expected, error.actual, str(error)
    ('int', 'str', 'expected int, found str; convert it first')
    """

    expected: str
    actual: str

    def __init__(self, expected: str, actual: str, message: str | None = None) -> None:
        super().__init__(
            f"expected {expected}, found {actual}; convert it first" if message is None else message
        )
        self.expected = expected
        self.actual = actual


class InvalidKey(Error):
    """The key or name breaks the rules for names: empty, too long, NUL inside, reserved."""


class InvalidPath(Error):
    """The path into a document is malformed, or names many places where one is needed."""


class ConstraintViolation(Error):
    """An argument has the right type and breaks a limit or a rule. Nothing was written.

    Args:
        reason: The rule that was broken, a short phrase or a code such as "value_too_large".
        message: The long form; the reason itself where left out.

    >>> error = ConstraintViolation("value_too_large", "17 MiB string at $.text; 16 are allowed")
    >>> error.reason
    'value_too_large'
    """

    reason: str

    def __init__(self, reason: str, message: str | None = None) -> None:
        super().__init__(reason if message is None else message)
        self.reason = reason


# -- other writers ----------------------------------------------------------------------------


class Conflict(Error):
    """Another commit, or the wait for one, was in the way. Read again and try again."""

    def is_retryable(self) -> bool:
        """True: a new try with fresh reads may succeed."""
        return True


class TransactionConflict(Conflict):
    """A key that the transaction read was changed before it committed. Nothing was written.

    Run the transaction again, or let `transaction_with_retry` do it.

    Args:
        key: The key that changed, None where it is not one key.
        message: In place of the text made from the key.

    >>> print(TransactionConflict("stock"))
    key 'stock' was changed by another commit since this transaction read it; run it again
    """

    key: str | None

    def __init__(self, key: str | None = None, message: str | None = None) -> None:
        if message is None:
            what = "what was read" if key is None else f"key {key!r}"
            message = (
                f"{what} was changed by another commit since this transaction read it; run it again"
            )
        super().__init__(message)
        self.key = key


class VersionMismatch(Conflict):
    """A compare-and-set expected another version than the current one. Nothing was written.

    Args:
        expected: The version that the caller named, None for "must not exist".
        actual: The version that is there, None for "does not exist".
        message: In place of the text made from the two.

    >>> print(VersionMismatch(3, 4))
    expected version 3, found 4; read it again and decide anew
    """

    expected: Any
    actual: Any

    def __init__(self, expected: Any, actual: Any, message: str | None = None) -> None:
        super().__init__(
            f"expected version {expected}, found {actual}; read it again and decide anew"
            if message is None
            else message
        )
        self.expected = expected
        self.actual = actual


class TransactionTimeout(Conflict):
    """The transaction did not reach its commit in the time given. Nothing was written."""


# -- the state of things ----------------------------------------------------------------------


class InvalidOperation(Error):
    """The call is not possible here or now, whatever its arguments."""


class InvalidStatusTransition(InvalidOperation):
    """A run cannot go from the status it has to the one asked for.

    Args:
        from_: The status that the run has.
        to: The status asked for.
        message: In place of the text made from the two.

    >>> print(InvalidStatusTransition("Completed", "Active"))
    Invalid status transition: Completed -> Active
    """

    from_: str
    to: str

    def __init__(self, from_: str, to: str, message: str | None = None) -> None:
        super().__init__(
            f"Invalid status transition: {from_} -> {to}" if message is None else message
        )
        self.from_ = from_
        self.to = to


class InvalidState(InvalidOperation):
    """The transaction or snapshot has ended. Begin a new one."""


class Closed(InvalidOperation):
    """The handle was closed. Open the database again."""


class RunError(Error):
    """The run takes no writes: it is unknown, or not Active. Reads go on.

    Args:
        run: The run's id.
        state: The status that the run has, None for an unknown run.
        message: In place of the text made from the two.

    >>> print(RunError("default", "Paused"))
    run 'default' is Paused and takes no writes; only an Active run does
    """

    run: str
    state: str | None

    def __init__(self, run: str, state: str | None = None, message: str | None = None) -> None:
        if message is None and state is None:
            message = f"run {run!r} is unknown; create it first"
        elif message is None:
            message = f"run {run!r} is {state} and takes no writes; only an Active run does"
        super().__init__(message)
        self.run = run
        self.state = state


# -- memory, files, processes -----------------------------------------------------------------


class StorageError(Error):
    """The memory, the files or the processes beneath the database failed."""


class StorageFull(StorageError):
    """No room is left. The commit left nothing behind; reads and deletes still work."""


class Corruption(StorageError):
    """Stored bytes are damaged. Nothing was changed; have them repaired before opening again.

    Args:
        file: The file or segment.
        offset: A byte offset in it, at or before the damage; None where there is no one place.
        message: In place of the text made from the two.

    >>> error = Corruption("wal/1.wal", 4096)
    >>> error.file, error.offset
    ('wal/1.wal', 4096)
    """

    file: str
    offset: int | None

    def __init__(self, file: str, offset: int | None = None, message: str | None = None) -> None:
        if message is None:
            place = file if offset is None else f"{file} at or after byte {offset}"
            message = f"{place} is damaged; keep a copy, then run `shm-engine repair`"
        super().__init__(message)
        self.file = file
        self.offset = offset


class FormatMismatch(StorageError):
    """Segments or files were written by another format version, byte order or word size."""


class IoError(StorageError):
    """A system call failed; the message has the call, the path and the system's reason.

    Args:
        message: What failed, and what follows from it.
        errno: The system's number, where there is one.
    """

    errno: int | None

    def __init__(self, message: str = "", errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class Unavailable(StorageError):
    """The engine cannot answer now: a process is stopped, no slot is free, none starts.

    Args:
        message: What was waited for, and whose pid holds it.
        in_doubt: Whether the commit may yet happen. Then it must not be made again blindly, and
            the error is not retryable.

    >>> Unavailable("no client slot is free").is_retryable()
    True
    >>> Unavailable("process 71 holds the commit and is stopped", in_doubt=True).is_retryable()
    False
    """

    in_doubt: bool

    def __init__(self, message: str = "", in_doubt: bool = False) -> None:
        super().__init__(message)
        self.in_doubt = in_doubt

    def is_retryable(self) -> bool:
        """Whether a new try is safe: true unless this commit may yet happen."""
        return not self.in_doubt


# -- encoding, and bugs -----------------------------------------------------------------------


class SerializationError(Error):
    """A value cannot be encoded, such as text with a lone surrogate, or bytes not decoded."""


class InternalError(Error):
    """The engine broke a rule of its own: a bug. Please report the message."""
