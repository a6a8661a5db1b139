"""test_bench.py - the bench: its statistics, its goals, its harnesses, and its search for losses.

Why:        A bench that cannot see a lost write, or calls a missing figure a goal met, is worse
            than none. The speed itself is not tested here.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from bench import __main__ as command
from bench import (
    append,
    batch,
    get,
    goals,
    incr,
    kill,
    million,
    peers,
    put,
    results,
    rmw,
    rounds,
    scan,
)
from bench import stats as statistics
from bench.crew import Crew, CrewError, Task
from bench.goals import Goal, Sense, Verdict, judge
from bench.options import QUESTIONS, Options, parse
from bench.peers import LMDB, PEERS, SHM_ENGINE, Host, Store
from bench.stats import Figure
from bench.workload import CHECKED, HARNESSES, Lane, Limits, Tally, WrongAnswer, drive, last_call
from shm_engine import events, keys

MAP_SIZE = 64 << 20
SMALL = Options(
    processes=(1, 2), rounds=1, seconds=0.02, scale=0.02, map_size=MAP_SIZE, short=True, plots=False
)
CALLS = 300
KEYS = {"put": 50, "get": 50, "incr": 1, "batch": 1000, "scan": 1000, "rmw": 50, "append": 0}


def host_of(peer: str) -> Host:
    return Host(peer, MAP_SIZE)


@pytest.fixture(params=PEERS)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with host_of(request.param) as opened:
        yield opened


def run_here(workload: Any, harness: str, store: Store, calls: int = CALLS) -> Tally:
    """Run a workload in this process, on a filled store, for so many calls."""
    workload.fill(store, 1)
    lane = Lane(0)
    return drive(workload, harness, store, lane, Limits(60.0, calls, 10), time.monotonic_ns)


# -- statistics --------------------------------------------------------------------------------


def test_a_figure_reports_median_and_spread() -> None:
    figure = Figure("put.rate", "/s", (3.0, 1.0, 2.0))
    assert (figure.median, figure.low, figure.high) == (2.0, 1.0, 3.0)
    assert json.loads(json.dumps(figure.as_json()))["samples"] == [3.0, 1.0, 2.0]


@pytest.mark.parametrize("samples", [(), (1.0, float("nan")), (float("inf"),)])
def test_a_figure_without_finite_samples_is_refused(samples: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="sample"):
        Figure("put.rate", "/s", samples)


def test_percentiles_are_nearest_ranks() -> None:
    ordered = np.arange(1, 101, dtype=np.uint64)
    found = [statistics.percentile(ordered, share) for share in (0.0, 0.5, 0.99, 1.0)]
    assert found == [1.0, 50.0, 99.0, 100.0]
    assert statistics.percentile(np.array([7], dtype=np.uint64), 0.99) == 7.0


def test_percentiles_of_nothing_and_shares_beyond_one_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        statistics.percentile(np.array([], dtype=np.uint64), 0.5)
    with pytest.raises(ValueError, match="share"):
        statistics.percentile(np.array([1], dtype=np.uint64), 1.5)


def test_waits_merge_the_processes() -> None:
    fast = np.full(99, 1_000, dtype=np.uint64)
    slow = np.array([5_000_000], dtype=np.uint64)
    waits = statistics.waits([slow, fast])
    assert (waits.count, waits.p50_us, waits.p99_us, waits.worst_us) == (100, 1.0, 1.0, 5000.0)


def test_fairness_is_slowest_over_fastest() -> None:
    assert statistics.fairness([80.0, 100.0, 90.0]) == 0.8
    assert statistics.fairness([5.0]) == 1.0
    assert statistics.fairness([0.0, 0.0]) == 0.0
    with pytest.raises(ValueError, match="rates"):
        statistics.fairness([])


def test_ratios_are_taken_round_by_round() -> None:
    assert statistics.ratios([2.0, 9.0], [1.0, 3.0]) == (2.0, 3.0)
    over = statistics.over_floor_us([500_000.0], [1_000_000.0])
    assert over == (1.0,)
    with pytest.raises(ValueError, match="rounds"):
        statistics.ratios([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="rounds"):
        statistics.over_floor_us([1.0], [])


def test_a_figure_given_twice_is_refused() -> None:
    figure = Figure("a", "", (1.0,))
    with pytest.raises(ValueError, match="twice"):
        statistics.by_key([figure, figure])


@pytest.mark.parametrize(("key", "calls", "last"), [(0, 0, None), (3, 3, None), (3, 4, 3)])
def test_the_last_call_of_a_key_in_the_first_cycle(key: int, calls: int, last: int | None) -> None:
    assert last_call(key, calls, 10) == last


def test_the_last_call_of_a_key_agrees_with_a_plain_loop() -> None:
    for calls in range(25):
        seen = {i % 7: i for i in range(calls)}
        assert [last_call(key, calls, 7) for key in range(7)] == [seen.get(k) for k in range(7)]


# -- goals -------------------------------------------------------------------------------------


def figure_of(key: str, *samples: float) -> dict[str, Figure]:
    return {key: Figure(key, "", samples)}


@pytest.mark.parametrize(
    ("sense", "samples", "verdict"),
    [
        (Sense.AT_LEAST, (1.4, 1.5, 9.0), Verdict.MET),
        (Sense.AT_LEAST, (1.4, 1.4, 9.0), Verdict.MISSED),
        (Sense.AT_MOST, (0.1, 1.5, 9.0), Verdict.MET),
        (Sense.AT_MOST, (0.1, 1.6, 1.7), Verdict.MISSED),
    ],
)
def test_a_goal_judges_the_median(
    sense: Sense, samples: tuple[float, ...], verdict: Verdict
) -> None:
    goal = Goal("put.x", sense, 1.5, "", "")
    assert judge(goal, figure_of("put.x", *samples)).verdict is verdict


def test_a_goal_on_the_worst_round_ignores_the_median() -> None:
    most = Goal("put.x", Sense.AT_MOST, 10.0, "ms", "", worst_round=True)
    least = Goal("put.x", Sense.AT_LEAST, 10.0, "ms", "", worst_round=True)
    figures = figure_of("put.x", 9.0, 10.0, 11.0)
    assert judge(most, figures).verdict is Verdict.MISSED
    assert judge(least, figures).verdict is Verdict.MISSED


def test_a_missing_figure_is_never_a_goal_met() -> None:
    for goal in goals.goals_of(QUESTIONS):
        assert judge(goal, {}).verdict is Verdict.NOT_MEASURED
        assert judge(goal, {}, speed=False).verdict is Verdict.NOT_MEASURED


def test_short_runs_judge_lost_writes_and_nothing_else() -> None:
    speed = goals.GOALS[0]
    assert judge(speed, figure_of(speed.key, 1e9), speed=False).verdict is Verdict.NOT_JUDGED
    lost = goals.lost_goal("put")
    assert judge(lost, figure_of(lost.key, 0.0), speed=False).verdict is Verdict.MET
    assert judge(lost, figure_of(lost.key, 1.0), speed=False).verdict is Verdict.MISSED


def test_every_question_has_its_lost_writes_goal_and_its_own_goals_only() -> None:
    found = goals.goals_of(["scan"])
    assert found[-1].key == "scan.lost"
    assert {goal.question for goal in found} == {"scan"}
    assert {goal.question for goal in goals.GOALS} <= set(QUESTIONS)
    keys = [goal.key for goal in goals.goals_of(QUESTIONS)]
    assert len(keys) == len(set(keys))


def test_the_rates_of_the_plan_are_goals_or_less_than_goals() -> None:
    held = {goal.key: goal.limit for goal in goals.GOALS if goal.sense is Sense.AT_LEAST}
    for key, rate in goals.PLAN.items():
        assert held[key] >= rate


def synthetic(name: str) -> results.Answer:
    """Return an answer with made-up records of every run that a workload makes in a round."""
    answer = results.Answer(name)
    for harness in HARNESSES:
        for processes in (1, 2, 4):
            for number, peer in enumerate(PEERS if processes == 1 else PEERS[:2]):
                record: dict[str, object] = {
                    "round": 0, "harness": harness, "processes": processes, "peer": peer,
                    "rate": 1000.0 * (3 - number), "fairness": 0.9, "retries": 0, "conflicts": 0,
                }  # fmt: skip
                if harness == CHECKED:
                    record |= {"p50_us": 1.0, "p99_us": 2.0, "worst_ms": 3.0}
                answer.rounds.append(record)
        rounds.derive_figures(answer, harness, Options())
    return answer


def test_every_goal_of_a_workload_names_a_figure_that_is_derived() -> None:
    for name in rounds.WORKLOADS:
        figures = statistics.by_key(synthetic(name).figures)
        for goal in goals.GOALS:
            if goal.question == name:
                assert goal.key in figures
                assert not goal.shown or goal.shown in figures


def test_ratios_between_peers_are_derived_from_their_rates() -> None:
    figures = statistics.by_key(synthetic("put").figures)
    assert figures["put.light.2.vs_lmdb"].median == 1.5
    assert figures["put.light.2.scaling"].median == 1.0
    assert figures["put.light.1.over_floor_us"].median == pytest.approx(1e6 / 3000 - 1e6 / 1000)


# -- options -----------------------------------------------------------------------------------


def test_options_select_questions_rounds_and_seconds() -> None:
    options = parse(["--only", "put,kill", "--rounds", "2", "--seconds", "0.5", "--processes", "1"])
    assert options.questions == ("put", "kill")
    assert (options.rounds, options.seconds, options.processes) == (2, 0.5, (1,))
    assert options.scale == 1.0


def test_questions_can_be_named_without_an_option() -> None:
    assert parse(["append", "state", "--rounds", "1"]).questions == ("append", "state")
    assert parse(["--rounds", "1"]).questions == QUESTIONS


def test_short_shrinks_what_is_not_given() -> None:
    options = parse(["--short", "--seconds", "0.2"])
    assert (options.short, options.rounds, options.seconds) == (True, 1, 0.2)
    assert options.scale < 1.0
    assert options.questions == QUESTIONS


@pytest.mark.parametrize(
    "arguments", [["--only", "speed"], ["speed"], ["--rounds", "0"], ["--processes", "0"]]
)
def test_mistaken_options_end_with_a_usage_message(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert "usage" in capsys.readouterr().err


# -- workloads: nothing lost, and a planted loss is found ---------------------------------------


def test_the_value_is_a_map_of_100_bytes() -> None:
    assert len(peers.encode(peers.make_value(7))) == 100


@pytest.mark.parametrize("harness", HARNESSES)
@pytest.mark.parametrize("name", rounds.WORKLOADS)
def test_a_run_loses_nothing(host: Host, name: str, harness: str) -> None:
    workload = rounds.WORKLOADS[name](KEYS[name])
    calls = 30 if name in ("batch", "scan") else CALLS
    tally = run_here(workload, harness, host.store, calls)
    assert tally.calls == calls
    assert workload.losses(host.store, [tally]) == []
    if harness == CHECKED:
        assert len(tally.waits_ns) == 8 * tally.measured


def revert_put(store: Store) -> None:
    value = peers.make_value(0)
    value["seq"] = peers.SEQ_FIRST
    store.write(put.key_of(0, 3), value)


def lose_increment(store: Store) -> None:
    """Set the counter one too low, in the form in which the peer keeps it."""
    count = store.read_count(incr.KEY) - 1
    if isinstance(store, peers.LmdbStore):
        with store.begin(write=True) as txn:
            txn.put(incr.KEY.encode(), count.to_bytes(8, "little"))
    elif isinstance(store, peers.FloorStore):
        store.data[incr.KEY] = msgpack.packb(count)
    else:
        store.write(incr.KEY, count)


def tear_transfer(store: Store) -> None:
    account = store.read(rmw.account_of(3))
    assert isinstance(account, dict)
    store.write(rmw.account_of(3), {**account, "balance": account["balance"] + 1})


def lose_transfer(store: Store) -> None:
    """Take one move out of two accounts: the balances still add up."""
    for number, change in ((1, 1), (2, -1)):
        account = store.read(rmw.account_of(number))
        assert isinstance(account, dict)
        changed = {"balance": account["balance"] + change, "moves": account["moves"] - 1}
        store.write(rmw.account_of(number), {**account, **changed})


def lose_entry(store: Store, sequence: int) -> None:
    """Take an entry out of the log, which no peer's log allows by itself."""
    match store:
        case peers.ShmStore():
            name = events.entry_name(sequence)
            assert store.database.engine.delete(store.run, keys.TAG_EVENT, name)
        case peers.LmdbStore():
            with store.begin(write=True) as txn:
                assert txn.delete(append.key_of(sequence))
        case peers.FloorStore():
            del store.data[f"{sequence}"]


