"""isolation.py - History, what transactions saw and did, and the checker of their isolation.

Why:        every append adds its own value to a list, so a list that was read tells which appends
            came before it and in which order. From that follows who depends on whom (Adya; the
            inference is that of Elle, Kingsbury and Alvaro 2020):

                T1 -ww-> T2   T2 appended right behind what T1 appended
                T1 -wr-> T2   T2 read a list that ends with what T1 appended
                T1 -rw-> T2   T1 read a list, and T2 appended right behind it
                T1 -process-> T2, T1 -realtime-> T2   T1 had ended before T2 began

            Each edge joins moments: a transaction sees the database as of its start S and changes
            it at its commit C, so ww, wr, process and realtime lead from C1 to S2 (T2 had to see
            T1), and rw leads from S1 to C2. With S before C, a cycle among moments is exactly what
            snapshot isolation forbids: a cycle of transactions in which no two rw follow one
            another. Serializable has S and C as one moment, so that every cycle counts.

                level           what must not be
                snapshot        cycles without two consecutive rw edges
                guarded         also those in which a writer commits though a list that it found
                                has changed; what a scan did not find may appear. This is the
                                engine's own isolation="snapshot"
                serializable    any cycle

Used by:    the tests in tests/unit and tests/procs
Invariants: I1 a transaction that did not commit counts as one that only read; that, too, is a view
            of one snapshot. I2 one whose outcome is unknown committed if and only if something that
            it appended was seen. I3 no cycle that a level forbids is hidden by one that it allows
Errors:     ValueError for a history that tells nothing: an id or a value occurs twice
Cost:       5,000 transactions about a second; cycles are not enumerated, each strongly connected
            component gives one of the shortest
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import networkx as nx

__all__ = [
    "Anomaly",
    "Append",
    "History",
    "Level",
    "Operation",
    "Read",
    "Record",
    "Scan",
    "Status",
    "Values",
    "check",
    "described",
]

Level = Literal["snapshot", "guarded", "serializable"]
Status = Literal["committed", "aborted", "unknown"]
Kind = Literal["ww", "wr", "process", "realtime", "rw"]
Values = tuple[int, ...]

START: Final = 0
COMMIT: Final = 1
Moment = tuple[str, int]

FINAL: Final = "the final read"
DATA: Final[tuple[Kind, ...]] = ("ww", "wr")
ORDER: Final[tuple[Kind, ...]] = ("process", "realtime")
ALL: Final[tuple[Kind, ...]] = (*DATA, *ORDER, "rw")
STARTS: Final = 100
SHOWN: Final = 4


@dataclass(frozen=True)
class Append:
    """Adds `value` to the list of `key`. Blind: without reading it, so that nothing conflicts."""

    key: str
    value: int
    blind: bool = False


@dataclass(frozen=True)
class Read:
    """The list of `key` as it was found, own appends included; () if there was none."""

    key: str
    found: Values


@dataclass(frozen=True)
class Scan:
    """All lists that were there under keys with the prefix."""

    prefix: str
    found: Mapping[str, Values]


Operation = Append | Read | Scan


@dataclass(frozen=True)
class Record:
    """One transaction.

    Attributes:
        began: A time before its first operation.
        ended: A time after its outcome was known; None if it never was. Times are of one clock for
            all processes, or None.
    """

    id: str
    process: int
    status: Status
    operations: tuple[Operation, ...]
    began: int | None = None
    ended: int | None = None

    def appends(self) -> Iterator[Append]:
        """What it added, or would have added."""
        return (one for one in self.operations if isinstance(one, Append))


@dataclass(frozen=True)
class History:
    """Transactions, those of one process in their order, and all lists after the last of them."""

    records: Sequence[Record]
    final: Mapping[str, Values]


@dataclass(frozen=True)
class Anomaly:
    """Something that must not be.

    `name` is that of Adya and Elle: G0, G1a, G1b, G1c, G-single, G-nonadjacent (several rw, no two
    in a row), G2, with -process or -realtime if the cycle needs that order; or garbage read, lost
    append, duplicate append, torn commit, incompatible orders, internal.
    """

    name: str
    transactions: tuple[str, ...]
    explanation: str

    def __str__(self) -> str:
        return f"{self.name}: {self.explanation}"


def described(anomalies: Sequence[Anomaly], most: int = 10) -> str:
    """For the message of a failed test."""
    lines = [f"{len(anomalies)} anomalies", *(str(one) for one in anomalies[:most])]
    return "\n".join(lines)


def check(history: History, level: Level) -> list[Anomaly]:
    """All that the level forbids, one cycle for each knot of transactions."""
    lists = _Lists(history)
    edges = _edges_of_lists(lists, level)
    edges["process"] = _process_edges(history.records)
    edges["realtime"] = _realtime_edges(history.records)
    return lists.anomalies + _cycles(edges, level)


def _shown(key: str, found: Values) -> str:
    if len(found) <= SHOWN:
        return f"{key}={found}"
    return f"{key}=(... {', '.join(map(str, found[-SHOWN:]))})"


# -- the lists --------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What a transaction found of others under a key; guarded if a change of it is a conflict."""

    found: Values
    guarded: bool


