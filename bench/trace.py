"""trace.py - the question what traces cost: recorded, found again as a tree, a million of them.

Why:        Agents record every step, so a trace may cost little: one commit with the record, its
            entries in four indexes and one for each tag. When something went wrong its tree is
            read; and nothing is ever removed but with the run, so a run must take a million.

                record   record(run, ToolCall of 100 bytes, two tags), a commit each
                tree     get_tree over 10,000 nodes, ten below each
                fill     1,000,000 traces in one run, 1,000 to a commit; bytes for each
Used by:    __main__.py
Invariants: every call, node and filled trace has a number, and each is found exactly once
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgpack

from bench.alone import EngineWorkload, measure, of_engine
from bench.options import Options
from bench.peers import BATCH, SHM_ENGINE, Host, ShmStore, Store
from bench.results import Answer, engine_is_asked
from bench.stats import NS_PER_MS, NS_PER_S
from bench.workload import Call, Lane, Loop, Tally, WrongAnswer

TOOL = "search"
_QUERY = "what do the other agents know of it"
RESULT = "r" * 34
DURATION_MS = 150
_BELOW = 10
_TREE_READS = 5


def traces_of(store: ShmStore) -> Any:
    from shm_engine import TraceStore

    return TraceStore(store.database)


def arguments_of(number: int) -> dict[str, object]:
    """Return the arguments of a call; with its name, result and time it takes 100 bytes."""
    return {"query": _QUERY, "call": number}


def tags_of(owner: int) -> list[str]:
    return [f"agent-{owner:02d}", "tools"]


def numbers_wrong(found: Iterable[Any], calls: int, what: str) -> list[str]:
    """Return what is wrong with traces that should have the numbers 0 to calls - 1, once each."""
    numbers = sorted(trace.trace_type.arguments["call"] for trace in found)
    if numbers == list(range(calls)):
        return []
    missing = sorted(set(range(calls)) - set(numbers))
    return [f"{what}: {len(numbers)} traces, {calls} were acknowledged; missing: {missing[:5]}"]


class Record(EngineWorkload):
    name = "record"
    title = "trace with two tags, a commit each"
    bytes_per_call = 1_280

    def fill(self, store: Store, processes: int) -> None:
        """The run starts without traces."""

    def losses(self, store: Store, tallies: Sequence[Tally]) -> list[str]:
        engine = of_engine(store)
        traces, run = traces_of(engine), engine.run
        acknowledged, count = sum(tally.calls for tally in tallies), traces.count(run)
        found = []
        if count != acknowledged:
            found.append(f"the run counts {count} traces, {acknowledged} were acknowledged")
        by_type = len(traces.query_by_type(run, "ToolCall"))
        if by_type != acknowledged:
            found.append(f"{by_type} traces by type, {acknowledged} were acknowledged")
        for tally in tallies:
            tag = tags_of(tally.index)[0]
            found += numbers_wrong(traces.query_by_tag(run, tag), tally.calls, tag)
        return found

    def shm_light(self, store: ShmStore, lane: Lane) -> Loop:
        from shm_engine import ToolCall

        record, run, tags = traces_of(store).record, store.run, tags_of(lane.index)

        def loop(first: int, last: int) -> None:
            for i in range(first, last):
                call = ToolCall(TOOL, {"query": _QUERY, "call": i}, RESULT, DURATION_MS)
                record(run, call, tags)

        return loop

    def shm_checked(self, store: ShmStore, lane: Lane) -> Call:
        from shm_engine import ToolCall

        record, run, tags = traces_of(store).record, store.run, tags_of(lane.index)
        packer, clock, note = msgpack.Packer, time.monotonic_ns, lane.waits_ns.append
        newest = ""

        def call(i: int) -> int:
            nonlocal newest
            packer()
            begin = clock()
            made = record(
                run, ToolCall(TOOL, {"query": _QUERY, "call": i}, RESULT, DURATION_MS), tags
            )
            end = clock()
            if made == newest or not made.startswith("trace-"):
                raise WrongAnswer(f"record gave {made!r} after {newest!r}")
            newest = made
            note(end - begin)
            return end

        return call


# -- the tree ----------------------------------------------------------------------------------


def node_of(number: int) -> str:
    return f"node-{number}"


def parent_of(number: int) -> str | None:
    return node_of((number - 1) // _BELOW) if number else None


def plant(store: ShmStore, nodes: int) -> None:
    """Record a tree of so many nodes, ten below each."""
    from shm_engine import Thought, TraceOptions

    record_many = traces_of(store).record_many
    for first in range(0, nodes, BATCH):
        record_many(
            store.run,
            [
                (Thought(f"thought {number}"), TraceOptions(node_of(number), parent_of(number)))
                for number in range(first, min(first + BATCH, nodes))
            ],
        )


def tree_losses(store: ShmStore, nodes: int) -> list[str]:
    """Return what the tree lacks, has in excess, or holds in another place."""
    tree = traces_of(store).get_tree(store.run, node_of(0))
    walked = [] if tree is None else list(tree.walk())
    parents = {trace.id: trace.parent_id for _, trace in walked}
    wanted = {node_of(number): parent_of(number) for number in range(nodes)}
    found = []
    if len(walked) != nodes:
        found.append(f"the tree has {len(walked)} nodes, {nodes} were recorded")
    for node, parent in wanted.items():
        if parents.get(node, "nowhere") != parent:
            found.append(f"{node} is below {parents.get(node, 'nowhere')}, recorded below {parent}")
    return found


def _tree(answer: Answer, options: Options) -> None:
    nodes, samples = options.count(10_000, 500), []
    with Host(SHM_ENGINE, options.map_size) as host:
        store = of_engine(host.store)
        plant(store, nodes)
        get_tree, run, root = traces_of(store).get_tree, store.run, node_of(0)
        get_tree(run, root)
        for number in range(options.rounds):
            for _ in range(_TREE_READS):
                begin = time.monotonic_ns()
                get_tree(run, root)
                samples.append((time.monotonic_ns() - begin) / NS_PER_MS)
            answer.rounds.append(
                {"round": number, "nodes": nodes, "tree_ms": samples[-_TREE_READS:]}
            )
        answer.checks += 1
        answer.losses.extend(tree_losses(store, nodes))
    answer.add(f"{SHM_ENGINE}.tree_ms", "ms", samples)


# -- a million ---------------------------------------------------------------------------------


def fill(store: ShmStore, count: int) -> None:
    """Record so many traces, a block to a commit; each has a tag of its block and a common one."""
    from shm_engine import ToolCall, TraceOptions

    record_many = traces_of(store).record_many
    for first in range(0, count, BATCH):
        tags = [f"block-{first // BATCH}", "tools"]
        record_many(
            store.run,
            [
                (ToolCall(TOOL, arguments_of(number), RESULT, DURATION_MS), TraceOptions(tags=tags))
                for number in range(first, min(first + BATCH, count))
            ],
        )


def fill_losses(store: ShmStore, count: int) -> list[str]:
    """Return what is wrong with the count and, block by block, with the traces themselves."""
    traces, run = traces_of(store), store.run
    found = []
    if traces.count(run) != count:
        found.append(f"the run counts {traces.count(run)} traces, {count} were recorded")
    for first in range(0, count, BATCH):
        tag = f"block-{first // BATCH}"
        numbers = [trace.trace_type.arguments["call"] for trace in traces.query_by_tag(run, tag)]
        if numbers != list(range(first, min(first + BATCH, count))):
            found.append(f"{tag}: {len(numbers)} traces, from {numbers[:1]} to {numbers[-1:]}")
    return found


def _fill(answer: Answer, options: Options) -> None:
    count = options.count(1_000_000, 20_000)
    with Host(SHM_ENGINE, options.map_size) as host:
        store = of_engine(host.store)
        before, begin = store.database.metrics().arena_used_bytes, time.monotonic_ns()
        fill(store, count)
        rate = count * NS_PER_S / (time.monotonic_ns() - begin)
        size = (store.database.metrics().arena_used_bytes - before) / count
        answer.checks += 1
        answer.losses.extend(fill_losses(store, count))
    answer.rounds.append({"traces": count, "rate": rate, "bytes_per_trace": size})
    answer.add(f"{SHM_ENGINE}.fill_rate", "/s", [rate])
    answer.add(f"{SHM_ENGINE}.bytes_per_trace", "bytes", [size])
    answer.add(f"{SHM_ENGINE}.filled", "traces", [count])


def ask(name: str, options: Options) -> Answer:
    """Measure recording in rounds, then the tree, then a million traces in one run."""
    answer = Answer(name)
    if not engine_is_asked(answer, options):
        return answer
    measure(answer, [(Record(), 1)], options)
    _tree(answer, options)
    _fill(answer, options)
    return answer.finish()
