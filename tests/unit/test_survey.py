"""test_survey.py - the survey of one file, of odd ones above all, and of a tree."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shm_engine.demo import records, survey
from shm_engine.demo.recount import Recount, differences, recount
from shm_engine.demo.results import Results
from shm_engine.demo.survey import (
    FileFacts,
    Skipped,
    find_sources,
    module_name,
    outcome_from_value,
    printable,
    survey_file,
)

WriteFile = Callable[[bytes | str], str]

SAMPLE = '''\
"""A module."""
import os, os.path
import sys
from collections import OrderedDict, deque

class Outer:
    class Inner:
        def method(self):
            import sys
            def local(): pass
    async def other(self): ...

try:
    import fast
except ImportError:
    from slow import fast
match 1:
    case 1:
        def in_case(): pass
'''


@pytest.fixture
def write(tmp_path: Path) -> WriteFile:
    def write_file(source: bytes | str) -> str:
        path = tmp_path / "sample.py"
        path.write_bytes(source.encode() if isinstance(source, str) else source)
        return str(path)

    return write_file


def facts_of(path: str, module: str = "") -> FileFacts:
    outcome = survey_file(path, module)
    assert isinstance(outcome, FileFacts), outcome
    return outcome


def reason_of(path: str) -> str:
    outcome = survey_file(path)
    assert isinstance(outcome, Skipped), outcome
    return outcome.reason


# ---- what is found in a file


def test_imports_are_counted_by_dotted_name_wherever_they_stand(write: WriteFile) -> None:
    facts = facts_of(write(SAMPLE))
    assert facts.imports == {
        "os": 1,
        "os.path": 1,
        "sys": 2,
        "collections": 1,
        "fast": 1,
        "slow": 1,
    }
    assert facts.import_count == 7


def test_definitions_have_qualified_names_in_the_order_of_the_source(write: WriteFile) -> None:
    facts = facts_of(write(SAMPLE))
    assert [(found["name"], found["kind"]) for found in facts.definitions] == [
        ("Outer", "class"),
        ("Outer.Inner", "class"),
        ("Outer.Inner.method", "function"),
        ("Outer.Inner.method.local", "function"),
        ("Outer.other", "function"),
        ("in_case", "function"),
    ]
    assert (facts.classes, facts.functions) == (2, 4)
    assert facts.lines == len(SAMPLE.splitlines())
    assert facts.size == len(SAMPLE)


@pytest.mark.parametrize(
    ("module", "file_name", "statement", "imported"),
    [
        ("pkg.sub.mod", "mod.py", "from . import x", "pkg.sub"),
        ("pkg.sub.mod", "mod.py", "from .near import x", "pkg.sub.near"),
        ("pkg.sub.mod", "mod.py", "from ..far import x", "pkg.far"),
        ("pkg.sub", "__init__.py", "from .near import x", "pkg.sub.near"),
        ("__init__", "__init__.py", "from .near import x", ".near"),
        ("mod", "mod.py", "from .near import x", ".near"),
        ("pkg.mod", "mod.py", "from ...out import x", "...out"),
    ],
)
def test_a_relative_import_counts_for_the_module_that_it_means(
    tmp_path: Path, module: str, file_name: str, statement: str, imported: str
) -> None:
    path = tmp_path / file_name
    path.write_text(statement)
    assert facts_of(str(path), module).imports == {imported: 1}


@pytest.mark.parametrize(
    ("source", "lines"), [(b"", 0), (b"x=1", 1), (b"x=1\n", 1), (b"a=1\r\nb=2\r\n", 2)]
)
def test_lines_are_those_of_any_newline_convention(
    write: WriteFile, source: bytes, lines: int
) -> None:
    assert facts_of(write(source)).lines == lines


def test_the_facts_come_back_from_their_stored_value(write: WriteFile) -> None:
    facts = facts_of(write(SAMPLE), "sample")
    skipped = Skipped("unparsable", "because")
    assert outcome_from_value(facts.to_value()) == facts
    assert outcome_from_value(skipped.to_value()) == skipped


# ---- odd files


def test_a_syntax_error_is_named_with_its_line(write: WriteFile) -> None:
    assert reason_of(write("x = 1\nprint 'old'\n")).endswith("(line 2)")


def test_null_bytes_are_a_reason_of_their_own(write: WriteFile) -> None:
    assert reason_of(write(b"x = 1\0\n")) == "holds null bytes"


def test_a_coding_cookie_is_obeyed(write: WriteFile) -> None:
    source = "# -*- coding: latin-1 -*-\ndef gr\u00fc\u00dfe(): pass\n".encode("latin-1")
    assert facts_of(write(source)).definitions[0]["name"] == "gr\u00fc\u00dfe"


def test_bytes_that_are_not_utf8_need_a_cookie(write: WriteFile) -> None:
    assert "utf-8" in reason_of(write(b"x = '\xfc'\n"))


def test_an_unknown_encoding_is_a_reason(write: WriteFile) -> None:
    assert "unknown encoding" in reason_of(write(b"# coding: nonesuch\nx = 1\n"))


def test_a_byte_order_mark_is_no_part_of_the_source(write: WriteFile) -> None:
    assert facts_of(write(b"\xef\xbb\xbfimport os\n")).imports == {"os": 1}


def test_binary_content_is_skipped(write: WriteFile) -> None:
    assert isinstance(survey_file(write(bytes(range(1, 256)) * 40)), Skipped)


def test_warnings_about_the_source_are_silenced(write: WriteFile) -> None:
    assert facts_of(write("x = '\\d'\ny = 1 is 1\n")).lines == 2  # a warning would be an error


def test_a_file_beyond_the_size_limit_is_skipped(
    write: WriteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "FILE_SIZE_MAX", 10)
    outcome = survey_file(write("x = 1234567\n"))
    assert isinstance(outcome, Skipped)
    assert outcome.kind == "too large"


def test_an_unreadable_file_is_skipped_with_the_reason_of_the_system(
    write: WriteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = write("x = 1\n")
    monkeypatch.setattr(os, "open", refuse)
    assert survey_file(path) == Skipped("unreadable", "Permission denied")


def test_a_broken_link_is_called_one(tmp_path: Path) -> None:
    link = tmp_path / "link.py"
    link.symlink_to("nowhere.py")
    assert reason_of(str(link)) == "broken symbolic link"


def test_a_link_to_itself_is_skipped(tmp_path: Path) -> None:
    link = tmp_path / "loop.py"
    link.symlink_to("loop.py")
    assert isinstance(survey_file(str(link)), Skipped)


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    assert reason_of(str(tmp_path / "pipe.py")) == "not a regular file"


def test_a_folder_is_not_a_source(tmp_path: Path) -> None:
    assert reason_of(str(tmp_path)) == "not a regular file"


def test_a_vanished_file_is_skipped(tmp_path: Path) -> None:
    assert reason_of(str(tmp_path / "gone.py")) == "No such file or directory"


@pytest.mark.parametrize(
    "source",
    [
        "(" * 100_000,
        "-" * 100_000 + "1",
        "+".join(["1"] * 50_000),
        "a" + ".b" * 50_000,
        "\n".join(" " * level + "if 1:" for level in range(150)),
        "if a: pass\n" + "elif a: pass\n" * 50_000,
    ],
    ids=["brackets", "signs", "sums", "attributes", "indents", "elifs"],
)
def test_deep_nesting_is_skipped_and_harms_nobody(write: WriteFile, source: str) -> None:
    outcome = survey_file(write(source))
    assert isinstance(outcome, Skipped)
    assert outcome.kind == "unparsable"


def test_the_outcome_does_not_depend_on_the_depth_of_the_caller(write: WriteFile) -> None:
    def from_depth(depth: int, path: str) -> survey.Outcome:
        return from_depth(depth - 1, path) if depth else survey_file(path)

    deep = sys.getrecursionlimit() * 2 // 3
    outcomes = set()
    for terms in range(200, 4000, 200):
        path = write("+".join(["1"] * terms))
        here, there = survey_file(path), from_depth(deep, path)
        assert here == there, f"{terms} terms"
        outcomes.add(type(here))
    assert outcomes == {FileFacts, Skipped} or sys.version_info >= (3, 12)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.sampled_from(["utf-7", "rot13", "idna", "hex", "unicode_escape", "utf-16", "mbcs"]).map(
            lambda name: f"# coding: {name}\nx = '\\ud800+2AA-'\n".encode()
        ),
    )
)
def test_no_bytes_whatever_make_the_survey_raise(source: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".py") as file:
        file.write(source)
        file.flush()
        outcome = survey_file(file.name)
    str(outcome.to_value()).encode()  # storable: no lone surrogates
    assert outcome_from_value(outcome.to_value()) == outcome


# ---- trees and names


def test_sources_are_listed_by_path_without_installed_packages(tmp_path: Path) -> None:
    for name in ["b.py", "a/z.py", "a/site-packages/x.py", "dist-packages/y.py", "a/data.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "folder.py" / "inner.py").write_text("")
    (tmp_path / "linked").symlink_to("a")
    (tmp_path / "broken.py").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    tree = find_sources(str(tmp_path))
    assert tree.files == ["a/z.py", "b.py", "broken.py", "folder.py/inner.py"]
    assert (tree.folders_left_out, tree.links_not_followed, tree.skipped) == (2, 1, [])


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.py").write_text("")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    tree = find_sources(str(tmp_path))
    assert tree.files == ["a.py"]
    assert tree.skipped == [("locked", Skipped("unreadable folder", "Permission denied"))]


def test_a_root_that_cannot_be_listed_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        find_sources(str(tmp_path / "none"))


def test_folders_deeper_than_the_recursion_limit_are_walked(tmp_path: Path) -> None:
    depth = sys.getrecursionlimit() + 100
    start = os.open(".", os.O_RDONLY)
    os.chdir(tmp_path)
    try:
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("deep.py").write_text("")
        files = find_sources(str(tmp_path)).files
        os.unlink("deep.py")  # all of it by hand: rmtree of pytest would run into the limit
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("d")
    finally:
        os.fchdir(start)
        os.close(start)
    assert [os.path.basename(path) for path in files] == ["deep.py"]


def test_names_are_printable_whatever_they_hold() -> None:
    assert printable("plain [bold] \u00fc.py") == "plain [bold] \u00fc.py"
    assert printable("a\x1b[2J\n\udcff\u202e.py") == r"a\x1b[2J\n\xff\u202e.py"
    printable("\ud800").encode()


def test_module_names_follow_the_import_system() -> None:
    assert module_name("a.py") == "a"
    assert module_name("p/q/__init__.py") == "p.q"
    assert module_name("__init__.py") == "__init__"


def test_a_module_name_beyond_the_length_of_keys_gets_a_key_of_its_own() -> None:
    keys = {records.import_key("\u00fc" * 2000 + tail) for tail in "ab"}
    assert len(keys) == 2
    assert all(len(key.encode()) <= 1024 for key in keys)


# ---- the recount, and the comparison with it


def results_of(plain: Recount) -> Results:
    """What a faultless store would hold for this recount."""
    return Results(7, dict(plain.outcomes), records.sum_deltas(plain.outcomes.values()), {})


@pytest.fixture
def plain(tmp_path: Path) -> Recount:
    (tmp_path / "a.py").write_text(SAMPLE)
    (tmp_path / "b.py").write_text("import os\nfrom . import a\n")
    (tmp_path / "bad.py").write_text("def\n")
    return recount(find_sources(str(tmp_path)))


def test_the_recount_sums_what_the_files_hold(plain: Recount) -> None:
    assert plain.totals["files"] == 2
    assert plain.totals["skipped"] == 1
    assert plain.totals["imports"] == 9
    assert plain.imports == Counter(
        {"os": 2, "sys": 2, "os.path": 1, "collections": 1, "fast": 1, "slow": 1, ".": 1}
    )


def test_equal_results_have_no_differences(plain: Recount) -> None:
    assert differences(results_of(plain), plain) == []


def test_each_kind_of_difference_is_named(plain: Recount) -> None:
    results = results_of(plain)
    results.counters["import/os"] += 1
    del results.counters["total/skipped"]
    results.counters["import/foreign"] = 1
    results.unfinished.append("b.py")
    results.outcomes["extra.py"] = results.outcomes.pop("a.py")
    results.outcomes["bad.py"] = Skipped("unparsable", "another reason")
    text = "\n".join(differences(results, plain))
    assert "counter import/os: store 3, recount 2" in text
    assert "counter total/skipped: store 0, recount 1" in text
    assert "counter import/foreign: store 1, recount 0" in text
    assert "b.py: its task is not done" in text
    assert "a.py: found by the recount only" in text
    assert "extra.py: found by the store only" in text
    assert "bad.py: store skipped (another reason), recount skipped (SyntaxError" in text


def test_a_file_with_other_facts_is_named_with_them(plain: Recount) -> None:
    results = results_of(plain)
    facts = results.outcomes["b.py"]
    assert isinstance(facts, FileFacts)
    results.outcomes["b.py"] = outcome_from_value(facts.to_value() | {"lines": 99})
    assert differences(results, plain) == ["b.py: lines: store 99, recount 2"]
