"""durable.py - the question what a commit costs when it has to outlive its processes, or the power.

Why:        The modes are compared with each other, and strict with what the disk itself can do and
            with stores that promise the same: each acknowledged write is on the disk. All write
            into the same folder of the same file system, one after the other, in every round.

                in_memory, no_durability, buffered, strict      1 and 2 processes, a client each
                strict, lmdb, sqlite, redis                     1, 2, 4 clients; strict 16 and 64
                fdatasync_overwrite, fdatasync_append           one process, no store at all

            A client is a thread; 4 clients are 4 processes, 16 and 64 are 4 processes with 4 and 16
            threads each. LMDB syncs as it does by default, SQLite is in WAL mode with
            synchronous=FULL, Redis runs with appendonly yes and appendfsync always.
Used by:    __main__.py
Errors:     a peer that is not installed is left out, and a note says so
Crash:      the Redis server is a child of this process, ended by its process object
"""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from bench import stats
from bench.crew import Crew, Place, Task
from bench.machine import disk_folder, file_system, stolen_seconds
from bench.options import Options
from bench.peers import SEQ_FIRST, encode, make_value
from bench.results import Answer
from shm_engine import Database, Durability, KVStore, RunId

MODES = ("in_memory", "no_durability", "buffered", "strict")
PEERS = ("lmdb", "sqlite", "redis")
RAW = ("fdatasync_overwrite", "fdatasync_append")
PROCESSES_MAX = 4
_KEYS = 1000
_FRAME = 192
"""Bytes that a put of this bench takes in the log."""
_RAW_FILE = 16 << 20
_FLUSH_EVERY = 64
_TIMEOUT_S = 30.0

Put = Callable[[str, dict[str, object]], object]


@dataclass(frozen=True)
class Contest:
    """Who writes, and how many clients at once."""

    peer: str
    clients: int

    @property
    def processes(self) -> int:
        return min(self.clients, PROCESSES_MAX)

    @property
    def threads(self) -> int:
        """Of each process."""
        return self.clients // self.processes


@dataclass(frozen=True)
class Ticket:
    """What a worker needs to join."""

    peer: str
    folder: Path
    database: Database | None = None
    port: int = 0


@dataclass(frozen=True)
class Lap:
    """What the threads of one process did: calls and waits of each, and when it ended."""

    calls: list[int]
    waits_ns: list[bytes]
    begin_ns: int
    end_ns: int


def contests() -> list[Contest]:
    """All of a round, in their order: what is compared runs close together."""
    found = [Contest(mode, clients) for clients in (1, 2) for mode in MODES]
    found += [Contest(raw, 1) for raw in RAW]
    for clients in (1, 2, 4):
        found += [Contest(peer, clients) for peer in PEERS]
        if clients == 4:
            found.append(Contest("strict", clients))
    return [*found, Contest("strict", 16), Contest("strict", 64)]


# -- the peers --------------------------------------------------------------------------------


def redis_server() -> str | None:
    """The path of redis-server, None where it is not installed."""
    return shutil.which("redis-server")