PLANTED: list[tuple[str, Callable[[Store], None]]] = [
    ("put", lambda store: store.remove(put.key_of(0, 3))),
    ("put", revert_put),
    ("get", lambda store: store.remove(f"{get.PREFIX}3")),
    ("incr", lose_increment),
    ("batch", lambda store: store.remove(batch.group_of(0, 0) + batch.SUFFIXES[999])),
    ("scan", lambda store: store.remove(scan.group_of(0) + batch.SUFFIXES[0])),
    ("rmw", tear_transfer),
    ("rmw", lose_transfer),
    ("rmw", lambda store: store.remove(rmw.account_of(9))),
    ("append", lambda store: lose_entry(store, 0)),
    ("append", lambda store: lose_entry(store, 3)),
    ("append", lambda store: lose_entry(store, CALLS - 1)),
]


@pytest.mark.parametrize(("name", "plant"), PLANTED)
def test_a_planted_loss_is_found(host: Host, name: str, plant: Callable[[Store], None]) -> None:
    workload = rounds.WORKLOADS[name](KEYS[name])
    tally = run_here(workload, "light", host.store, 30 if name in ("batch", "scan") else CALLS)
    plant(host.store)
    assert workload.losses(host.store, [tally]) != []


@pytest.mark.parametrize("name", ["put", "incr", "batch", "rmw", "append"])
def test_a_write_that_was_never_made_is_found(host: Host, name: str) -> None:
    workload = rounds.WORKLOADS[name](KEYS[name])
    tally = run_here(workload, "light", host.store, 30)
    assert workload.losses(host.store, [replace(tally, calls=tally.calls + 1)]) != []


