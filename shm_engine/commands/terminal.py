"""terminal.py - what the commands say, and how they ask and end.

Why:        one way to say an error, a size, a time, and to ask; so that all commands look alike and
            behave alike in a pipe, in a narrow terminal and without one.
Used by:    the other modules of commands; cli.py
Errors:     CommandError carries the exit code; `run` turns it and the engine's errors into one line
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

from shm_engine import errors

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = [
    "EXIT_FAILED",
    "EXIT_USAGE",
    "CommandError",
    "ask",
    "bytes_text",
    "columns",
    "count",
    "json_line",
    "make_console",
    "parse_size",
    "printable",
    "run",
    "say",
    "say_error",
    "seconds_text",
    "time_text",
]

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
WRAP_FROM: Final = 16
EXIT_PIPE: Final = 128 + signal.SIGPIPE
UNITS: Final = ("KiB", "MiB", "GiB", "TiB")
SIZE: Final = re.compile(r"(\d+)\s*([kmgt]?)(i?b)?", re.IGNORECASE)

Cell = str | tuple[str, str]


class CommandError(Exception):
    """The command cannot be done; the message says why, the code how the process ends."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run(command: Callable[[], int]) -> int:
    """The command's exit code; what it raises becomes one line on standard error."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except CommandError as error:
        say_error(str(error))
        return error.exit_code
    except errors.Error as error:
        say_error(str(error))
    except BrokenPipeError:
        # Who read the output has had enough. The interpreter would complain at its end.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except OSError as error:
        say_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return EXIT_FAILED


def printable(text: str) -> str:
    r"""The text with escapes for what would move a terminal's cursor or cannot be encoded.

    >>> print(printable("a\n\x1b[2J" + chr(0xDCFF)))
    a\n\x1b[2J\udcff
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def say_error(text: str) -> None:
    """One line on standard error."""
    sys.stdout.flush()
    print(_fitted(f"error: {printable(text)}", sys.stderr), file=sys.stderr, flush=True)


def say(text: str = "") -> None:
    """One line on standard output, at once; a terminal gets it wrapped at words."""
    print(_fitted(text, sys.stdout), flush=True)


def _fitted(text: str, stream: TextIO) -> str:
    if not stream.isatty():
        return text
    width = max(WRAP_FROM, shutil.get_terminal_size().columns - 1)
    return textwrap.fill(
        text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def json_line(value: Any, indent: int | None = None) -> None:
    """One JSON value on standard output."""
    print(json.dumps(value, indent=indent, ensure_ascii=False), flush=True)


def make_console() -> Console:
    """The terminal, or plain text where there is none; never wider than it, no markup."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())


def columns(console: Console, rows: Sequence[Sequence[Cell]], right: int = -1) -> Text:
    """Rows as lines, two columns in, two apart; the last column wraps within a terminal's width.

    Args:
        rows: Cells are text, or (text, style); control characters are shown escaped.
        right: The column that stands at its right edge.
    """
    from rich.text import Text

    whole = Text()
    texts = [[_cell(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    start = sum(widths[:-1]) + 2 * len(widths)
    room = console.width - start if console.is_terminal else 0
    for row in texts:
        line = Text()
        for number, cell in enumerate(row[:-1]):
            gap = " " * (widths[number] - len(cell))
            line.append("  ").append(gap if number == right else "").append_text(cell)
            line.append("" if number == right else gap)
        wrapped = row[-1].wrap(console, room) if room >= WRAP_FROM else [row[-1]]
        for number, part in enumerate(wrapped):
            line.append(f"\n{' ' * start}" if number else "  ").append_text(part)
        line.rstrip()
        whole.append("\n" if whole else "").append_text(line)
    return whole


def _cell(cell: Cell) -> Text:
    from rich.text import Text

    text, style = (cell, "") if isinstance(cell, str) else cell
    return Text(printable(text), style=style)


def ask(question: str, yes: bool) -> bool:
    """Whether to go on: yes if it was said so before, or where nobody can be asked."""
    if yes or not sys.stdin.isatty():
        return True
    sys.stdout.flush()
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def count(number: int, noun: str, ending: str = "s") -> str:
    """The number with its noun.

    >>> count(1, "key"), count(2000, "key")
    ('1 key', '2,000 keys')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else ending)


def bytes_text(size: float) -> str:
    """A size as people read it.

    >>> bytes_text(512), bytes_text(2048), bytes_text(1 << 30)
    ('512 B', '2.0 KiB', '1.0 GiB')
    """
    if size < 1024:
        return f"{size:,.0f} B"
    for unit in UNITS:
        size /= 1024
        if size < 1024 or unit == UNITS[-1]:
            break
    return f"{size:,.1f} {unit}" if size < 100 else f"{size:,.0f} {unit}"


def parse_size(text: str) -> int:
    """The bytes of "4096", "512MiB", "2G".

    >>> parse_size("1m"), parse_size("2 GiB")
    (1048576, 2147483648)
    """
    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no size; write 512MiB, 2GiB or a number of bytes")
    power = " kmgt".index(found[2].lower() or " ")
    return int(found[1]) << (10 * power)


def seconds_text(seconds: float) -> str:
    """A duration as people read it.

    >>> seconds_text(0.0123), seconds_text(75), seconds_text(90000)
    ('12 ms', '1 min 15 s', '1 d 1 h')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = int(seconds)
    for small, unit, large, name in ((60, "s", 3600, "min"), (3600, "min", 86400, "h")):
        if whole < large:
            return f"{whole // small} {name} {whole % small // (small // 60)} {unit}"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def time_text(time_us: int, short: bool = False) -> str:
    """A commit's time, UTC.

    >>> time_text(1700000000123456)
    '2023-11-14T22:13:20.123456Z'
    """
    seconds, micros = divmod(time_us, 1_000_000)
    try:
        parts = time.gmtime(seconds)
    except (OverflowError, ValueError, OSError):
        return f"{time_us} us"
    if short:
        return f"{time.strftime('%m-%d %H:%M:%S', parts)}.{micros // 1000:03}"
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', parts)}.{micros:06}Z"
