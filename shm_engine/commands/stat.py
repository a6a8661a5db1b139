"""stat.py - `shm-engine stat`: how a database is, and how fast it goes.

Why:        versions, clients, memory, the lag of the disk behind the commits; over an interval the
            rates. Of a folder that nobody has open: what its files say.
Used by:    cli.py
Errors:     a database that goes away while it is watched ends the watching, with a line
Cost:       reads words of the segments; joins nothing, so it keeps nothing open and stops nobody
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shm_engine.commands import files
from shm_engine.commands.condition import (
    LEFT,
    Condition,
    condition_of,
    database_folder,
    durability_of,
)
from shm_engine.commands.terminal import (
    CommandError,
    bytes_text,
    columns,
    count,
    json_line,
    make_console,
    printable,
    say,
    seconds_text,
    time_text,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["stat"]

RATES: Final = (
    ("commits", "commits_per_s"),
    ("conflicts", "conflicts_per_s"),
    ("log_bytes", "log_bytes_per_s"),
    ("syncs", "syncs_per_s"),
)


def stat(path: str, *, watch: float | None, times: int | None, as_json: bool) -> int:
    """Shows it once, or every `watch` seconds, `times` times if that is given."""
    folder = database_folder(path)
    if watch is None:
        found = _look(folder)
        if as_json:
            json_line(found, indent=2)
        else:
            console = make_console()
            console.print(_picture(console, found))
        return 0
    return _watch(folder, watch, times, as_json)


# -- what there is ----------------------------------------------------------------------------


def _look(folder: Path) -> dict[str, Any]:
    with condition_of(folder) as condition:
        found: dict[str, Any] = {
            "path": str(folder),
            "state": condition.state,
            "text": condition.text(),
            "pid": condition.info.pid if condition.is_in_use and condition.info else None,
            "at_us": time.time_ns() // 1000,
        }
        if condition.is_in_use and condition.info is not None:
            found["started_us"] = condition.info.started_us
        if condition.store is not None:
            found |= _of_segments(condition)
        found["files"] = _of_files(folder, whole=not condition.is_in_use)
        return found


def _of_segments(condition: Condition) -> dict[str, Any]:
    store = condition.store
    assert store is not None
    figures = store.figures()
    durability = durability_of(store)
    logged = store.is_logged()
    found = figures | {
        "durability": durability.kind,
        "flush_interval_ms": durability.flush_interval_ms,
        "max_pending_writes": durability.max_pending_writes,
        "lag": figures["version"] - figures["durable_version"] if logged else 0,
        "living_handles": store.members(),
        "failure": store.failure(),
    }
    if condition.state == LEFT:
        found["unsaved_commits"] = condition.unsaved
    return found


def _of_files(folder: Path, whole: bool) -> dict[str, Any]:
    logs, checkpoints = files.log_versions(folder), files.checkpoint_versions(folder)
    found: dict[str, Any] = {
        "log_files": len(logs),
        "log_size": sum(files.size_of(folder / files.log_name(version)) for version in logs),
        "checkpoints": len(checkpoints),
        "checkpoint_size": sum(
            files.size_of(folder / files.checkpoint_name(version)) for version in checkpoints
        ),
        "checkpoint_version": checkpoints[-1] if checkpoints else 0,
    }
    if whole:
        found |= _newest_in_log(folder, logs, found["checkpoint_version"])
    return found


def _newest_in_log(folder: Path, logs: list[int], checkpoint: int) -> dict[str, Any]:
    """The newest commit and its time, and how many commits an open would replay."""
    newest, time_us, replayed = checkpoint, 0, 0
    for version in logs:
        name = files.log_name(version)
        try:
            log = files.read_log_file(folder / name, name, version)
        except FileNotFoundError:
            continue
        if log.verdict != "sound":
            continue
        scan = log.scan(above=checkpoint)
        replayed += scan.frames_above
        if scan.frames and scan.last_version >= newest:
            newest, time_us = scan.last_version, scan.last_us
    return {"version": newest, "last_commit_us": time_us, "commits_to_replay": replayed}


# -- once -------------------------------------------------------------------------------------


def _picture(console: Console, found: dict[str, Any]) -> Text:
    from rich.text import Text

    text = Text(printable(found["path"]), style="bold")
    text = Text.assemble(text, f"\n  {printable(found['text'])}\n")
    if found.get("failure"):
        text.append(f"  READ-ONLY: {found['failure']}\n", style="bold red")
    if found.get("unsaved_commits"):
        unsaved = count(found["unsaved_commits"], "commit")
        text.append(f"  {unsaved} in shared memory alone; the next open saves them\n", "yellow")
    rows = _rows_of_segments(found) if "version" in found else []
    cells = [((name, "cyan"), value) for name, value in rows + _rows_of_files(found)]
    return text.append_text(columns(console, cells))


def _rows_of_segments(found: dict[str, Any]) -> list[tuple[str, str]]:
    mode = found["durability"]
    if mode == "buffered":
        interval, writes = found["flush_interval_ms"], found["max_pending_writes"]
        mode += f", synced every {interval:,} ms or {writes:,} commits"
    rows = [("mode", mode)]
    if found.get("started_us"):
        up = seconds_text(max(0.0, (found["at_us"] - found["started_us"]) / 1e6))
        rows.append(("since", f"{_local(found['started_us'])} ({up})"))
    version = f"{found['version']:,}"
    if found["durability"] != "in_memory":
        lag = f"{found['lag']:,} behind" if found["lag"] else "nothing behind"
        version += f", durable {found['durable_version']:,} ({lag})"
    clients = count(found["clients"], "thread"), count(found["living_handles"], "handle")
    memory = [found[f"{name}_bytes"] for name in ("arena_used", "arena_allocated", "map_size")]
    used, taken, most = map(bytes_text, memory)
    rows += [
        ("version", version),
        ("keys", f"{found['keys']:,}"),
        ("commits", f"{found['commits']:,}, {count(found['conflicts'], 'conflict')}"),
        ("clients", ", ".join([*clients, count(found["snapshots"], "snapshot")])),
        ("memory", f"{used} used, {taken} taken, {most} at most"),
    ]
    if found["trimmed_versions"]:
        pressed = found["pressure_trimmed_versions"]
        rows.append(("trimmed", f"{found['trimmed_versions']:,} old, {pressed:,} for lack of room"))
    if found["recoveries"] or found["reaped_clients"]:
        mended = count(found["recoveries"], "commit")
        rows.append(
            ("deaths", f"{mended} mended, {count(found['reaped_clients'], 'slot')} cleared")
        )
    if found["durability"] != "in_memory":
        since = f"{bytes_text(found['log_bytes'])} since the checkpoint"
        ring = f"{bytes_text(found['log_ring_bytes'])} in the ring"
        rows.append(("log", f"{since}, {ring}, {count(found['syncs'], 'sync')}"))
    return rows


def _rows_of_files(found: dict[str, Any]) -> list[tuple[str, str]]:
    own: dict[str, Any] = found["files"]
    rows = []
    if "version" in own and "version" not in found:
        replay = count(own["commits_to_replay"], "commit")
        rows.append(("version", f"{own['version']:,}, {replay} to replay"))
        if own["last_commit_us"]:
            rows.append(("last commit", time_text(own["last_commit_us"])))
    if own["log_files"]:
        rows.append(("log files", f"{own['log_files']:,}, {bytes_text(own['log_size'])}"))
    if own["checkpoints"]:
        rows.append(
            (
                "checkpoint",
                f"version {own['checkpoint_version']:,}, {bytes_text(own['checkpoint_size'])}",
            )
        )
    return rows or [("files", "none")]


def _local(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


# -- over an interval -------------------------------------------------------------------------


def _rounds(folder: Path, seconds: float, times: int | None) -> Iterator[dict[str, Any]]:
    """What there is, with rates, once each interval."""
    before = _look(folder)
    if "version" not in before:
        raise CommandError(f"{folder} is not open, so there is nothing to watch; leave --watch out")
    done = 0
    while times is None or done < times:
        time.sleep(seconds)
        now = _look(folder)
        if "version" not in now or now["state"] == LEFT:
            raise CommandError(f"{folder} is no longer open")
        passed = max((now["at_us"] - before["at_us"]) / 1e6, 1e-6)
        for name, rate in RATES:
            grown = now[name] - before[name]  # below 0: a checkpoint, or another life
            now[rate] = round(max(0, grown) / passed, 1)
        yield now
        before = now
        done += 1


def _watch(folder: Path, seconds: float, times: int | None, as_json: bool) -> int:
    rounds = _rounds(folder, seconds, times)
    if as_json:
        for found in rounds:
            json_line(found)
        return 0
    console = make_console()
    if not console.is_terminal or console.is_dumb_terminal:
        for found in rounds:
            say(_line(found))
        return 0
    from rich.live import Live
    from rich.text import Text

    first = Text(f"watching {folder} every {seconds:g} s; Ctrl-C ends it", style="dim")
    with Live(first, console=console, auto_refresh=False) as live:
        for found in rounds:
            rates = Text(f"\n  {_rate_text(found)}", style="bold")
            live.update(_picture(console, found).append_text(rates), refresh=True)
    return 0


def _rate_text(found: dict[str, Any]) -> str:
    text = f"{found['commits_per_s']:,.0f} commits/s, {found['conflicts_per_s']:,.0f} conflicts/s"
    if found["durability"] != "in_memory":
        text += f", {bytes_text(found['log_bytes_per_s'])}/s of log"
        text += f", {found['syncs_per_s']:,.0f} syncs/s"
    return text


def _line(found: dict[str, Any]) -> str:
    lag = f", {found['lag']:,} behind" if found["durability"] != "in_memory" else ""
    at = time_text(found["at_us"], short=True)
    return f"{at} version {found['version']:,}{lag}, {_rate_text(found)}"