def test_a_wrong_answer_ends_a_checked_run(host: Host) -> None:
    workload = scan.Scan(1000)
    workload.fill(host.store, 1)
    host.store.remove(scan.group_of(0) + batch.SUFFIXES[5])
    with pytest.raises(WrongAnswer, match="999"):
        drive(workload, CHECKED, host.store, Lane(0), Limits(1.0, 10, 2), time.monotonic_ns)


def test_a_run_without_room_for_a_call_is_an_error(host: Host) -> None:
    with pytest.raises(WrongAnswer, match="no room"):
        run_here(put.Put(10), "light", host.store, 0)


def test_an_entry_that_was_exchanged_for_another_is_found(host: Host) -> None:
    """The number of entries is right; only a look at the payloads finds it."""
    if not isinstance(host.store, peers.LmdbStore):
        pytest.skip("the engine's chain finds it earlier")
    workload = append.Append()
    tally = run_here(workload, "light", host.store)
    with host.store.begin(write=True) as txn:
        other = txn.get(append.key_of(4))
        assert other is not None
        txn.put(append.key_of(3), other)
    assert append.length(host.store) == CALLS
    assert workload.losses(host.store, [tally]) != []


def test_losses_of_a_million_are_found(host: Host) -> None:
    if not host.is_shared:
        pytest.skip("the floor is not asked this")
    keys, calls = 100, 250
    value = peers.make_value(0)
    value["seq"] = peers.SEQ_FIRST - 1
    host.store.fill((million.key_of(number), value) for number in range(keys))
    million.put_range(host.store, keys, 0, calls)
    assert million.losses(host.store, keys, calls) == []
    host.store.write(million.key_of(5), value)
    assert len(million.losses(host.store, keys, calls)) == 1


