"""test_doctest.py - every example in a docstring and in the README is true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import shm_engine

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)


def module_names() -> list[str]:
    """All modules of the package, the compiled one and those behind links included."""
    walk = pkgutil.walk_packages(shm_engine.__path__, shm_engine.__name__ + ".")
    below = [info.name for info in walk if not info.name.endswith("__main__")]
    return [shm_engine.__name__, *below]


@pytest.mark.parametrize("name", module_names())
def test_the_examples_of_the_docstrings_hold(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS, report=True)
    assert results.failed == 0


@pytest.mark.parametrize(
    "name",
    [
        "shm_engine",
        "shm_engine._core",
        "shm_engine.database",
        "shm_engine.errors",
        "shm_engine.primitives.kv",
        "shm_engine.primitives.run_index",
        "shm_engine.runs",
        "shm_engine.primitives.trace_store",
        "shm_engine.trace_ids",
        "shm_engine.traces",
        "shm_engine.transaction",
        "shm_engine.values",
        "shm_engine.versions",
    ],
)
def test_what_users_call_has_examples(name: str) -> None:
    found = doctest.DocTestFinder().find(importlib.import_module(name))
    assert any(test.examples for test in found)


def test_the_quick_start_of_the_readme_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # The fence that ends a block would be taken for output.
    text = FENCE.sub("", (ROOT / "README.md").read_text("utf-8"))
    test = doctest.DocTestParser().get_doctest(text, {}, "README", "README.md", 0)
    assert test.examples, "the README has no example to run"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test)
    assert runner.summarize().failed == 0
