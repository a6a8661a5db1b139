"""options.py - what the user asked the bench to do.

Why:        One frozen value that every question gets, so that a result file can say in full how it
            was made.
Used by:    __main__.py (parse), every question
Errors:     argparse ends the program with a usage message
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from bench.machine import map_size_allowed
from bench.peers import PEERS
from bench.workload import HARNESSES

QUESTIONS = (
    "put",
    "get",
    "incr",
    "batch",
    "scan",
    "rmw",
    "append",
    "state",
    "trace",
    "four",
    "queries",
    "section",
    "million",
    "memory",
    "opening",
    "kill",
    "wait",
    "refusal",
    "erase",
    "durable",
    "recovery",
)
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """How to measure. `scale` shrinks what the questions fill and repeat (1.0 = in full)."""

    questions: tuple[str, ...] = QUESTIONS
    peers: tuple[str, ...] = PEERS
    harnesses: tuple[str, ...] = HARNESSES
    processes: tuple[int, ...] = (1, 2, 4)
    rounds: int = 5
    seconds: float = 1.0
    scale: float = 1.0
    map_size: int = 0
    keep_last: int | None = None
    short: bool = False
    plots: bool = True
    strict: bool = False
    output: Path = RESULTS

    def count(self, full: int, least: int) -> int:
        """Return a count, scaled, and at least so many."""
        return max(least, int(full * self.scale))

    def as_json(self) -> dict[str, object]:
        shown = asdict(self)
        shown["output"] = self.output.name
        return shown


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError("process counts are positive numbers, as in 1,2,4")
    return numbers


def _names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return an argparse type for a comma-separated choice of known names."""

    def names(text: str) -> tuple[str, ...]:
        chosen = tuple(part.strip() for part in text.split(","))
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return chosen

    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure shm_engine against LMDB and a dict of msgpack, and check for lost "
        "writes. Leave the machine alone meanwhile.",
    )
    parser.add_argument(
        "asked",
        nargs="*",
        type=_names(QUESTIONS),
        metavar="NAME",
        help=f"only these questions: {', '.join(QUESTIONS)}",
    )
    parser.add_argument(
        "--short",
        action="store_true",
        help="under a minute: checks lost writes and that figures exist, not speed",
    )
    parser.add_argument(
        "--only",
        type=_names(QUESTIONS),
        metavar="NAMES",
        help="the same, comma-separated",
    )
    parser.add_argument(
        "--peers", type=_names(PEERS), metavar="NAMES", help=f"only these peers: {', '.join(PEERS)}"
    )
    parser.add_argument(
        "--harness",
        type=_names(HARNESSES),
        metavar="NAMES",
        help=f"only these harnesses: {', '.join(HARNESSES)}",
    )
    parser.add_argument("--processes", type=_numbers, metavar="N,N", help="default 1,2,4")
    parser.add_argument("--rounds", type=int, metavar="N", help="default 5; 1 with --short")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="length of one run; default 1, 0.05 with --short"
    )
    parser.add_argument(
        "--map-size",
        type=int,
        metavar="MIB",
        help="room for a store; default 2048, or half of what is free if less",
    )
    parser.add_argument(
        "--keep-last",
        type=int,
        metavar="N",
        help="retention of the measured run; default: every version is kept",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default bench/results")
    parser.add_argument("--no-plots", action="store_true", help="write no pictures")
    parser.add_argument(
        "--strict", action="store_true", help="exit with 2 when a speed goal is missed"
    )
    return parser


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Turn the command line into Options; ends the program on a mistake."""
    parser = _parser()
    given = parser.parse_args(arguments)
    options = Options(map_size=map_size_allowed())
    if given.short:
        options = replace(options, short=True, rounds=1, seconds=0.05, scale=0.02)
    changes = {
        "questions": tuple(chain(*given.asked)) or given.only,
        "peers": given.peers,
        "harnesses": given.harness,
        "processes": given.processes,
        "rounds": given.rounds,
        "seconds": given.seconds,
        "keep_last": given.keep_last,
        "output": given.output,
    }
    options = replace(options, **{name: new for name, new in changes.items() if new is not None})
    if given.map_size is not None:
        options = replace(options, map_size=given.map_size << 20)
    options = replace(options, plots=not given.no_plots, strict=given.strict)
    if options.rounds < 1 or options.seconds <= 0 or options.map_size < 8 << 20:
        parser.error("rounds and seconds must be positive, the map size at least 8 MiB")
    return options
