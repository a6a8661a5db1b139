"""run_index.py - RunIndex, the runs themselves: their lives, their tags, and where to find them.

Why:        a run is what an agent's work belongs to, so people ask which runs are active, which
            failed and why, which one was forked from which; and when a run is done with, all that
            it left behind in every primitive has to go, at once for every reader.
Used by:    any thread of any process that has the database open; holds no state of its own
Invariants: every change is one commit; an answer is taken from one snapshot; runs that
            `Database.begin_run` began are listed too
Errors:     those of each method; an error leaves nothing changed and the store usable
Cost:       a change one commit; a query its answer and the runs that its other conditions leave
            out, never all runs; count and get_stats six reads (runs.py has the indexes)
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from shm_engine import errors, keys, runs, values
from shm_engine._core import NAMES, RunId, to_run
from shm_engine.primitives.arguments import engine_of
from shm_engine.runs import CreateRunOptions, RunMetadata, RunQuery, RunRecord, RunStats, RunStatus

if TYPE_CHECKING:
    from shm_engine.database import Database
    from shm_engine.engine import Pinned

__all__ = ["RunIndex"]

TAG: Final = keys.TAG_RUN
BATCH_FIRST: Final = 16
BATCH_MAX: Final = 1024
END_SIZE: Final = 24  # of an entry's name: when the run was created, and its id
LAST_RUN: Final = b"\xff" * 16


class RunIndex:
    """Runs: begun, tagged, ended, found, deleted. Make as many as you like: `RunIndex(db)`.

    A run is named by a RunId or its string. Times are milliseconds since 1970; every list is in the
    order of creation. A tag is a str of 1 to 256 UTF-8 bytes without NUL, else InvalidKey
    (WrongType if it is no str); metadata is any value, else WrongType, ConstraintViolation or
    SerializationError, naming the place. The default run always exists and is Active; it is in no
    list or count, and changing it raises ConstraintViolation. A store without memory raises
    StorageFull; a closed handle Closed.

    >>> from shm_engine import Database, KVStore, RunId, RunIndex
    >>> with Database.ephemeral() as db:
    ...     runs = RunIndex(db)
    ...     parent = RunId.new()
    ...     _ = runs.create_run(parent)
    ...     child = RunId.new()
    ...     _ = runs.create_run_with_options(child, parent, ["nightly"], {"source": "api"})
    ...     _ = runs.fail_run(child, "connection timeout")
    ...     found = runs.query_runs(status="Failed", tags=["nightly"])[0]
    ...     found.error, found.parent_run == str(parent), runs.count()
    ('connection timeout', True, 2)
    """

    __slots__ = ("_engine", "database")

    def __init__(self, database: Database) -> None:
        engine = engine_of(database)
        self.database = database
        self._engine = engine

    # -- create and get -----------------------------------------------------------------------

    def create_run(self, run_id: RunId | str | None = None) -> RunMetadata:
        """Registers an Active run under this id, or under a new one.

        Of any number of processes that create the same id exactly one succeeds. What was written to
        the run before, and a retention chosen for it, stay. Raises InvalidOperation if the run
        exists, or was deleted and an older snapshot is still open.
        """
        return self.create_run_with_options(run_id)

    def create_run_with_options(
        self,
        run_id: RunId | str | CreateRunOptions | None = None,
        parent_run: RunId | str | CreateRunOptions | None = None,
        tags: Iterable[str] = (),
        metadata: Any = None,
    ) -> RunMetadata:
        """As `create_run`, with a parent, tags and metadata, or with CreateRunOptions.

        The options are the only argument, or the second one; then the id is given once, or twice
        the same. Raises NotFound if the parent does not exist in the moment of the commit.
        """
        others: tuple[Any, ...] = (tags, metadata)
        if isinstance(run_id, CreateRunOptions):
            options, run_id, others = run_id, None, (parent_run, *others)
        elif isinstance(parent_run, CreateRunOptions):
            options = parent_run
        else:
            options, others = CreateRunOptions(None, parent_run, tags, metadata), ()
        if any(other is not None and other != () for other in others):
            raise errors.InvalidOperation(
                "Parent, tags and metadata were given beside CreateRunOptions; put them into it."
            )
        return runs.create(self._engine, _chosen_id(run_id, options.run_id), options)

    def get_run(self, run_id: RunId | str) -> RunMetadata | None:
        """What is known of the run; None if it was never begun, or was deleted."""
        run = to_run(run_id)
        if run == RunId.DEFAULT:
            return RunMetadata(str(run), str(run))
        record = runs.read(self._engine, run)[0]
        if record is None or not record.is_registered:
            return None
        return runs.metadata_of(run, record)

    def exists(self, run_id: RunId | str) -> bool:
        """Whether there is such a run, archived ones included."""
        return self.get_run(run_id) is not None

    def list_runs(self) -> list[str]:
        """The ids of all runs, archived ones included. Cost: O(runs), without reading their
        metadata."""
        with closing(self._engine.open_pin()) as pin:
            return [str(_run_of(end)) for end in self._entries(pin, runs.BY_TIME)]

    def count(self) -> int:
        """How many runs `list_runs` would give."""
        return self.get_stats().total_runs

    def get_stats(self) -> RunStats:
        """How many runs there are of each status, at one moment."""
        names = {status: runs.count_of(status.number) for status in RunStatus}
        with closing(self._engine.open_pin()) as pin:
            found = self._engine.get_many(RunId.DEFAULT, TAG, names.values(), pin, 0)
        counts = dict(zip(names, found, strict=True))
        return RunStats(
            total_runs=sum(found),
            active_runs=counts[RunStatus.ACTIVE],
            completed_runs=counts[RunStatus.COMPLETED],
            failed_runs=counts[RunStatus.FAILED],
            cancelled_runs=counts[RunStatus.CANCELLED],
            paused_runs=counts[RunStatus.PAUSED],
            archived_runs=counts[RunStatus.ARCHIVED],
        )

    # -- status -------------------------------------------------------------------------------

    def update_status(self, run_id: RunId | str, new_status: RunStatus | str) -> RunMetadata:
        """Takes the run to another status and returns what it has become.

        From the moment of the commit on, a run that is not Active refuses writes with RunError, to
        every process. Of several who end a run at once one succeeds.

        Raises:
            InvalidStatusTransition: the run may not go there from where it is (see RunStatus); to
                the status that it has neither.
            NotFound: there is no such run.
        """
        return runs.change_status(self._engine, to_run(run_id), RunStatus.of(new_status))

    def complete_run(self, run_id: RunId | str) -> RunMetadata:
        """Ends an Active run well."""
        return self.update_status(run_id, RunStatus.COMPLETED)

    def fail_run(self, run_id: RunId | str, error: str) -> RunMetadata:
        """Ends an Active run, saying what went wrong."""
        if type(error) is not str:
            kind = values.class_name(error)
            raise errors.WrongType("str", kind, f"A run's error is a str, not {kind}.")
        return runs.change_status(self._engine, to_run(run_id), RunStatus.FAILED, error)

    def pause_run(self, run_id: RunId | str) -> RunMetadata:
        """Has an Active run refuse writes until `resume_run`."""
        return self.update_status(run_id, RunStatus.PAUSED)

    def resume_run(self, run_id: RunId | str) -> RunMetadata:
        """Has a Paused run take writes again."""
        return self.update_status(run_id, RunStatus.ACTIVE)

    def cancel_run(self, run_id: RunId | str) -> RunMetadata:
        """Ends an Active or Paused run that is no longer wanted."""
        return self.update_status(run_id, RunStatus.CANCELLED)

    def archive_run(self, run_id: RunId | str) -> RunMetadata:
        """Puts a run away for good: `query_runs` hides it, all that it wrote stays readable."""
        return self.update_status(run_id, RunStatus.ARCHIVED)

    # -- queries ------------------------------------------------------------------------------

    def query_runs(self, query: RunQuery | None = None, **conditions: Any) -> list[RunMetadata]:
        """The runs that meet all conditions: a RunQuery, or its fields as keywords.

        Keywords beside a query stand in for the query's own. Archived runs are hidden unless
        `include_archived`, or the status Archived, asks for them. The narrowest index is read,
        within the bounds of time: of the parent, else of the first tag, else of the status. Raises
        WrongType, InvalidKey, ConstraintViolation for conditions that are none.
        """
        if query is not None and not isinstance(query, RunQuery):
            raise errors.WrongType("RunQuery", values.class_name(query))
        wanted = _Wanted(replace(query or RunQuery(), **conditions))
        with closing(self._engine.open_pin()) as pin:
            ends = merge(
                *(
                    self._entries(pin, prefix, wanted.first_us, wanted.end_us)
                    for prefix in wanted.prefixes
                )
            )
            found = self._records(pin, ends)
            return [
                runs.metadata_of(run, record)
                for run, record in islice(filter(wanted.takes, found), wanted.limit)
            ]

    def query_by_status(self, status: RunStatus | str) -> list[RunMetadata]:
        """All runs that have the status."""
        return self._found(runs.by_status(RunStatus.of(status).number))

    def query_by_tag(self, tag: str) -> list[RunMetadata]:
        """All runs that have the tag, archived ones included."""
        return self._found(runs.by_tag(*runs.checked_tags([tag])))

    def get_child_runs(self, parent_run: RunId | str) -> list[RunMetadata]:
        """All runs that were created with this parent, archived ones included; the parent may have
        been deleted."""
        return self._found(runs.by_parent(to_run(parent_run).bytes))

    def _found(self, prefix: bytes) -> builtins.list[RunMetadata]:
        with closing(self._engine.open_pin()) as pin:
            found = self._records(pin, self._entries(pin, prefix))
            return [runs.metadata_of(run, record) for run, record in found]

    def _records(self, pin: Pinned, ends: Iterable[bytes]) -> Iterator[tuple[RunId, RunRecord]]:
        for end in ends:
            run = _run_of(end)
            record = runs.read_at(self._engine, run, pin)
            if record is None:
                raise errors.InternalError(f"The run {run} has an entry and no record.")
            yield run, record

    def _entries(
        self, pin: Pinned, prefix: bytes, first_us: int = 0, end_us: int = values.INT_MAX
    ) -> Iterator[bytes]:
        """The ends of the names of an index's entries, created in [first_us, end_us), in order."""
        after = prefix + (first_us - 1).to_bytes(8, "big") + LAST_RUN if first_us > 0 else None
        stop = prefix + end_us.to_bytes(8, "big")
        batch = BATCH_FIRST
        while first_us < end_us:
            names, _ = self._engine.scan(RunId.DEFAULT, TAG, prefix, pin, after, batch, NAMES, stop)
            for name in names:
                yield name[-END_SIZE:]
            if len(names) < batch:
                return
            after = names[-1]
            batch = min(2 * batch, BATCH_MAX)

    # -- tags and metadata --------------------------------------------------------------------

    def add_tags(self, run_id: RunId | str, new_tags: Iterable[str]) -> RunMetadata:
        """Adds tags, in any status; those that the run has already change nothing."""
        return runs.change_tags(self._engine, to_run(run_id), add=new_tags)

    def remove_tags(self, run_id: RunId | str, tags_to_remove: Iterable[str]) -> RunMetadata:
        """Takes tags away, in any status; those that the run does not have change nothing."""
        return runs.change_tags(self._engine, to_run(run_id), remove=tags_to_remove)

    def update_metadata(self, run_id: RunId | str, metadata: Any) -> RunMetadata:
        """Replaces the metadata, in any status; all else stays."""
        return runs.change_metadata(self._engine, to_run(run_id), metadata)

    # -- the end ------------------------------------------------------------------------------

    def delete_run(self, run_id: RunId | str) -> None:
        """Deletes the run and everything that it owns, in every primitive. There is no way back;
        `archive_run` only puts it away.

        One commit makes it so: a reader sees all of the run or nothing. Snapshots that are older
        see all of it until they are closed. The memory is given back in small steps, before this
        returns, or later if an older snapshot is open or this process dies; until then writes to
        the run raise RunError, and its id cannot be used anew. Works in any status. Children stay,
        and `get_child_runs` still finds them.

        Raises NotFound if there is no such run. Cost: a commit, and about 1 us for each key.
        """
        runs.delete(self._engine, to_run(run_id))