class Redis:
    """A connection that knows SET and GET; what a thread needs, without a library."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self._socket.makefile("rb")

    def _ask(self, *parts: bytes) -> bytes:
        packed = [b"*%d\r\n" % len(parts)]
        packed += [b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]
        self._socket.sendall(b"".join(packed))
        return self._stream.readline()

    def set(self, key: bytes, data: bytes) -> None:
        answer = self._ask(b"SET", key, data)
        if answer != b"+OK\r\n":
            raise ConnectionError(f"redis said {answer!r}")

    def get(self, key: bytes) -> bytes | None:
        size = int(self._ask(b"GET", key)[1:])
        return None if size < 0 else self._stream.read(size + 2)[:-2]

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


@contextmanager
def running_redis(folder: Path) -> Iterator[int]:
    """A server of its own on a free port; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(redis_server()), "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--dir", str(folder), "--save", "", "--appendonly", "yes"]
    command += ["--appendfsync", "always", "--daemonize", "no"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + _TIMEOUT_S
            while True:
                try:
                    Redis(port).close()
                    break
                except OSError:
                    if server.poll() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
            yield port
        finally:
            server.terminate()


def open_lmdb(folder: Path) -> Any:
    return lmdb.open(str(folder / "lmdb"), map_size=1 << 28, subdir=False, max_readers=64)


def open_sqlite(folder: Path) -> sqlite3.Connection:
    found = sqlite3.connect(folder / "sqlite", timeout=_TIMEOUT_S, isolation_level=None)
    found.execute("PRAGMA journal_mode=WAL")
    found.execute("PRAGMA synchronous=FULL")
    found.execute("CREATE TABLE IF NOT EXISTS kv (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")
    return found


@contextmanager
def host(peer: str, folder: Path, options: Options) -> Iterator[Ticket]:
    """An empty store of the peer, until the block ends."""
    if peer in MODES:
        mode = Durability.of(peer)
        with Database.open(folder / "store", mode, map_size=options.map_size) as database:
            yield Ticket(peer, folder, database)
    elif peer == "redis":
        with running_redis(folder) as port:
            yield Ticket(peer, folder, port=port)
    else:
        if peer == "sqlite":
            open_sqlite(folder).close()
        elif peer == "lmdb":
            open_lmdb(folder).close()
        yield Ticket(peer, folder)


class Joined:
    """One process's access; each of its threads asks for a put of its own."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self._lmdb = open_lmdb(ticket.folder) if ticket.peer == "lmdb" else None
        self._to_close: list[Any] = [self._lmdb] if self._lmdb else []

    def put(self) -> Put:
        """A function that returns when the write is acknowledged; for one thread."""
        ticket = self._ticket
        if ticket.database is not None:
            kv = KVStore(ticket.database)
            return lambda key, value: kv.put(RunId.DEFAULT, key, value)
        if self._lmdb is not None:
            begin = self._lmdb.begin

            def put_lmdb(key: str, value: dict[str, object]) -> None:
                with begin(write=True) as txn:
                    txn.put(key.encode(), encode(value))

            return put_lmdb
        if ticket.peer == "redis":
            redis = Redis(ticket.port)
            self._to_close.append(redis)
            return lambda key, value: redis.set(key.encode(), encode(value))
        if ticket.peer == "sqlite":
            execute = open_sqlite(ticket.folder).execute
            statement = "INSERT OR REPLACE INTO kv VALUES (?, ?)"
            return lambda key, value: execute(statement, (key, encode(value)))
        return raw_put(ticket)

    def close(self) -> None:
        for one in self._to_close:
            one.close()
        if self._ticket.database is not None:
            self._ticket.database.close()


def raw_put(ticket: Ticket) -> Put:
    """Writes as many bytes as a frame has and syncs: what the file system can do at best."""
    descriptor = os.open(ticket.folder / "raw", os.O_RDWR | os.O_CREAT, 0o600)
    data = b"r" * _FRAME
    offset = 0
    if ticket.peer == "fdatasync_overwrite":
        for start in range(0, _RAW_FILE, 1 << 20):
            os.pwrite(descriptor, bytes(1 << 20), start)
        os.fsync(descriptor)

    def put(key: str, value: dict[str, object]) -> None:
        nonlocal offset
        os.pwrite(descriptor, data, offset)
        os.fdatasync(descriptor)
        offset += _FRAME
        if ticket.peer == "fdatasync_overwrite" and offset + _FRAME > _RAW_FILE:
            offset = 0

    return put


def value_in(ticket: Ticket, joined: Joined, key: str) -> bytes | None:
    """What is stored under the key, encoded; None for nothing."""
    if ticket.database is not None:
        found = KVStore(ticket.database).get(RunId.DEFAULT, key)
        return None if found is None else encode(found)
    if joined._lmdb is not None:
        with joined._lmdb.begin() as txn:
            data: bytes | None = txn.get(key.encode())
            return data
    if ticket.peer == "redis":
        redis = Redis(ticket.port)
        try:
            return redis.get(key.encode())
        finally:
            redis.close()
    connection = open_sqlite(ticket.folder)
    try:
        row = connection.execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])
    finally:
        connection.close()


# -- a run ------------------------------------------------------------------------------------


def key_of(client: int, number: int) -> str:
    return f"durable/{client}/{number % _KEYS}"


def run(place: Place, ticket: Ticket, threads: int, seconds: float) -> Lap:
    """Worker: join, wait for the release, write until the time is over, leave."""
    joined = Joined(ticket)
    calls = [0] * threads
    waits = [array("Q") for _ in range(threads)]
    begin_ns = 0
    ends_ns = [0] * threads
    failures: list[BaseException] = []
    go = threading.Event()
    warm = threading.Barrier(threads + 1)

    def write(thread: int) -> None:
        try:
            put = joined.put()
            client = place.index * threads + thread
            value = make_value(client)
            clock, note = time.monotonic_ns, waits[thread].append
            number = 0

            def once() -> int:
                nonlocal number
                value["seq"] = SEQ_FIRST + number
                before = clock()
                put(key_of(client, number), value)
                after = clock()
                number += 1
                note(after - before)
                return after

            for _ in range(3):
                once()
            del waits[thread][:]
            warm.wait()
            go.wait()
            until = begin_ns + int(seconds * 1e9)
            now = begin_ns
            while now < until:
                now = once()
            calls[thread], ends_ns[thread] = number, now
        except BaseException as error:
            failures.append(error)
            warm.abort()

    crowd = [threading.Thread(target=write, args=(thread,)) for thread in range(threads)]
    for one in crowd:
        one.start()
    try:
        warm.wait()
        begin_ns = place.line.wait(place.index)
    except threading.BrokenBarrierError:
        raise failures[0] from None
    finally:
        go.set()
        for one in crowd:
            one.join()
        joined.close()
    if failures:
        raise failures[0]
    return Lap(calls, [wait.tobytes() for wait in waits], begin_ns, max(ends_ns))


def losses(ticket: Ticket, contest: Contest, laps: list[Lap]) -> list[str]:
    """One line for each client whose newest write is not there."""
    if ticket.peer in RAW:
        return []
    found = []
    joined = Joined(Ticket(ticket.peer, ticket.folder, None, ticket.port))
    try:
        for process, lap in enumerate(laps):
            for thread, calls in enumerate(lap.calls):
                client = process * contest.threads + thread
                expected = make_value(client)
                expected["seq"] = SEQ_FIRST + calls - 1
                key = key_of(client, calls - 1)
                if value_in(ticket, joined, key) != encode(expected):
                    found.append(f"{ticket.peer}: {key} is not what was written last")
    finally:
        joined.close()
    return found


def measure(crew: Crew, contest: Contest, options: Options, number: int, answer: Answer) -> None:
    """One run on an empty store: its record, and what was lost."""
    stolen = stolen_seconds()
    with ExitStack() as stack:
        top = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="shm_engine-bench-durable-", dir=disk_folder())
        )
        ticket = stack.enter_context(host(contest.peer, Path(top), options))
        task = Task(run, (ticket, contest.threads, options.seconds))
        laps: list[Lap] = crew.run([task] * contest.processes, together=True)
        answer.checks += 1
        answer.losses.extend(losses(ticket, contest, laps))
        syncs = ticket.database.metrics().syncs if ticket.database is not None else 0
    samples = [np.frombuffer(wait, dtype=np.uint64) for lap in laps for wait in lap.waits_ns]
    waits = stats.waits(samples)
    seconds = (max(lap.end_ns for lap in laps) - min(lap.begin_ns for lap in laps)) / 1e9
    answer.rounds.append(
        {
            "round": number,
            "peer": contest.peer,
            "clients": contest.clients,
            "rate": waits.count / seconds,
            "p50_us": waits.p50_us,
            "p99_us": waits.p99_us,
            "fairness": stats.fairness([len(sample) / seconds for sample in samples]),
            "syncs": syncs,
            "stolen_s": round(stolen_seconds() - stolen, 3),
        }
    )


def ask(name: str, options: Options) -> Answer:
    """Run all contests in every round; report rates, waits and ratios."""
    answer = Answer(name)
    where = disk_folder()
    answer.notes.append(f"files lie in {where.name or where} ({file_system(where)})")
    asked = contests()
    if redis_server() is None:
        answer.notes.append("redis-server is not installed: Redis was left out")
        asked = [contest for contest in asked if contest.peer != "redis"]
    with Crew(PROCESSES_MAX) as crew:
        for number in range(options.rounds):
            for contest in asked:
                measure(crew, contest, options, number, answer)
    rates: dict[Contest, list[float]] = {}
    for contest in asked:
        mine = [
            record
            for record in answer.rounds
            if (record["peer"], record["clients"]) == (contest.peer, contest.clients)
        ]
        for what, unit in (("rate", "/s"), ("p50_us", "us"), ("p99_us", "us")):
            samples = [float(str(record[what])) for record in mine]
            answer.add(f"{contest.peer}.{contest.clients}.{what}", unit, samples)
            if what == "rate":
                rates[contest] = samples
    for ours, theirs, key in compared():
        if ours in rates and theirs in rates:
            answer.add(key, "x", stats.ratios(rates[ours], rates[theirs]))
    return answer.finish()


def compared() -> list[tuple[Contest, Contest, str]]:
    """Which ratios are taken, round by round, and what they are called."""
    found = [
        (Contest(mode, clients), Contest("in_memory", clients), f"{mode}.{clients}.vs_in_memory")
        for clients in (1, 2)
        for mode in MODES[1:]
    ]
    strict = {clients: Contest("strict", clients) for clients in (1, 2, 4, 16, 64)}
    found += [(strict[1], Contest(raw, 1), f"strict.1.vs_{raw}") for raw in RAW]
    for clients in (1, 2, 4):
        found += [
            (strict[clients], Contest(peer, clients), f"strict.{clients}.vs_{peer}")
            for peer in PEERS
        ]
    found += [
        (strict[more], strict[fewer], f"strict.{more}.vs_{fewer}_clients")
        for fewer, more in ((1, 2), (2, 4), (4, 16), (16, 64))
    ]
    return found