class _Lists:
    """The order of the values of each key, and what is wrong with the lists by themselves."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.anomalies: list[Anomaly] = []
        self.writers: dict[tuple[str, int], Record] = {}
        self.reading_appends: set[tuple[str, str]] = set()
        self.last_values: dict[tuple[str, str], int] = {}
        ids = set()
        for record in history.records:
            if record.id in ids:
                raise ValueError(f"two transactions are called {record.id}")
            ids.add(record.id)
            for append in record.appends():
                if (append.key, append.value) in self.writers:
                    raise ValueError(f"two appends of {append.value} to {append.key}")
                self.writers[append.key, append.value] = record
                self.last_values[record.id, append.key] = append.value
                if not append.blind:
                    self.reading_appends.add((record.id, append.key))
        self.keys = sorted({key for key, _ in self.writers} | self._read_keys())
        self._keys_by_prefix: dict[str, list[str]] = {}
        self.reads = {record.id: self._seen_by(record) for record in history.records}
        self.readers: dict[str, list[tuple[Values, str]]] = defaultdict(list)
        for record in history.records:
            for key, seen in self.reads[record.id].items():
                self.readers[key].append((seen.found, record.id))
        self.orders: dict[str, Values] = {}
        self.told: dict[str, set[int]] = {}
        for key in self.keys:
            self._check_key(key, history.final.get(key, ()))
        self._check_outcomes()

    def _read_keys(self) -> set[str]:
        found = set(self.history.final)
        for record in self.history.records:
            for one in record.operations:
                if isinstance(one, Read):
                    found.add(one.key)
                elif isinstance(one, Scan):
                    found |= one.found.keys()
        return found

    def _report(self, name: str, ids: Iterable[str], explanation: str) -> None:
        self.anomalies.append(Anomaly(name, tuple(ids), explanation))

    def _found_by(self, operation: Operation) -> Iterator[tuple[str, Values]]:
        """A scan reads all keys with its prefix, those that it does not find as ()."""
        if isinstance(operation, Read):
            yield operation.key, operation.found
        elif isinstance(operation, Scan):
            prefix = operation.prefix
            if prefix not in self._keys_by_prefix:
                self._keys_by_prefix[prefix] = [k for k in self.keys if k.startswith(prefix)]
            for key in self._keys_by_prefix[prefix]:
                yield key, operation.found.get(key, ())
            for key in operation.found:
                if not key.startswith(prefix):
                    raise ValueError(f"a scan of {prefix} cannot find {key}")

    def _seen_by(self, record: Record) -> dict[str, _Seen]:
        """The first list that it found of each key, less its own appends."""
        own: dict[str, Values] = {}
        seen: dict[str, _Seen] = {}
        all_own = {(one.key, one.value) for one in record.appends()}
        for one in record.operations:
            if isinstance(one, Append):
                own[one.key] = (*own.get(one.key, ()), one.value)
            for key, found in self._found_by(one):
                mine = own.get(key, ())
                guarded = isinstance(one, Read)
                if key in seen:
                    expected = seen[key].found + mine
                    seen[key].guarded |= guarded
                elif found[len(found) - len(mine) :] == mine:
                    expected = found
                    others = found[: len(found) - len(mine)]
                    seen[key] = _Seen(others, guarded or bool(others))
                else:
                    expected = (*found, *mine)
                    seen[key] = _Seen(found, guarded)
                if found != expected:
                    text = f"{record.id} read {_shown(key, found)} instead of {expected}"
                    self._report("internal", [record.id], text)
                elif any(name == key and value in seen[key].found for name, value in all_own):
                    text = f"{record.id} read {_shown(key, found)} before it had appended to it"
                    self._report("internal", [record.id], text)
        return seen

    def _check_key(self, key: str, final: Values) -> None:
        """Settles the order of the key; every other list must be a prefix of it."""
        readers = [(final, FINAL), *self.readers[key]]
        order, longest = max(readers, key=lambda pair: len(pair[0]))
        self.orders[key] = order
        # All that agree with the order are prefixes of it, so it speaks for them.
        odd = [pair for pair in readers if order[: len(pair[0])] != pair[0]]
        for found, reader in odd:
            text = (
                f"{reader} read {_shown(key, found)}, no prefix of the {_shown(key, order)} that "
                f"{longest} read"
            )
            self._report("incompatible orders", [reader, longest], text)
        told: set[int] = set()
        for found, reader in [(order, longest), *odd]:
            for value in sorted(set(found) - told):
                self._check_value(key, value, reader)
            told |= set(found)
            if len(set(found)) < len(found):
                text = f"{reader} read {key}={found}, which has a value twice"
                self._report("duplicate append", [reader], text)
        for found, reader in readers:
            self._check_end(key, found, reader)
        for value in sorted(told - set(final)):
            self._report_lost(key, value, "was read")
        self.told[key] = told

    def _check_value(self, key: str, value: int, reader: str) -> None:
        writer = self.writers.get((key, value))
        if writer is None:
            text = f"{reader} read {value} in {key}, which nobody appended"
            self._report("garbage read", [reader], text)
        elif writer.status == "aborted":
            text = f"{reader} read {value} in {key}, which {writer.id} appended and took back"
            self._report("G1a", [writer.id, reader], text)

    def _check_end(self, key: str, found: Values, reader: str) -> None:
        writer = self.writers.get((key, found[-1])) if found else None
        if writer is None:
            return
        last = self.last_values[writer.id, key]
        if found[-1] != last:
            text = (
                f"{reader} read {_shown(key, found)}, but {writer.id} went on to append {last} to "
                f"{key}"
            )
            self._report("G1b", [writer.id, reader], text)

    def _report_lost(self, key: str, value: int, how: str) -> None:
        writer = self.writers.get((key, value))
        name = "somebody" if writer is None else writer.id
        ids = [] if writer is None else [writer.id]
        text = f"{value}, which {name} appended to {key}, {how}, but {FINAL} lacks it"
        self._report("lost append", ids, text)

    def _check_outcomes(self) -> None:
        """What was acknowledged is there; what is in doubt is there as a whole or not at all."""
        final = {key: set(values) for key, values in self.history.final.items()}
        for record in self.history.records:
            if record.status == "aborted":
                continue
            appends = list(record.appends())
            missing = [one for one in appends if one.value not in final.get(one.key, ())]
            if record.status == "committed":
                for one in missing:
                    if one.value not in self.told[one.key]:
                        self._report_lost(one.key, one.value, "was acknowledged")
            elif missing and len(missing) < len(appends):
                text = f"of {record.id} only a part is there: {FINAL} lacks {missing}"
                self._report("torn commit", [record.id], text)


# -- edges ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Edge:
    """`source` came before `target`: from its start or commit to the other's."""

    kind: Kind
    source: str
    target: str
    leaves: int = COMMIT
    arrives: int = START
    key: str = ""
    found: Values = ()
    value: int = 0

    def __str__(self) -> str:
        if self.kind == "ww":
            why = f"{self.target} appended {self.value} right behind {_shown(self.key, self.found)}"
        elif self.kind == "wr":
            why = f"{self.target} read {_shown(self.key, self.found)} with {self.source}'s last"
        elif self.kind == "rw":
            read = _shown(self.key, self.found)
            why = f"{self.source} read {read} and {self.target} appended {self.value}"
        elif self.kind == "process":
            why = f"process {self.value} ran {self.source} first"
        else:
            why = f"{self.source} had ended before {self.target} began"
        return f"{self.source} -{self.kind}-> {self.target} because {why}"


