"""test_demo.py - the demo from start to end, with real processes that are really killed."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from shm_engine import events, keys
from shm_engine.database import Database
from shm_engine.demo.agent import STOP
from shm_engine.demo.audit import Audit, audit
from shm_engine.demo.pool import Death, Pool, PoolFailure, Progress
from shm_engine.demo.recount import Recount, differences, recount
from shm_engine.demo.results import read_results
from shm_engine.demo.store import DemoStore
from shm_engine.demo.survey import find_sources
from shm_engine.demo.survey_run import SurveyRun
from shm_engine.durability import Durability
from shm_engine.primitives.event_log import EventLog
from shm_engine.primitives.run_index import RunIndex
from shm_engine.primitives.state_cell import StateCell
from shm_engine.primitives.trace_store import TraceStore
from shm_engine.trace_layout import COUNT
from shm_engine.traces import Thought

COMMAND = [sys.executable, "-m", "shm_engine.cli", "demo"]
MARK = "SHM_ENGINE_DEMO_TEST"
TIMEOUT_S = 100
SMALL_FILES = 20


@pytest.fixture(scope="module")
def small_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty files that parse and one that does not."""
    root = tmp_path_factory.mktemp("small")
    for number in range(SMALL_FILES):
        source = f"import os\nimport sys, mod{number}\n\ndef f{number}():\n    pass\n"
        (root / f"file{number:02}.py").write_text(source)
    (root / "bad.py").write_text("def\n")
    return root


@pytest.fixture(scope="module")
def slow_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that take about two seconds of parsing together: long enough to interrupt."""
    root = tmp_path_factory.mktemp("slow")
    source = "".join(
        f"def f{number}(a, b={number}):\n    return [a + b * {number} for b in range(a)]\n"
        for number in range(400)
    )
    for number in range(150):
        (root / f"file{number:03}.py").write_text(f"import mod{number % 7}\n{source}")
    return root


@dataclass
class Outcome:
    code: int
    output: str
    errors: str

    def summary(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.output)
        return value


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Outcome]]:
    """Run the command to its end; after the test, nothing that it made may be left."""
    home = _Home(tmp_path)

    def run(*arguments: str, **environment: str) -> Outcome:
        done = subprocess.run(
            [*COMMAND, *arguments],
            capture_output=True,
            env=home.environment | environment,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())

    yield run
    home.check_empty()


class _Home:
    """Where one demo runs: its processes bear a mark, its folders lie in one place."""

    def __init__(self, folder: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = folder / "home"
        self.folder.mkdir()
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("FORCE_COLOR", "COLUMNS", "LINES")
        } | {MARK: self.mark, "TMPDIR": str(self.folder)}

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def segments(self) -> set[str]:
        """The shared memory that this demo's processes have mapped."""
        names = set()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                names |= {
                    mapped.path.removesuffix(" (deleted)")
                    for mapped in process.memory_maps()
                    if mapped.path.startswith("/dev/shm/")
                }
        return names

    def check_empty(self) -> None:
        _, alive = psutil.wait_procs(self.processes(), timeout=10)
        assert [process for process in alive if process.is_running()] == []
        assert list(self.folder.iterdir()) == []


# ---- the whole job


