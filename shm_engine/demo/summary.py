"""summary.py - the summary of a run of the demo, for people and as JSON.

Why:        both come from one dictionary, so that they cannot tell different things.
Used by:    the parent, one thread
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shm_engine.demo.recorded import print_recorded
from shm_engine.demo.results import Results
from shm_engine.demo.survey import SourceTree, printable
from shm_engine.demo.view import plural, print_item, print_line, shorten

TOP_COUNT = 10
SKIPPED_SHOWN_MAX = 10
DIFFERENCES_SHOWN_MAX = 20

_TOTALS = ("files", "skipped", "bytes", "lines", "functions", "classes", "imports")


def summarize(results: Results, tree: SourceTree) -> dict[str, Any]:
    """What one snapshot says about the tree, as plain values."""
    return {
        "folder": printable(tree.root),
        "snapshot_version": results.version,
        "totals": {name: results.total(name) for name in _TOTALS}
        | {"modules_imported": results.modules_imported()},
        "most_imported": [
            {"module": module, "imports": count}
            for module, count in results.most_imported(TOP_COUNT)
        ],
        "largest_files": [
            {"path": printable(path), "bytes": facts.size, "lines": facts.lines}
            for path, facts in results.largest_files(TOP_COUNT)
        ],
        "skipped": [
            {"path": printable(path), "kind": skipped.kind, "reason": skipped.reason}
            for path, skipped in [*results.skipped(), *tree.skipped]
        ],
        "folders_left_out": tree.folders_left_out,
        "links_not_followed": tree.links_not_followed,
    }


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """The summary for people, no wider than the console."""
    _print_totals(console, summary)
    _print_top(console, summary)
    _print_skipped(console, summary)
    _print_pool(console, summary)
    print_recorded(console, summary)
    _print_verdict(console, summary)


def _print_totals(console: Console, summary: dict[str, Any]) -> None:
    totals = summary["totals"]
    version = summary["snapshot_version"]
    print_line(console, "")
    print_line(console, f"Summary, read from one snapshot (version {version:,})", "bold")
    print_item(
        console,
        f"{plural(totals['files'], 'file')}, {plural(totals['lines'], 'line')},"
        f" {plural(totals['functions'], 'function')}, {plural(totals['classes'], 'class', 'es')},",
    )
    print_item(
        console,
        f"{plural(totals['imports'], 'import')}"
        f" of {plural(totals['modules_imported'], 'module')},"
        f" {totals['bytes'] / 2**20:,.1f} MiB",
    )


def _print_top(console: Console, summary: dict[str, Any]) -> None:
    if not summary["largest_files"]:
        return
    half = max(24, min(60, (console.width - 8) // 2))
    modules = Table(box=None, pad_edge=False, header_style="bold", width=half - 8)
    modules.add_column("most imported", no_wrap=True, overflow="ellipsis", ratio=1)
    modules.add_column("imports", justify="right", no_wrap=True)
    for entry in summary["most_imported"]:
        modules.add_row(Text(printable(entry["module"])), f"{entry['imports']:,}")
    files = Table(box=None, pad_edge=False, header_style="bold", width=half + 8)
    files.add_column("largest files", no_wrap=True, overflow="ellipsis", ratio=1)
    files.add_column("lines", justify="right", no_wrap=True)
    files.add_column("KiB", justify="right", no_wrap=True)
    for entry in summary["largest_files"]:
        path = Text(shorten(entry["path"], half - 10))
        files.add_row(path, f"{entry['lines']:,}", f"{entry['bytes'] / 1024:,.0f}")
    both = Table.grid(padding=(0, 2))
    both.add_row("", modules, files)
    print_line(console, "")
    console.print(both)


def _print_skipped(console: Console, summary: dict[str, Any]) -> None:
    skipped = summary["skipped"]
    print_line(console, "")
    if skipped:
        kinds: dict[str, int] = {}
        for entry in skipped:
            kinds[entry["kind"]] = kinds.get(entry["kind"], 0) + 1
        counted = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
        print_line(console, f"Skipped: {counted}", "bold")
        for entry in skipped[:SKIPPED_SHOWN_MAX]:
            print_item(console, f"{entry['path']}: {entry['reason']}")
        if len(skipped) > SKIPPED_SHOWN_MAX:
            print_item(
                console, f"... and {len(skipped) - SKIPPED_SHOWN_MAX:,} more (--json lists all)"
            )
    else:
        print_line(console, "Skipped: no file")
    if summary["folders_left_out"]:
        count = plural(summary["folders_left_out"], "folder")
        print_item(console, f"not entered: {count} of installed packages")
    if summary["links_not_followed"]:
        count = plural(summary["links_not_followed"], "link")
        print_item(console, f"not followed: {count} to folders")


def _print_pool(console: Console, summary: dict[str, Any]) -> None:
    seconds = summary["seconds"]
    if not summary["agents"]:
        return
    print_line(console, "")
    print_line(console, "The pool", "bold")
    for agent in summary["agents"]:
        print_item(
            console,
            f"worker {agent['worker']}: {plural(agent['files'], 'file')}"
            f" ({agent['files_per_s']:,.0f}/s), {plural(agent['commits'], 'commit')},"
            f" {plural(agent['conflicts'], 'conflict')}, {agent['state']}",
        )
    for death in summary["deaths"]:
        print_item(console, death_text(death))
    if killed := summary["coordinator"]:
        print_item(console, coordinator_text(killed))
    if summary["workers"] == 1:
        print_item(console, "one worker only: none was killed, for nobody could take its file over")
    killed = sum(death["planned"] for death in summary["deaths"])
    pool = plural(summary["workers"], "worker") + (f", {killed} killed half-way" * bool(killed))
    print_item(
        console,
        f"{seconds['agents']:.1f} s with the store ({pool}),"
        f" {seconds['recount']:.1f} s for the recount in one process without it",
    )


def _reopened_text(reopened: dict[str, Any] | None) -> str:
    if reopened is None:
        return ""
    return (
        f", before and after the store was closed and opened again"
        f" ({reopened['seconds'] * 1000:,.0f} ms, version {reopened['version']:,}); nothing is lost"
    )


def death_text(death: dict[str, Any]) -> str:
    """One sentence on an agent's death and what became of its file."""
    how = "was killed with SIGKILL" if death["planned"] else f"died ({death['exit']})"
    text = f"worker {death['worker']} (pid {death['pid']}) {how}"
    if death["file"] is None:
        return f"{text}, holding no file"
    text += f", holding {death['file']}"
    if death["taken_over_by"] is None:
        return f"{text}; nobody took it over"
    return f"{text}; worker {death['taken_over_by']} took it over after {death['after_ms']:.1f} ms"