_Edges = dict[Kind, list[_Edge]]


def _edges_of_lists(lists: _Lists, level: Level) -> _Edges:
    edges: _Edges = {"ww": [], "wr": [], "rw": []}
    for key, order in lists.orders.items():
        writers = [lists.writers.get((key, value)) for value in order]
        for place, (one, two) in enumerate(pairwise(writers), 1):
            if one and two and one.id != two.id:
                arrives = START if (two.id, key) in lists.reading_appends else COMMIT
                told = key, order[:place], order[place]
                edges["ww"].append(_Edge("ww", one.id, two.id, COMMIT, arrives, *told))
        for found, reader in lists.readers[key]:
            if order[: len(found)] != found:
                continue  # reported; it tells nothing about the order
            before = writers[len(found) - 1] if found else None
            if before and before.id != reader:
                edges["wr"].append(_Edge("wr", before.id, reader, key=key, found=found))
            after = writers[len(found)] if len(found) < len(order) else None
            if after and after.id != reader:
                # For one that commits nothing this says the same: only its start precedes its end.
                guarded = level == "guarded" and lists.reads[reader][key].guarded
                leaves = COMMIT if guarded else START
                told = key, found, order[len(found)]
                edges["rw"].append(_Edge("rw", reader, after.id, leaves, COMMIT, *told))
    return edges


