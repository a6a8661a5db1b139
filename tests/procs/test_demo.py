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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from shm_engine.database import Database
from shm_engine.demo.pool import Death, Pool, PoolFailure, Progress
from shm_engine.demo.recount import differences, recount
from shm_engine.demo.results import read_results
from shm_engine.demo.survey import find_sources
from shm_engine.durability import Durability

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
    with Database.open(kept) as database:
        assert database.metrics().keys > 2 * SMALL_FILES


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


def test_one_worker_is_not_killed(demo: Callable[..., Outcome], small_tree: Path) -> None:
    outcome = demo(str(small_tree), "--workers", "1")
    assert outcome.code == 0, outcome.errors
    assert "one worker only" in outcome.output
    assert "killed with SIGKILL, holding" not in outcome.output


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
    assert "DIFFERENT from the plain recount in 1 place:" in done.stdout
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


# ---- the pool by itself


def pool_on(
    tree: Path, workers: int, watch: Callable[[Progress], None]
) -> tuple[list[str], list[Death]]:
    """Run a pool on an ephemeral store; gives its differences from the recount, and the dead."""
    sources = find_sources(str(tree))
    with Database.ephemeral() as database:
        run = str(database.begin_run())
        with Pool(database, run, sources, workers, lambda death: None) as pool:
            pool.run(watch)
        return differences(read_results(database, run), recount(sources)), pool.deaths


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
