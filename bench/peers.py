"""peers.py - the peers: who is measured, opened in the same way for every question.

Why:        shm_engine is used through its public calls, as a user would: a Database made by
            `ephemeral()`, handed to the workers by pickling, a registered run, a KVStore.
            LMDB is set up to be as fast as it can be in memory: its file lies in /dev/shm, no
            sync of any kind, a writable map, pages neither cleared nor read ahead; one
            transaction per operation in the form that its documentation shows (`with
            env.begin(...)`), and whatever can be done before the write lock is taken is.
            The floor is a dict of msgpack bytes: what Python itself costs.

                Host     the parent's side: makes the store, keeps it alive, removes it
                ticket   what is pickled to a worker
                Store    an open store: the worker's side, and the parent's for filling and checking
Used by:    rounds.py and every question
Errors:     ValueError for an unknown peer
"""

from __future__ import annotations

import shutil
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import lmdb
import msgpack

from bench.machine import scratch_folder
from shm_engine import Database, KVStore, RetentionPolicy, RunId

Value = dict[str, object]
Pairs = Iterable[tuple[str, Value]]

SHM_ENGINE = "shm_engine"
LMDB = "lmdb"
FLOOR = "floor"
PEERS = (SHM_ENGINE, LMDB, FLOOR)

BATCH = 1000
SEQ_FIRST = 1 << 20
"""The first sequence number in a value: its encoding is five bytes long from here to 2**32."""

_MAX_READERS = 64


def make_value(owner: int) -> Value:
    """Return the map of the benchmarks: seven fields of mixed types, 100 bytes when encoded."""
    return {
        "seq": SEQ_FIRST,
        "agent": f"agent-{owner:02d}",
        "step": 42,
        "state": "running",
        "score": 0.75,
        "done": False,
        "note": "n" * 28,
    }


def encode(value: object) -> bytes:
    """Encode with a packer of its own (the slow, plain way; the loops keep theirs)."""
    data = msgpack.packb(value)
    if not isinstance(data, bytes):
        raise TypeError(f"packb returned {type(data).__name__}")
    return data


def _blocks(pairs: Pairs) -> Iterator[list[tuple[str, Value]]]:
    rest = iter(pairs)
    while block := list(islice(rest, BATCH)):
        yield block


@dataclass(frozen=True)
class ShmTicket:
    database: Database
    run: RunId


@dataclass(frozen=True)
class LmdbTicket:
    path: Path
    map_size: int


@dataclass(frozen=True)
class FloorTicket:
    """Every process makes its own dict: the floor is shared by nobody."""


Ticket = ShmTicket | LmdbTicket | FloorTicket


class ShmStore:
    """The engine: `database`, `kv` and `run` are what the loops call."""

    peer = SHM_ENGINE

    def __init__(self, ticket: ShmTicket) -> None:
        self.database = ticket.database
        self.run = ticket.run
        self.kv = KVStore(self.database)

    def fill(self, pairs: Pairs) -> None:
        for block in _blocks(pairs):
            self.kv.mset(self.run, block)

    def read(self, key: str) -> object:
        return self.kv.get(self.run, key)

    def write(self, key: str, value: object) -> None:
        self.kv.put(self.run, key, value)

    def remove(self, key: str) -> None:
        self.kv.delete(self.run, key)

    def read_count(self, key: str) -> int:
        value = self.kv.get(self.run, key)
        return value if isinstance(value, int) else 0

    def close(self) -> None:
        self.database.close()


class LmdbStore:
    """LMDB: `begin` is what the loops call, once per operation."""

    peer = LMDB

    def __init__(self, ticket: LmdbTicket) -> None:
        self.environment = lmdb.open(
            str(ticket.path / "data"),
            map_size=ticket.map_size,
            subdir=False,
            sync=False,
            metasync=False,
            writemap=True,
            map_async=True,
            meminit=False,
            readahead=False,
            max_readers=_MAX_READERS,
        )
        self.begin = self.environment.begin

    def fill(self, pairs: Pairs) -> None:
        for block in _blocks(pairs):
            items = [(key.encode(), encode(value)) for key, value in block]
            with self.begin(write=True) as txn:
                txn.cursor().putmulti(items)

    def read(self, key: str) -> object:
        with self.begin() as txn:
            data = txn.get(key.encode())
        return None if data is None else msgpack.unpackb(data)

    def write(self, key: str, value: object) -> None:
        with self.begin(write=True) as txn:
            txn.put(key.encode(), encode(value))

    def remove(self, key: str) -> None:
        with self.begin(write=True) as txn:
            txn.delete(key.encode())

    def read_count(self, key: str) -> int:
        with self.begin() as txn:
            data = txn.get(key.encode())
        return 0 if data is None else int.from_bytes(data, "little")

    def close(self) -> None:
        self.environment.close()


class FloorStore:
    """A dict of encoded values; `ordered` gives the sorted keys for a scan."""

    peer = FLOOR

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self._ordered: list[str] = []

    def fill(self, pairs: Pairs) -> None:
        for key, value in pairs:
            self.data[key] = encode(value)

    def read(self, key: str) -> object:
        data = self.data.get(key)
        return None if data is None else msgpack.unpackb(data)

    def write(self, key: str, value: object) -> None:
        self.data[key] = encode(value)

    def remove(self, key: str) -> None:
        self.data.pop(key, None)

    def read_count(self, key: str) -> int:
        data = self.data.get(key)
        return 0 if data is None else int(msgpack.unpackb(data))

    def ordered(self, prefix: str, count: int) -> list[str]:
        """Return the first `count` keys from `prefix` on; the sorted list is made once."""
        if len(self._ordered) != len(self.data):
            self._ordered = sorted(self.data)
        first = bisect_left(self._ordered, prefix)
        return self._ordered[first : first + count]

    def close(self) -> None:
        self.data.clear()


Store = ShmStore | LmdbStore | FloorStore


def attach(ticket: Ticket) -> Store:
    """Open the store that a ticket stands for, in whatever process this is called."""
    match ticket:
        case ShmTicket():
            return ShmStore(ticket)
        case LmdbTicket():
            return LmdbStore(ticket)
        case FloorTicket():
            return FloorStore()


class Host:
    """Makes a fresh, empty store of a peer and removes it in the end; a context manager.

    `map_size` is in bytes. `keep_last` sets the run's retention to so many versions; None leaves
    the engine's default, which keeps every version.
    """

    def __init__(self, peer: str, map_size: int, keep_last: int | None = None) -> None:
        self.peer = peer
        self._folder: Path | None = None
        self.ticket: Ticket
        if peer == SHM_ENGINE:
            database = Database.ephemeral(map_size=map_size)
            run = database.begin_run()
            if keep_last is not None:
                database.set_retention(run, RetentionPolicy.KeepLast(keep_last))
            self.ticket = ShmTicket(database, run)
        elif peer == LMDB:
            self._folder = Path(
                tempfile.mkdtemp(prefix="shm_engine-bench-lmdb-", dir=scratch_folder())
            )
            self.ticket = LmdbTicket(self._folder, map_size)
        elif peer == FLOOR:
            self.ticket = FloorTicket()
        else:
            raise ValueError(f"unknown peer {peer!r}: one of {', '.join(PEERS)}")
        self.store = attach(self.ticket)

    @property
    def is_shared(self) -> bool:
        """Tell whether workers see what the parent writes (all peers but the floor)."""
        return self.peer != FLOOR

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.store.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
