"""million.py - the question whether a million keys are as fast as ten thousand.

Why:        An index that deepens or a cache that no longer fits shows only in a large store. Both
            stores stand side by side, are filled before the first round, and take turns; keys are
            picked in a scattered order, so that neighbours do not help each other.
Used by:    __main__.py
Cost:       about 1 GiB of /dev/shm; both stores of both peers live through all rounds
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field

import msgpack

from bench.crew import Crew, Place, Task
from bench.options import Options
from bench.peers import (
    FLOOR,
    SEQ_FIRST,
    Host,
    LmdbStore,
    ShmStore,
    Store,
    Ticket,
    attach,
    make_value,
)
from bench.results import Answer
from bench.stats import NS_PER_S, ratios

_STRIDE = 611_953
"""A prime: i * stride % keys visits every key once before it comes back."""
_WARM = 10
"""A tenth of the calls again, before the clock starts."""


def key_of(number: int) -> str:
    return f"million/{number}"


def scattered(call: int, keys: int) -> int:
    return call * _STRIDE % keys


@dataclass
class _Side:
    """One store of one peer: its size, how many puts it has seen, its rates round by round."""

    name: str
    host: Host
    keys: int
    puts: int = 0
    put_rates: list[float] = field(default_factory=list)
    get_rates: list[float] = field(default_factory=list)


def puts(place: Place, ticket: Ticket, keys: int, first: int, count: int) -> float:
    """Worker: `count` puts from call `first` on; returns the rate of all but the warming ones."""
    store = attach(ticket)
    try:
        warm = count // _WARM
        put_range(store, keys, first, first + warm)
        begin = time.monotonic_ns()
        put_range(store, keys, first + warm, first + count)
        return (count - warm) * NS_PER_S / (time.monotonic_ns() - begin)
    finally:
        store.close()


def gets(place: Place, ticket: Ticket, keys: int, first: int, count: int) -> float:
    """Worker: `count` gets from call `first` on; returns the rate of all but the warming ones."""
    store = attach(ticket)
    try:
        warm = count // _WARM
        get_range(store, keys, first, first + warm)
        begin = time.monotonic_ns()
        get_range(store, keys, first + warm, first + count)
        return (count - warm) * NS_PER_S / (time.monotonic_ns() - begin)
    finally:
        store.close()


def put_range(store: Store, keys: int, first: int, last: int) -> None:
    value = make_value(0)
    if isinstance(store, ShmStore):
        put, run = store.kv.put, store.run
        for i in range(first, last):
            value["seq"] = SEQ_FIRST + i
            put(run, f"million/{i * _STRIDE % keys}", value)
        return
    if not isinstance(store, LmdbStore):
        raise TypeError(f"{store.peer} is not asked this")
    begin, pack = store.begin, msgpack.Packer().pack
    for i in range(first, last):
        value["seq"] = SEQ_FIRST + i
        key, data = f"million/{i * _STRIDE % keys}".encode(), pack(value)
        with begin(write=True) as txn:
            txn.put(key, data)


def get_range(store: Store, keys: int, first: int, last: int) -> None:
    if isinstance(store, ShmStore):
        get, run = store.kv.get, store.run
        for i in range(first, last):
            get(run, f"million/{i * _STRIDE % keys}")
        return
    if not isinstance(store, LmdbStore):
        raise TypeError(f"{store.peer} is not asked this")
    begin, unpack = store.begin, msgpack.unpackb
    for i in range(first, last):
        with begin() as txn:
            unpack(txn.get(f"million/{i * _STRIDE % keys}".encode()))


def losses(store: Store, keys: int, calls: int) -> list[str]:
    """Return one line per key that does not hold its last put."""
    expected = dict.fromkeys(range(keys), SEQ_FIRST - 1)
    expected |= {scattered(i, keys): SEQ_FIRST + i for i in range(max(0, calls - keys), calls)}
    found = []
    for number, seq in expected.items():
        value = store.read(key_of(number))
        if not isinstance(value, dict) or value["seq"] != seq:
            found.append(f"{store.peer}: {key_of(number)}: {value!r}, wrote {seq}")
    return found


def _filled(peer: str, name: str, keys: int, options: Options) -> _Side:
    host = Host(peer, options.map_size // 2, options.keep_last)
    value = make_value(0)
    value["seq"] = SEQ_FIRST - 1
    host.store.fill((key_of(number), value) for number in range(keys))
    return _Side(name, host, keys)


def ask(name: str, options: Options) -> Answer:
    """Measure put and get on both stores, in turns, and compare round by round."""
    answer = Answer(name)
    sizes = {"small": options.count(10_000, 500), "large": options.count(1_000_000, 20_000)}
    count = options.count(200_000, 2_000)
    with ExitStack() as stack:
        crew = stack.enter_context(Crew(1))
        sides: list[_Side] = []
        for peer in options.peers:
            for size, keys in sizes.items() if peer != FLOOR else ():
                side = _filled(peer, size, keys, options)
                stack.callback(side.host.close)
                sides.append(side)
        for number in range(options.rounds):
            for side in sides:
                _round(crew, side, number, count, answer)
        for side in sides:
            answer.checks += 1
            answer.losses.extend(losses(side.host.store, side.keys, side.puts))
    for small, large in zip(sides[::2], sides[1::2], strict=True):
        peer = small.host.peer
        for side in (small, large):
            answer.add(f"{peer}.{side.name}_put", "/s", side.put_rates)
            answer.add(f"{peer}.{side.name}_get", "/s", side.get_rates)
        put_slowdown = ratios(small.put_rates, large.put_rates)
        get_slowdown = ratios(small.get_rates, large.get_rates)
        answer.add(f"{peer}.put_slowdown", "x slower", put_slowdown)
        answer.add(f"{peer}.get_slowdown", "x slower", get_slowdown)
    return answer.finish()


def _round(crew: Crew, side: _Side, number: int, count: int, answer: Answer) -> None:
    ticket, keys = side.host.ticket, side.keys
    [put_rate] = crew.run([Task(puts, (ticket, keys, side.puts, count))])
    side.puts += count
    [get_rate] = crew.run([Task(gets, (ticket, keys, number * count, count))])
    side.put_rates.append(put_rate)
    side.get_rates.append(get_rate)
    answer.rounds.append(
        {
            "round": number,
            "peer": side.host.peer,
            "keys": keys,
            "put_rate": put_rate,
            "get_rate": get_rate,
        }
    )