class _Wanted:
    """A RunQuery, checked, and the indexes that answer it."""

    def __init__(self, query: RunQuery) -> None:
        self.status = None if query.status is None else RunStatus.of(query.status)
        self.tags = () if query.tags is None else runs.checked_tags(query.tags)
        self.parent = None if query.parent_run is None else to_run(query.parent_run).bytes
        self.limit = _limit(query.limit)
        if type(query.include_archived) is not bool:
            raise errors.WrongType("bool", values.class_name(query.include_archived))
        after = _moment("created_after", query.created_after)
        before = _moment("created_before", query.created_before)
        self.first_us = 0 if after is None else _as_us(after + 1)
        self.end_us = values.INT_MAX if before is None else _as_us(before)
        self.statuses = _statuses(self.status, query.include_archived)
        self.prefixes = self._prefixes()

    def _prefixes(self) -> list[bytes]:
        if self.parent is not None:
            return [runs.by_parent(self.parent)]
        if self.tags:
            return [runs.by_tag(self.tags[0])]
        if len(self.statuses) == len(RunStatus):
            return [runs.BY_TIME]
        return [runs.by_status(number) for number in sorted(self.statuses)]

    def takes(self, found: tuple[RunId, RunRecord]) -> bool:
        """Whether a run of the index meets the other conditions."""
        record = found[1]
        return (
            record.status in self.statuses
            and (self.parent is None or record.parent == self.parent)
            and (not self.tags or set(self.tags).issubset(record.tags))
        )