def test_losses_after_a_kill_allow_for_one_write_in_flight_only(host: Host) -> None:
    if not host.is_shared:
        pytest.skip("the floor is not asked this")
    store, calls = host.store, 20
    for owner in ("victim", "survivor"):
        for i in range(calls):
            value = peers.make_value(1)
            value["seq"] = peers.SEQ_FIRST + i
            store.write(f"{owner}/1/{i}", value)
    for _ in range(calls):
        kill.count_up(store, "victim/1/count")
    assert kill.losses(store, 1, acknowledged=calls, writes=calls) == []
    assert kill.losses(store, 1, acknowledged=calls - 1, writes=calls) == []
    assert kill.losses(store, 1, acknowledged=calls + 1, writes=calls) != []
    assert kill.losses(store, 1, acknowledged=calls, writes=calls + 1) != []
    assert kill.losses(store, 1, acknowledged=calls - 2, writes=calls) != []


# -- processes ---------------------------------------------------------------------------------


def test_a_crew_is_released_together() -> None:
    with Crew(2) as crew:
        workload = put.Put(50)
        for peer in (SHM_ENGINE, LMDB):
            heat = rounds.Heat(workload, CHECKED, peer, 2, SMALL)
            outcome = rounds.run_heat(crew, heat)
            tallies = outcome.tallies
            assert outcome.losses == []
            assert [tally.index for tally in tallies] == [0, 1]
            assert tallies[0].begin_ns == tallies[1].begin_ns
            assert min(tally.measured for tally in tallies) > 0


