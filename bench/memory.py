"""memory.py - the question how much memory a key takes beyond its own bytes.

Why:        Every byte of overhead is paid once per key. Counted are the arena's bytes in use,
            before and after, less the bytes of the user's key and of the encoded value, for keys
            that count up (they share long prefixes, which a radix tree likes) and for random ones
            (which it does not). LMDB's share is its used pages, counted in the same way.
Used by:    __main__.py
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from bench.options import Options
from bench.peers import FLOOR, Host, LmdbStore, ShmStore, Store, encode, make_value
from bench.results import Answer

_SEED = 20_11


def counting(count: int) -> Iterator[str]:
    """Yield keys as an agent pool makes them: one prefix, a number that counts up."""
    return (f"task/{number}" for number in range(count))


def scattered(count: int) -> Iterator[str]:
    """Yield random keys of 32 hexadecimal digits, the same in every run."""
    picker = random.Random(_SEED)
    return (f"{picker.getrandbits(128):032x}" for _ in range(count))


KEYS: dict[str, Callable[[int], Iterator[str]]] = {"": counting, "random_": scattered}


def used_bytes(store: Store) -> float:
    """Return how many bytes the store says that it uses."""
    match store:
        case ShmStore():
            return float(store.database.metrics().arena_used_bytes)
        case LmdbStore():
            pages: int = store.environment.info()["last_pgno"] + 1
            size: int = store.environment.stat()["psize"]
            return float(pages * size)
    raise ValueError(f"{store.peer} does not count its memory")


def ask(name: str, options: Options) -> Answer:
    """Fill a small and a large store of each peer, with both kinds of keys."""
    answer = Answer(name)
    sizes = {"small": options.count(100_000, 2_000), "large": options.count(1_000_000, 20_000)}
    for peer in options.peers:
        for size, count in sizes.items() if peer != FLOOR else ():
            for kind in KEYS:
                _measure(answer, peer, size, kind, count, options)
    return answer.finish()


def _measure(answer: Answer, peer: str, size: str, kind: str, count: int, options: Options) -> None:
    value = make_value(0)
    payload = len(encode(value)) * count + sum(len(key) for key in KEYS[kind](count))
    with Host(peer, options.map_size) as host:
        before = used_bytes(host.store)
        host.store.fill((key, value) for key in KEYS[kind](count))
        taken = used_bytes(host.store) - before
        answer.checks += 1
        for key in KEYS[kind](count):
            if host.store.read(key) != value:
                answer.losses.append(f"{peer}: {key} is not there")
    answer.rounds.append(
        {
            "peer": peer,
            "keys": count,
            "kind": kind or "counting",
            "taken_bytes": taken,
            "payload_bytes": payload,
        }
    )
    overhead = (taken - payload) / count
    answer.add(f"{peer}.{size}_{kind}overhead", "bytes over key and value", [overhead])
