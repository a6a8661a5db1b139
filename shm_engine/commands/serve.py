"""serve.py - `shm-engine serve`: a coordinator in the foreground, for a service manager.

Why:        agents come and go; a served database stays open between them, so that opening is a
            join and no recovery, and its end is the administrator's decision.
Used by:    cli.py; the main thread (it handles signals)
Errors:     exit code 1 if another coordinator serves, or the log could not be written
Crash:      as any coordinator: a client starts a successor, which leaves with the last client
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from shm_engine import errors
from shm_engine.commands.condition import durability_of
from shm_engine.commands.terminal import (
    EXIT_FAILED,
    EXIT_USAGE,
    CommandError,
    bytes_text,
    count,
    json_line,
    say,
    say_error,
    seconds_text,
)
from shm_engine.coordinator import SERVING, Coordinator, Ended, read_info
from shm_engine.database import _folder_named, _options, _prepare_folder
from shm_engine.durability import Durability
from shm_engine.recovery import ProgressLine

__all__ = ["ServeOptions", "serve"]

SIGNAL_EXIT: Final = 128


class ServeOptions:
    """What the user asked for; None is the default."""

    def __init__(
        self,
        durability: str,
        flush_interval_ms: int | None,
        max_pending_writes: int | None,
        map_size: int | None,
        max_clients: int,
    ) -> None:
        self.map_size = map_size
        self.max_clients = max_clients
        limits = {
            "flush_interval_ms": flush_interval_ms,
            "max_pending_writes": max_pending_writes,
        }
        given = {name: value for name, value in limits.items() if value is not None}
        try:
            self.durability = Durability.of(durability)
            if given and self.durability.kind != "buffered":
                named = " and ".join(f"--{name.replace('_', '-')}" for name in given)
                raise CommandError(
                    f"{named}: only --durability buffered has a use for it", EXIT_USAGE
                )
            if given:
                self.durability = Durability.buffered(**given)
        except errors.Error as error:
            raise CommandError(str(error), EXIT_USAGE) from None


def serve(path: str, options: ServeOptions, *, as_json: bool) -> int:
    """Serves until SIGTERM or Ctrl-C."""
    try:
        chosen = _options(options.durability, options.map_size, options.max_clients)
        folder = _folder_named(path)
        _prepare_folder(folder)
    except (errors.ConstraintViolation, errors.InvalidOperation) as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)  # while it recovers; then the coordinator takes them
    line = ProgressLine(f"recovering {folder}")
    coordinator = Coordinator(folder, chosen, line.show, stay=True)
    try:
        state = coordinator.take_over()
    finally:
        line.end()
    if state != SERVING:
        info = read_info(folder)
        raise CommandError(
            f"{folder} is served already, by process {info.pid if info else 'unknown'}; it leaves "
            f"when it is stopped, or when its last client goes"
        )
    if coordinator.recovery is not None:
        coordinator.recovery.warn(folder)
    ended = coordinator.serve(lambda: _say_ready(coordinator, folder, as_json))
    return _say_ended(ended, folder, as_json)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(SIGNAL_EXIT + number)


def notify(state: str) -> None:
    """Tells the service manager, if there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect(address)
        connection.sendall(state.encode())


def _say_ready(coordinator: Coordinator, folder: Path, as_json: bool) -> None:
    store = coordinator.store
    figures = store.figures()
    durability = durability_of(store)
    recovery = coordinator.recovery
    if as_json:
        value: dict[str, Any] = {
            "state": "serving",
            "path": str(folder),
            "pid": os.getpid(),
            "durability": asdict(durability),
            "version": figures["version"],
            "keys": figures["keys"],
            "map_size": store.map_size(),
            "recovery": recovery and asdict(recovery),
        }
        json_line(value)
    else:
        replayed = ""
        if recovery is not None and recovery.commits:
            took = seconds_text(recovery.seconds)
            replayed = f" ({count(recovery.commits, 'commit')} replayed in {took})"
        say(
            f"serving {folder}: {durability}, version {figures['version']:,}, "
            f"{count(figures['keys'], 'key')}{replayed}, at most {bytes_text(store.map_size())}; "
            f"process {os.getpid()}"
        )
    notify(f"READY=1\nSTATUS=serving {folder} ({durability})")


def _say_ended(ended: Ended, folder: Path, as_json: bool) -> int:
    if as_json:
        json_line({"state": "stopped", "path": str(folder)} | asdict(ended))
    if ended.failure:
        say_error(
            f"the log of {folder} could not be written: {ended.failure}. What it lacks is kept in "
            f"shared memory; the next start writes it, once the disk lets it"
        )
        return EXIT_FAILED
    if not as_json:
        stay = ""
        if ended.handles:
            stay = f"; {count(ended.handles, 'handle')} still open: a client starts a successor"
        saved = f", checkpoint {ended.checkpoint_version:,}" if ended.checkpoint_version else ""
        say(f"stopped: version {ended.version:,}{saved}{stay}")
    return 0