def _statuses(status: RunStatus | None, include_archived: bool) -> frozenset[int]:
    if status is not None:
        return frozenset({status.number})
    return frozenset(
        each.number for each in RunStatus if include_archived or each is not RunStatus.ARCHIVED
    )


def _run_of(end: bytes) -> RunId:
    return RunId.from_bytes(end[8:])


def _chosen_id(first: RunId | str | None, second: RunId | str | None) -> RunId:
    """The one id that was given, in one place or in both."""
    given = {to_run(name) for name in (first, second) if name is not None}
    if len(given) > 1:
        raise errors.ConstraintViolation(
            "two_run_ids", "The options name another run than the first argument; give one id."
        )
    return given.pop() if given else RunId.new()


def _moment(name: str, moment: int | None) -> int | None:
    if moment is not None and type(moment) is not int:
        kind = values.class_name(moment)
        raise errors.WrongType(
            "int or None", kind, f"{name} is a {kind}; give milliseconds since 1970 as an int."
        )
    return moment


def _as_us(milliseconds: int) -> int:
    return max(0, min(milliseconds * 1000, values.INT_MAX))


def _limit(limit: int | None) -> int | None:
    if limit is None:
        return None
    if type(limit) is not int:
        kind = values.class_name(limit)
        raise errors.WrongType(
            "int or None", kind, f"limit is a {kind}; give an int, or None for no limit."
        )
    if limit < 0:
        raise errors.ConstraintViolation(
            "limit_negative", f"limit is {values.printable(limit)}; give 0 or more, None for all."
        )
    return min(limit, values.INT_MAX)