def test_an_error_in_one_process_calls_the_others_off() -> None:
    with Crew(2) as crew:
        heat = rounds.Heat(put.Put(50), "light", LMDB, 2, SMALL)
        with pytest.raises(CrewError, match="Error"):
            crew.run(
                [
                    Task(rounds.run_lane, (heat, peers.FloorTicket())),
                    Task(rounds.run_lane, (heat, None)),
                ],
                together=True,
            )
        assert rounds.run_heat(crew, heat).losses == []


def test_a_process_that_dies_is_an_error_and_not_a_wait() -> None:
    with Crew(2) as crew:
        os.kill(crew.pid(1), signal.SIGKILL)
        heat = rounds.Heat(put.Put(50), "light", LMDB, 2, SMALL)
        begin = time.monotonic()
        with pytest.raises(CrewError, match="died"):
            rounds.run_heat(crew, heat)
        assert time.monotonic() - begin < 30
        with pytest.raises(CrewError, match="new crew"):
            rounds.run_heat(crew, heat)


@pytest.mark.parametrize("question", ["incr", "kill"])
def test_a_short_run_writes_its_results_and_finds_nothing_lost(
    question: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = command.main(
        ["--short", "--only", question, "--no-plots", "--seconds", "0.02", "--map-size", "64",
         "--processes", "1,2", "--output", str(tmp_path)]
    )  # fmt: skip
    assert status == command.OK
    [path] = tmp_path.glob(f"{question}-*.json")
    content = json.loads(path.read_text())
    assert content["lost_writes"] == 0
    assert content["checks"] > 0
    assert content["rounds"]
    assert content["machine"]["versions"]["msgpack"]
    assert "lost writes" in capsys.readouterr().out


def test_a_missing_figure_fails_a_whole_run_but_not_a_partial_one() -> None:
    judged = [judge(goals.GOALS[0], {})]
    assert command.missing(judged, Options()) == [goals.GOALS[0].key]
    assert command.missing(judged, Options(peers=(LMDB,))) == []


@pytest.mark.parametrize("name", rounds.WORKLOADS)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_full_run_has_room_for_a_second_and_stays_within_its_map(
    name: str, processes: int
) -> None:
    workload = rounds.WORKLOADS[name]()
    options = Options(map_size=2 << 30)
    limits = rounds.Heat(workload, "light", SHM_ENGINE, processes, options).limits()
    assert limits.calls * processes * workload.bytes_per_call < options.map_size
    rate = 3_000 if name in ("batch", "scan") else 1_500_000
    assert limits.calls * processes > rate