def test_the_pool_surveys_a_tree_although_a_worker_is_killed(
    demo: Callable[..., Outcome], small_tree: Path
) -> None:
    outcome = demo(str(small_tree), "--workers", "2", "--json")
    assert outcome.code == 0, outcome.errors
    summary = outcome.summary()
    assert summary["ok"]
    assert summary["differences"] == []
    assert summary["totals"] == {
        "files": SMALL_FILES,
        "skipped": 1,
        "bytes": sum(path.stat().st_size for path in small_tree.glob("file*.py")),
        "lines": 5 * SMALL_FILES,
        "functions": SMALL_FILES,
        "classes": 0,
        "imports": 3 * SMALL_FILES,
        "modules_imported": 2 + SMALL_FILES,
    }
    assert summary["most_imported"][:2] == [
        {"module": "os", "imports": SMALL_FILES},
        {"module": "sys", "imports": SMALL_FILES},
    ]
    assert [entry["path"] for entry in summary["skipped"]] == ["bad.py"]
    (death,) = summary["deaths"]
    assert death["planned"]
    assert death["exit"] == "SIGKILL"
    assert death["file"] == sorted(path.name for path in small_tree.iterdir())[SMALL_FILES // 2]
    assert {death["worker"], death["taken_over_by"]} == {0, 1}
    assert death["after_ms"] > 0
    assert sum(agent["files"] for agent in summary["agents"]) == SMALL_FILES + 1
    assert sorted(agent["state"] for agent in summary["agents"]) == ["finished", "killed"]


def test_what_the_agents_recorded_is_told(demo: Callable[..., Outcome], small_tree: Path) -> None:
    outcome = demo(str(small_tree), "--workers", "2", "--json")
    assert outcome.code == 0, outcome.errors
    summary = outcome.summary()
    files = SMALL_FILES + 1
    assert summary["events"]["survey"] == files
    assert summary["events"]["agents"] >= files + 3  # two started, one finished
    assert summary["chain"] == {"verified": True, "logs": 3, "errors": []}
    assert summary["traces"] == {"count": 2 * files + 1, "trees": files}
    (death,) = summary["deaths"]
    runs = summary["runs"]
    assert runs["by_status"] == {"Completed": 2, "Failed": 1}
    assert runs["survey"]["status"] == "Completed"
    assert {run["worker"]: (run["status"], run["error"]) for run in runs["agents"]} == {
        death["worker"]: ("Failed", "SIGKILL"),
        death["taken_over_by"]: ("Completed", None),
    }
    tree = summary["tree"]
    assert (tree["why"], tree["file"]) == ("taken over", death["file"])
    assert (tree["worker"], tree["attempt"]) == (death["taken_over_by"], 2)
    root = tree["root"]
    assert (root["type"], root["content"]) == ("Thought", f"survey {death['file']}")
    assert root["tags"] == ["file", ".py"]
    (call,) = root["children"]
    size = (small_tree / death["file"]).stat().st_size
    assert call["arguments"] == {"path": death["file"], "bytes": size}
    assert call["result"] == {"functions": 1, "classes": 0, "imports": 3}
    assert (call["tool_name"], call["children"], call["duration_ms"] >= 0) == ("parse", [], True)


def test_a_file_has_one_event_and_one_tree_although_worker_and_coordinator_are_killed(
    demo: Callable[..., Outcome], slow_tree: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    outcome = demo(str(slow_tree), "-w", "2", "--path", str(kept), "--json")
    assert outcome.code == 0, outcome.errors
    summary = outcome.summary()
    assert len(summary["deaths"]) == 1
    assert summary["coordinator"] is not None
    files = {os.fsencode(path.name) for path in slow_tree.iterdir()}
    with Database.open(kept) as database:
        (survey,) = RunIndex(database).query_by_tag("survey")
        told = EventLog(database).read_by_type(survey.run_id, "surveyed")
        assert Counter(event.payload["file"] for event in told) == Counter(files)
        assert EventLog(database).len(survey.run_id) == len(files)
        roots = TraceStore(database).query_by_tag(survey.run_id, "file")
        assert Counter(root.metadata["file"] for root in roots) == Counter(files)
        claimed = [
            event.payload["file"]
            for child in RunIndex(database).get_child_runs(survey.run_id)
            for event in EventLog(database).read_by_type(child.run_id, "claimed")
        ]
        assert set(claimed) == files


def test_the_coordinator_is_killed_and_nothing_is_lost(
    demo: Callable[..., Outcome], slow_tree: Path
) -> None:
    outcome = demo(str(slow_tree), "-w", "2", "--json")
    assert outcome.code == 0, outcome.errors
    summary = outcome.summary()
    assert (summary["ok"], summary["store"], summary["path"]) == (True, "buffered", None)
    killed = summary["coordinator"]
    assert killed["successor_pid"] not in (None, killed["pid"])
    assert 0 < killed["after_ms"] < 10_000
    assert 0 < killed["version"] < summary["snapshot_version"]
    reopened = summary["reopened"]
    assert reopened["same"]
    assert reopened["version"] >= summary["snapshot_version"]
    assert f"Coordinator (pid {killed['pid']}) killed with SIGKILL" in outcome.errors
    assert f"Process {killed['successor_pid']} took over after" in outcome.errors
    assert "Store closed and opened again from its files" in outcome.errors


def test_a_store_with_a_path_is_kept_and_used_again(
    demo: Callable[..., Outcome], small_tree: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    for _ in range(2):
        outcome = demo(str(small_tree), "-w", "2", "--path", str(kept))
        assert outcome.code == 0, outcome.errors
        assert f"Kept in {kept}; look with: shm-engine stat {kept}" in outcome.output
        assert "nothing is lost" in outcome.output
    assert "runs in the store: 4 Completed, 2 Failed" in outcome.output
    with Database.open(kept) as database:
        assert database.metrics().keys > 2 * SMALL_FILES
        surveys = RunIndex(database).query_by_tag("survey")
        assert [survey.metadata["files"] for survey in surveys] == [SMALL_FILES + 1] * 2


def test_the_coordinator_of_others_is_not_killed(
    demo: Callable[..., Outcome], small_tree: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    with Database.open(kept, Durability.buffered()):
        outcome = demo(str(small_tree), "-w", "2", "--path", str(kept), "--json")
    assert outcome.code == 0, outcome.errors
    assert outcome.summary()["coordinator"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--ephemeral", "--path", "kept"], 2, "--ephemeral keeps nothing"),
        (["--path", "/dev/null"], 1, "cannot open the store"),
    ],
)
def test_a_path_that_cannot_be_used_is_an_error(
    demo: Callable[..., Outcome], small_tree: Path, arguments: list[str], code: int, text: str
) -> None:
    outcome = demo(str(small_tree), *arguments)
    assert outcome.code == code
    assert outcome.errors.startswith("error: ")
    assert text in outcome.errors


def test_the_store_may_live_in_the_process_itself(
    demo: Callable[..., Outcome], small_tree: Path
) -> None:
    outcome = demo(str(small_tree), "-w", "3", "--ephemeral", "--json")
    assert outcome.code == 0, outcome.errors
    summary = outcome.summary()
    assert (summary["ok"], summary["store"], len(summary["deaths"])) == (True, "ephemeral", 1)


def test_a_pipe_gets_plain_lines(demo: Callable[..., Outcome], small_tree: Path) -> None:
    outcome = demo(str(small_tree), "-w", "2", TERM="xterm-256color")
    assert outcome.code == 0, outcome.errors
    assert "\x1b" not in outcome.output
    assert f"{SMALL_FILES + 1} files, 2 workers" in outcome.output
    assert "killed with SIGKILL, holding file" in outcome.output
    assert "took over file" in outcome.output
    assert "Skipped: 1 unparsable\n  bad.py: SyntaxError: " in outcome.output
    assert f"Checked: {SMALL_FILES + 1} files and" in outcome.output
    assert " events in 3 logs, chain verified; 21 of the survey\n" in outcome.output
    assert "  43 traces in 21 trees\n" in outcome.output
    assert "runs: 2 Completed, 1 Failed (worker " in outcome.output
    assert "  trace of the file that was taken over, by worker " in outcome.output
    assert "    Thought survey file09.py [file, .py]\n    └── ToolCall parse, " in outcome.output


def test_one_worker_is_not_killed(demo: Callable[..., Outcome], small_tree: Path) -> None:
    outcome = demo(str(small_tree), "--workers", "1")
    assert outcome.code == 0, outcome.errors
    assert "one worker only" in outcome.output
    assert "killed with SIGKILL, holding" not in outcome.output
    assert "trace of a file that was skipped, by worker 0, attempt 1:" in outcome.output
    assert "        └── Error unparsable: SyntaxError: " in outcome.output


def test_one_file_is_taken_over_as_well(demo: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "only.py").write_text("import os\n")
    outcome = demo(str(tmp_path / "tree"), "-w", "4", "--json")
    assert outcome.code == 0, outcome.errors
    assert outcome.summary()["deaths"][0]["file"] == "only.py"


@pytest.mark.parametrize("as_json", [False, True])
def test_an_empty_folder_is_no_failure(
    demo: Callable[..., Outcome], tmp_path: Path, as_json: bool
) -> None:
    (tmp_path / "tree").mkdir()
    outcome = demo(str(tmp_path / "tree"), *(["--json"] if as_json else []))
    assert outcome.code == 0, outcome.errors
    if as_json:
        assert outcome.summary()["totals"]["files"] == 0
    else:
        assert "Nothing to check: this folder holds no file" in outcome.output


def test_odd_names_and_odd_files_do_no_harm(demo: Callable[..., Outcome], tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    names = [b"line\nbreak.py", b"\xff\xfe.py", b"\x1b[2Jclear.py", b"[red]markup.py", b".py"]
    for name in names:
        Path(os.fsdecode(bytes(tree) + b"/" + name)).write_text("import a.b\nfrom . import c\n")
    (tree / "binary.py").write_bytes(bytes(range(256)))
    (tree / "deep.py").write_text("-" * 20_000 + "1")
    (tree / "warns.py").write_text("x = '\\d'\n")
    (tree / "long.py").write_text("import " + "x" * 3000 + "\n")
    (tree / "broken.py").symlink_to("nowhere")
    os.mkfifo(tree / "pipe.py")
    outcome = demo(str(tree), "-w", "2")
    assert outcome.code == 0, outcome.errors
    assert outcome.errors == ""
    assert "\x1b" not in outcome.output
    assert "[red]markup.py" in outcome.output
    assert r"\xff\xfe.py" in outcome.output
    assert "binary.py: holds null bytes" in outcome.output
    assert "deep.py: nested too deeply for the parser" in outcome.output
    assert "broken.py: broken symbolic link" in outcome.output
    assert "pipe.py: not a regular file" in outcome.output
    assert "chain verified; 11 of the survey" in outcome.output


def test_a_difference_fails_the_command_and_is_named(small_tree: Path, tmp_path: Path) -> None:
    home = _Home(tmp_path)
    script = (
        "import sys\n"
        "from shm_engine.demo import run\n"
        "plain = run.recount\n"
        "def one_more(*arguments):\n"
        "    counted = plain(*arguments)\n"
        "    counted.imports['os'] += 1\n"
        "    return counted\n"
        "run.recount = one_more\n"
        "sys.exit(run.run_demo(run.DemoOptions(sys.argv[1], 2)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(small_tree)],
        capture_output=True,
        text=True,
        env=home.environment,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "DIFFERENT from what must be there in 1 place:" in done.stdout
    stored = f"store {SMALL_FILES}, recount {SMALL_FILES + 1}"
    assert f"counter import/os: {stored}" in done.stdout
    home.check_empty()


def test_a_terminal_gets_the_live_view(small_tree: Path, tmp_path: Path) -> None:
    home = _Home(tmp_path)
    leader, follower = pty.openpty()
    environment = home.environment | {"TERM": "xterm", "COLUMNS": "80", "LINES": "30"}
    with subprocess.Popen(
        [*COMMAND, str(small_tree), "-w", "2"], stdout=follower, stderr=follower, env=environment
    ) as process:
        os.close(follower)
        output = b""
        with contextlib.suppress(OSError):  # the end of a terminal is an error
            while chunk := os.read(leader, 65536):
                output += chunk
        os.close(leader)
        assert process.wait(TIMEOUT_S) == 0, output.decode()
    text = output.decode()
    assert "\x1b[" in text
    assert "surveyed" in text
    assert "recounted" in text
    assert "killed" in text
    assert "└── " in text
    home.check_empty()


# ---- interrupted


@pytest.mark.parametrize("store", [[], ["--ephemeral"]], ids=["coordinator", "ephemeral"])
@pytest.mark.parametrize(
    ("number", "code", "moment"),
    [
        (signal.SIGINT, 130, "workers, store"),
        (signal.SIGINT, 130, " files/s, "),
        (signal.SIGINT, 130, "recount: "),
        (signal.SIGTERM, 143, " files/s, "),
    ],
)
def test_a_signal_leaves_nothing_behind(
    slow_tree: Path, tmp_path: Path, store: list[str], number: int, code: int, moment: str
) -> None:
    home = _Home(tmp_path)
    with subprocess.Popen(
        [*COMMAND, str(slow_tree), "-w", "2", *store],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=home.environment,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if moment in line:
                break
        segments = home.segments()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, errors
    assert errors == f"interrupted ({signal.Signals(number).name}); nothing is left behind\n"
    assert segments
    home.check_empty()
    assert [name for name in segments if os.path.exists(name)] == []


def test_a_signal_beside_the_coordinators_death_leaves_nothing_behind(
    slow_tree: Path, tmp_path: Path
) -> None:
    home = _Home(tmp_path)
    with subprocess.Popen(
        [*COMMAND, str(slow_tree), "-w", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=home.environment,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Coordinator (pid "):
                break
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, errors
    home.check_empty()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_survey_leaves_no_active_run_in_a_store_that_is_kept(
    slow_tree: Path, tmp_path: Path, number: int, code: int
) -> None:
    home = _Home(tmp_path)
    kept = tmp_path / "kept"
    with subprocess.Popen(
        [*COMMAND, str(slow_tree), "-w", "2", "--path", str(kept)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=home.environment,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if " files/s, " in line:
                break
        process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, errors
    with Database.open(kept) as database:
        runs = RunIndex(database)
        assert [run.status.as_str() for run in runs.query_by_tag("survey")] == ["Cancelled"]
        assert runs.query_by_status("Active") == []
        assert runs.count() == 3
    home.check_empty()


# ---- the pool by itself


@dataclass
class Surveyed:
    """What a pool did on a store that is still open."""

    database: Database
    run: str
    workers: int
    plain: Recount
    deaths: list[Death] = field(default_factory=list)

    def audited(self) -> Audit:
        return audit(self.database, self.run, self.plain, self.workers, self.deaths)

    def differences(self) -> list[str]:
        RunIndex(self.database).complete_run(self.run)
        found = differences(read_results(self.database, self.run), self.plain)
        return found + self.audited().differences


@contextlib.contextmanager
def surveyed(
    tree: Path, workers: int, watch: Callable[[Progress], None] = lambda progress: None
) -> Iterator[Surveyed]:
    """Run a pool on an ephemeral store, which stays open; the survey's run is not yet complete."""
    sources = find_sources(str(tree))
    with Database.ephemeral() as database:
        run = str(database.begin_run())
        with Pool(database, run, sources, workers, lambda death: None) as pool:
            pool.run(watch)
        yield Surveyed(database, run, workers, recount(sources), pool.deaths)


def pool_on(
    tree: Path, workers: int, watch: Callable[[Progress], None]
) -> tuple[list[str], list[Death]]:
    """Run a pool on an ephemeral store; gives where it differs from what must be, and the dead."""
    with surveyed(tree, workers, watch) as done:
        return done.differences(), done.deaths


def test_an_agent_that_dies_unplanned_is_followed_too(slow_tree: Path) -> None:
    killed: list[int] = []

    def kill_one(progress: Progress) -> None:
        if progress.done and not killed:
            killed.append(progress.agents[1].pid)
            os.kill(killed[0], signal.SIGKILL)

    found, deaths = pool_on(slow_tree, 3, kill_one)
    assert found == []
    assert [death.pid for death in deaths if not death.planned] == killed


def test_a_pool_whose_agents_all_die_says_so(slow_tree: Path) -> None:
    def kill_all(progress: Progress) -> None:
        for agent in progress.agents if progress.done else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(agent.pid, signal.SIGKILL)

    with pytest.raises(PoolFailure, match="every worker died before the work was done") as caught:
        pool_on(slow_tree, 2, kill_all)
    assert "worker 0: SIGKILL" in str(caught.value)


def test_an_agent_that_fails_is_quoted(slow_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pool, "_store_tasks", lambda self: None)
    with pytest.raises(PoolFailure, match=r"(?s)worker \d failed:.*Traceback"):
        pool_on(slow_tree, 2, lambda progress: None)


def test_a_survey_whose_agents_all_die_is_a_failed_run(slow_tree: Path) -> None:
    def kill_all(progress: Progress) -> None:
        for agent in progress.agents if progress.done else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(agent.pid, signal.SIGKILL)

    sources = find_sources(str(slow_tree))
    with DemoStore(None, ephemeral=True) as store:
        with (
            pytest.raises(PoolFailure),
            SurveyRun(store, sources, 2) as survey,
            Pool(store.database, survey.id, sources, 2, lambda death: None) as pool,
        ):
            pool.run(kill_all)
        runs = RunIndex(store.database)
        ended = runs.get_run(survey.id)
        assert ended is not None
        assert ended.status.as_str() == "Failed"
        assert "every worker died" in str(ended.error)
        children = runs.get_child_runs(survey.id)
        assert [(run.status.as_str(), run.error) for run in children] == [("Failed", "SIGKILL")] * 2
        cells = StateCell(store.database)
        states = [cells.read(survey.id, name) for name in cells.list(survey.id)]
        assert [state and state.value["state"] for state in states] == ["dead", "dead"]


def test_an_agent_that_dies_when_all_is_done_is_found_dead_as_well(
    small_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one had hung up already, and telling it to look again was an error."""
    plain = Pool._tell

    def tell(member: Any, word: str) -> None:
        if word == STOP and member.worker == 2:
            member.process.kill()
        else:
            plain(member, word)

    monkeypatch.setattr(Pool, "_tell", staticmethod(tell))
    with surveyed(small_tree, 3) as done:
        assert done.differences() == []
        unplanned = [death for death in done.deaths if not death.planned]
        assert [death.worker for death in unplanned] in ([2], [])
        failed = RunIndex(done.database).query_by_status("Failed")
        assert [run.error for run in failed] == ["SIGKILL"] * len(done.deaths)
        assert {run.metadata["worker"] for run in failed} == {death.worker for death in done.deaths}


# ---- the audit


@pytest.fixture(scope="module")
def two_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    (root / "a.py").write_text("import os\n")
    (root / "b.py").write_text("def\n")
    return root


def _lose_an_event(done: Surveyed) -> None:
    name = events.entry_name(0)
    assert done.database._engine.delete(done.run, keys.TAG_EVENT, name)


def _tell_twice(done: Surveyed) -> None:
    EventLog(done.database).append(done.run, "surveyed", {"file": b"a.py", "worker": 0})


def _tell_of_another(done: Surveyed) -> None:
    EventLog(done.database).append(done.run, "skipped", {"file": b"c\xff.py", "worker": 7})


def _count_a_trace_more(done: Surveyed) -> None:
    done.database._engine.increment(done.run, keys.TAG_TRACE, COUNT, 1)


def _think_aloud(done: Surveyed) -> None:
    TraceStore(done.database).record(done.run, Thought("about nothing"))


def _see_a_file_more(done: Surveyed) -> None:
    done.plain.outcomes["c.py"] = done.plain.outcomes["a.py"]
    done.plain.totals["files"] += 1


def _count_one_worker_more(done: Surveyed) -> None:
    done.workers += 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda done: None, []),
        (
            _lose_an_event,
            [
                "chain of the survey's log: Missing event at sequence 0",
                "a.py: events none, recount surveyed",
                "run of worker 0: 2 files claimed, but 1 surveyed or skipped",
            ],
        ),
        (
            _tell_twice,
            [
                "a.py: events surveyed, surveyed, recount surveyed",
                "run of worker 0: 2 files claimed, but 3 surveyed or skipped",
            ],
        ),
        (_tell_of_another, [r"c\xff.py: events skipped, recount none"]),
        (_count_a_trace_more, ["traces: 6, but the files' trees have 5"]),
        (
            _think_aloud,
            ["traces: 3 trees, recount 2 files", "traces: 6, but the files' trees have 5"],
        ),
        (
            _see_a_file_more,
            [
                "c.py: events none, recount surveyed",
                "c.py: no agent's log has that it claimed it",
                "traces: 2 trees, recount 3 files",
                "traces: 5, but the files' trees have 7",
                "c.py: 0 trace trees",
            ],
        ),
        (_count_one_worker_more, ["runs of the agents: workers [0], but there were 2"]),
    ],
)
def test_the_audit_names_what_deviates(
    two_files: Path, change: Callable[[Surveyed], None], expected: list[str]
) -> None:
    with surveyed(two_files, 1) as done:
        change(done)
        RunIndex(done.database).complete_run(done.run)
        assert done.audited().differences == expected


def test_the_audit_names_runs_that_did_not_end_well(two_files: Path) -> None:
    with surveyed(two_files, 1) as done:
        runs = RunIndex(done.database)
        (child,) = runs.get_child_runs(done.run)
        runs.archive_run(child.run_id)
        assert done.audited().differences == [
            "run of the survey: Active",
            "run of worker 0: Archived",
        ]


def test_a_deviation_fails_the_command_and_is_named(small_tree: Path, tmp_path: Path) -> None:
    home = _Home(tmp_path)
    script = (
        "import sys\n"
        "from shm_engine import TraceStore, TraceType\n"
        "from shm_engine.demo import run\n"
        "complete = run.SurveyRun.complete\n"
        "def one_more(survey):\n"
        "    traces = TraceStore(survey._store.database)\n"
        "    traces.record(survey.id, TraceType.Thought('about nothing'))\n"
        "    complete(survey)\n"
        "run.SurveyRun.complete = one_more\n"
        "sys.exit(run.run_demo(run.DemoOptions(sys.argv[1], 2)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(small_tree)],
        capture_output=True,
        text=True,
        env=home.environment,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "DIFFERENT from what must be there in 2 places:" in done.stdout
    assert "  traces: 22 trees, recount 21 files\n" in done.stdout
    home.check_empty()