def _process_edges(records: Sequence[Record]) -> list[_Edge]:
    """From each to the next of its process; nothing follows from one whose outcome is unknown."""
    edges = []
    latest: dict[int, Record] = {}
    for record in records:
        before = latest.get(record.process)
        if before is not None:
            edges.append(_Edge("process", before.id, record.id, value=record.process))
        if record.status != "unknown":
            latest[record.process] = record
    return edges


def _realtime_edges(records: Sequence[Record]) -> list[_Edge]:
    """From each that had ended to each that began later, but for what follows from others."""
    moments = [(one.began, START, one) for one in records if one.began is not None]
    moments += [
        (one.ended, COMMIT, one)
        for one in records
        if one.began is not None and one.ended is not None and one.status != "unknown"
    ]
    moments.sort(key=lambda moment: moment[:2])  # at the same time: beginnings first
    edges = []
    newest: dict[str, None] = {}
    before: dict[str, list[str]] = {}
    for _, what, record in moments:
        if what == START:
            before[record.id] = list(newest)
            edges += [_Edge("realtime", other, record.id) for other in newest]
        else:
            for other in before[record.id]:
                newest.pop(other, None)  # whoever begins now follows it by way of this one
            newest[record.id] = None
    return edges


# -- cycles -----------------------------------------------------------------------------------


