"""recorded.py - the part of the summary on events, traces and runs, with one trace tree drawn.

Why:        a tree is read at a glance if each trace is one line; what makes lines long is the names
            of files, so in a terminal their middle goes. Only the text of an error is wrapped.
Used by:    summary.py
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from rich.tree import Tree

from shm_engine.demo import audit
from shm_engine.demo.survey import printable
from shm_engine.demo.view import plural, print_item, print_line

INDENT = 4
LABEL_WIDTH_MIN = 30
PIPE_WIDTH = 100_000
"""Wide enough for any line: a pipe and a log get whole lines."""

_STYLES = {"Thought": "bold cyan", "ToolCall": "bold blue", "Error": "bold red"}

_HEADINGS = {
    audit.TAKEN_OVER: "trace of the file that was taken over",
    audit.SKIPPED: "trace of a file that was skipped",
    audit.FIRST: "trace of the first file",
}


def print_recorded(console: Console, summary: dict[str, Any]) -> None:
    """How much was recorded, whether the chains hold, how the runs ended, and one tree."""
    if not summary["agents"]:
        return
    events, traces, chain = summary["events"], summary["traces"], summary["chain"]
    print_line(console, "")
    print_line(console, "What the agents recorded", "bold")
    verified = "chain verified" if chain["verified"] else "chain NOT verified"
    print_item(
        console,
        f"{plural(events['survey'] + events['agents'], 'event')}"
        f" in {plural(chain['logs'], 'log')}, {verified}; {events['survey']:,} of the survey",
    )
    print_item(console, f"{plural(traces['count'], 'trace')} in {plural(traces['trees'], 'tree')}")
    print_item(console, _runs_text(summary))
    if summary["tree"] is not None:
        _print_tree(console, summary["tree"])


def _runs_text(summary: dict[str, Any]) -> str:
    runs = summary["runs"]
    counts = runs["by_status"]
    own = 1 + len(runs["agents"])
    where = "" if sum(counts.values()) == own else " in the store"
    text = ", ".join(f"{count:,} {status}" for status, count in counts.items())
    failed = [
        f"worker {agent['worker']}: {printable(agent['error'])}"
        for agent in runs["agents"]
        if agent["error"] is not None
    ]
    return f"runs{where}: {text}" + (f" ({', '.join(failed)})" if failed else "")


def _print_tree(console: Console, found: dict[str, Any]) -> None:
    by = f"by worker {found['worker']}, attempt {found['attempt']}"
    print_item(console, f"{_HEADINGS[found['why']]}, {by}:")
    width = max(LABEL_WIDTH_MIN, console.width - INDENT) if console.is_terminal else PIPE_WIDTH
    drawn = _drawn(found["root"], width)
    if console.is_terminal:
        console.print(Padding(drawn, (0, 0, 0, INDENT)))
        return
    options = console.options.update(width=PIPE_WIDTH)
    for line in console.render_lines(drawn, options, pad=False):
        print_line(console, "".join(segment.text for segment in line).rstrip(), indent=INDENT)


def _drawn(value: dict[str, Any], width: int) -> Tree:
    """The tree of a trace; `width` is what its label may take, 4 less with each step down."""
    label = Text(value["type"], style=_STYLES.get(value["type"], "bold"))
    label.append(f" {_told(value, width - len(value['type']) - 1)}", style="not bold default")
    tree = Tree(label, guide_style="dim")
    for child in value["children"]:
        tree.children.append(_drawn(child, width - 4))
    return tree


def _told(value: dict[str, Any], width: int) -> str:
    """What a trace says, on one line where its text can be cut."""
    if value["type"] == "Thought":
        tags = _cut(", ".join(value["tags"]), width // 3)
        return f"{_cut(value['content'], width - len(tags) - 3)} [{tags}]"
    if value["type"] == "ToolCall":
        size = value["arguments"]["bytes"]
        parts = [] if size is None else [plural(size, "byte")]
        if (result := value["result"]) is not None:
            parts += [
                plural(result["functions"], "function"),
                plural(result["classes"], "class", "es"),
                plural(result["imports"], "import"),
            ]
        told = f"{value['tool_name']}, {value['duration_ms']:,} ms"
        return f"{told}: {', '.join(parts)}" if parts else told
    return f"{value['error_type']}: {value['message']}"


def _cut(text: str, width: int) -> str:
    """The text, without its middle where it is longer than `width`."""
    width = max(width, 12)
    if len(text) <= width:
        return text
    start = (width - 3) // 3
    return f"{text[:start]}...{text[len(text) - (width - 3 - start) :]}"
