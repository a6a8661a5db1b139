"""survey_run.py - the survey's run: begun, ended, and not left Active on any way out.

Why:        whoever looks into a store that was kept must see what each survey has come to:
                 the survey's run      Completed | Failed (why) | Cancelled, by a signal
                 └── a run per agent   Completed by the agent itself
                                       Failed by the parent, with the signal that killed the agent
                                       Cancelled, when the survey ended without it
            A run that has ended takes no writes, so it ends after the last of them.
Used by:    run.py; the main thread
Invariants: when the block is left, neither the run nor a child of it is Active, unless the store
            takes no writes any more (test_demo.py)
Errors:     the engine's; those of the clean-up are passed over
"""

from __future__ import annotations

import contextlib
import os
from types import TracebackType

from shm_engine.demo.store import DemoStore
from shm_engine.demo.survey import SourceTree
from shm_engine.errors import Error
from shm_engine.primitives.run_index import RunIndex
from shm_engine.runs import RunStatus

SURVEY_TAG = "survey"


class SurveyRun:
    """A new Active run; a context manager that is left when all agents are gone."""

    def __init__(self, store: DemoStore, tree: SourceTree, workers: int) -> None:
        self._store = store
        metadata = {
            "folder": os.fsencode(tree.root),
            "files": len(tree.files),
            "workers": workers,
        }
        created = RunIndex(store.database).create_run_with_options(
            tags=[SURVEY_TAG], metadata=metadata
        )
        self.id = created.run_id
        self._has_ended = False

    def __enter__(self) -> SurveyRun:
        return self

    def complete(self) -> None:
        """The survey is done; every agent has ended its own run before."""
        RunIndex(self._store.database).complete_run(self.id)
        self._has_ended = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._has_ended:
            return
        with contextlib.suppress(Error):
            runs = RunIndex(self._store.database)
            for child in runs.get_child_runs(self.id):
                if child.status is RunStatus.ACTIVE:
                    runs.cancel_run(child.run_id)
            if isinstance(error, Exception):
                runs.fail_run(self.id, str(error).partition("\n")[0])
            else:
                runs.cancel_run(self.id)