def coordinator_text(killed: dict[str, Any]) -> str:
    """One sentence on the coordinator's death and its successor."""
    text = f"coordinator (pid {killed['pid']}) was killed with SIGKILL"
    if killed["successor_pid"] is None:
        return f"{text}; no process took over"
    meanwhile = plural(killed["commits_meanwhile"], "commit")
    return (
        f"{text}; process {killed['successor_pid']} took over after {killed['after_ms']:,.0f} ms,"
        f" {meanwhile} went on meanwhile"
    )


def _print_verdict(console: Console, summary: dict[str, Any]) -> None:
    found = summary["differences"]
    print_line(console, "")
    if not found and not summary["checked_files"]:
        print_line(console, "Nothing to check: this folder holds no file whose name ends in .py.")
        return
    if not found:
        print_line(
            console,
            f"Checked: {plural(summary['checked_files'], 'file')} and"
            f" {plural(summary['checked_counters'], 'counter')} agree with the plain recount"
            f"{_reopened_text(summary['reopened'])}."
            " Each file has one event and one trace tree.",
            "bold green",
        )
        if summary["path"] is not None:
            print_line(
                console, f"Kept in {summary['path']}; look with: shm-engine stat {summary['path']}"
            )
        return
    places = plural(len(found), "place")
    print_line(console, f"DIFFERENT from what must be there in {places}:", "bold red")
    for text in found[:DIFFERENCES_SHOWN_MAX]:
        print_item(console, text)
    if len(found) > DIFFERENCES_SHOWN_MAX:
        print_item(
            console, f"... and {len(found) - DIFFERENCES_SHOWN_MAX:,} more (--json lists all)"
        )
    if summary["modified_files"]:
        print_line(
            console,
            f"Modified while the demo ran: {plural(summary['modified_files'], 'file')};"
            " that explains a difference there.",
        )