def _cycles(edges: _Edges, level: Level) -> list[Anomaly]:
    """The weakest classes first: where one is found, those that contain it are not searched."""
    passes: list[tuple[tuple[Kind, ...], bool]] = [
        (kinds + order, False) for kinds in (("ww",), DATA, (*DATA, "rw")) for order in ((), ORDER)
    ]
    if level == "serializable":
        passes += [((*DATA, "rw"), True), (ALL, True)]
    _, merged = passes[-1]
    widest = _graph(edges, ALL, merged)
    knots = {name for part in _components(widest) for name, _ in part}
    if not knots:
        return []
    edges = {
        kind: [one for one in some if one.source in knots and one.target in knots]
        for kind, some in edges.items()
    }
    found: list[Anomaly] = []
    for kinds, merged in passes:
        graph = _graph(edges, kinds, merged)
        for component in _components(graph):
            ids = {name for name, _ in component}
            if not any(ids.issuperset(known.transactions) for known in found):
                found.append(_anomaly(_shortest_cycle(graph, component)))
    return found


def _graph(edges: _Edges, kinds: Sequence[Kind], merged: bool) -> nx.DiGraph[Moment]:
    """Moments and what joins them; merged: start and commit of a transaction are one moment."""
    graph: nx.DiGraph[Moment] = nx.DiGraph()
    for kind in sorted(kinds, key=ALL.index):
        for edge in edges[kind]:
            source = edge.source, START if merged else edge.leaves
            target = edge.target, START if merged else edge.arrives
            if not graph.has_edge(source, target):
                graph.add_edge(source, target, edge=edge)
    if not merged:
        for name in {name for name, _ in graph}:
            graph.add_edge((name, START), (name, COMMIT), edge=None)
    return graph


def _components(graph: nx.DiGraph[Moment]) -> list[set[Moment]]:
    """Those in which there is a cycle."""
    return [part for part in nx.strongly_connected_components(graph) if len(part) > 1]


def _shortest_cycle(graph: nx.DiGraph[Moment], component: set[Moment]) -> list[_Edge]:
    """One of the shortest cycles through the first moments of a component."""
    best: list[Moment] = []
    for start in sorted(component)[:STARTS]:
        best = _cycle_through(graph, start, component, len(best)) or best
    steps = zip(best, [*best[1:], best[0]], strict=True)
    edges: list[_Edge] = []
    for source, target in steps:
        edge = graph.edges[source, target]["edge"]
        if edge and edge.kind == "realtime" and edges and edges[-1].kind == "realtime":
            edges[-1] = _Edge("realtime", edges[-1].source, edge.target)
        elif edge:
            edges.append(edge)
    return edges


def _cycle_through(
    graph: nx.DiGraph[Moment], start: Moment, component: set[Moment], below: int
) -> list[Moment]:
    """The shortest cycle through `start`, if it has fewer moments than `below` (0: any)."""
    paths: dict[Moment, tuple[int, Moment | None]] = {start: (1, None)}
    waiting = deque([start])
    while waiting:
        moment = waiting.popleft()
        length = paths[moment][0]
        if below and length >= below:
            return []
        for following in graph.succ[moment]:
            if following == start:
                cycle: list[Moment] = []
                step: Moment | None = moment
                while step is not None:
                    cycle.append(step)
                    step = paths[step][1]
                return cycle[::-1]
            if following in component and following not in paths:
                paths[following] = length + 1, moment
                waiting.append(following)
    return []


def _anomaly(cycle: Sequence[_Edge]) -> Anomaly:
    kinds = [edge.kind for edge in cycle]
    against = [kind == "rw" for kind in kinds]
    if sum(against) == 0:
        name = "G1c" if "wr" in kinds else "G0"
    elif sum(against) == 1:
        name = "G-single"
    elif any(one and two for one, two in zip(against, [*against[1:], against[0]], strict=True)):
        name = "G2"
    else:
        name = "G-nonadjacent"
    for order in reversed(ORDER):
        if order in kinds:
            name = f"{name}-{order}"
            break
    return Anomaly(name, tuple(edge.source for edge in cycle), "; ".join(map(str, cycle)))
