"""test_chaos.py - everything at once: writers, readers, kills, stops, interrupts, joins, forks.

Why:        the other tests look at one bad day each; what happens when several meet is drawn here
            at random. ``SHM_ENGINE_CHAOS_S=300`` makes a soak of it.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shm_engine import coordinator, errors
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from shm_engine.retention import RetentionPolicy
from shm_engine.transaction import Transaction
from tests.harness.shared import check_structure
from tests.harness.tally import Tally
from tests.harness.workers import METHODS, Channel, Crew, Worker, wait_until

RUN = RunId.DEFAULT
SECONDS = float(os.environ.get("SHM_ENGINE_CHAOS_S", "4"))
MAP_SIZE = 12 << 20
GROUPS = 4
GROUP = 40
ACCOUNTS = 8
EACH = 1000
LIVES = 2000


class Agent:
    """One worker's way of using the store, drawn by its seed."""

    def __init__(self, number: int, database: Database, tally: Tally, seed: int) -> None:
        self.number = number
        self.rng = random.Random(seed)
        self.tally = tally
        self.use(database)

    def use(self, database: Database) -> None:
        """Goes on with this handle."""
        self.database = database
        self.kv = KVStore(database)

    def count(self) -> None:
        """One increment, noted before and after."""
        self.tally[2 * self.number] += 1
        self.kv.incr(RUN, "sum")
        self.tally[2 * self.number + 1] += 1

    def write_group(self) -> None:
        """All keys of a group, in one commit; sometimes it removes them all."""
        group = self.rng.randrange(GROUPS)
        names = [f"group/{group}/{number:02}" for number in range(GROUP)]
        if self.rng.random() < 0.15:
            self.kv.mdelete(RUN, names)
        else:
            value = [self.number, self.rng.getrandbits(40), "x" * self.rng.randrange(400)]
            self.kv.mset(RUN, dict.fromkeys(names, value))

    def read_group(self) -> None:
        """A group is never seen half, in no way of reading it."""
        prefix = f"group/{self.rng.randrange(GROUPS)}/"
        found = self.kv.scan(RUN, prefix)
        assert len(found) in (0, GROUP), found
        assert all(value == found[0][1] for _, value in found), found
        with self.database.snapshot() as snapshot:
            first = list(snapshot.scan_prefix(RUN, prefix))
            assert all(value == first[0][1] for _, value in first), first
            assert list(snapshot.scan_prefix(RUN, prefix)) == first

    def transfer(self) -> None:
        """Moves money between two accounts."""
        source, target = self.rng.sample(range(ACCOUNTS), 2)
        amount = self.rng.randint(1, 50)

        def move(txn: Transaction) -> None:
            txn.kv_put(f"account/{source}", txn.kv_get(f"account/{source}") - amount)
            txn.kv_put(f"account/{target}", txn.kv_get(f"account/{target}") + amount)

        self.database.transaction_with_retry(RUN, move, max_retries=100)

    def put_large(self) -> None:
        """Values of very different sizes under a few keys."""
        size = self.rng.choice([10, 3000, 40_000, 200_000])
        self.kv.put(RUN, f"large/{self.rng.randrange(4)}", b"v" * size)

    def come_and_go(self) -> None:
        """A second handle of this process; a thread that ends."""
        with Database.open(str(self.database.path)) as second:
            KVStore(second).get(RUN, "sum")
            thread = threading.Thread(target=KVStore(second).delete, args=(RUN, "large/0"))
            thread.start()
            thread.join()

    def fork(self) -> None:
        """A child that counts with what it inherited, and ends in one of two ways."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                self.kv.get(RUN, "sum")
                self.read_group()
                if self.rng.random() < 0.5:
                    self.database.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def step(self) -> None:
        """Something of all this."""
        choices: list[tuple[Callable[[], None], float]] = [
            (self.count, 30),
            (self.write_group, 10),
            (self.read_group, 10),
            (self.transfer, 5),
            (self.put_large, 3),
            (self.come_and_go, 0.05),
            (self.fork, 0.05),
        ]
        actions, weights = zip(*choices, strict=True)
        self.rng.choices(actions, weights)[0]()


def live(channel: Channel, number: int, database: Database, tally: Tally, seed: int) -> None:
    """Works until told to stop; what a neighbour's bad day may cause is borne."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    agent = Agent(number, database, tally, seed)
    channel.ready()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    while True:
        try:
            while not channel.is_told():
                try:
                    agent.step()
                except (errors.Unavailable, errors.StorageFull):
                    continue  # a stopped holder; history that a stopped reader needs
            return
        except KeyboardInterrupt:
            continue


class Fate:
    """What happens to the agents and to the coordinator."""

    def __init__(self, crew: Crew, database: Database, tally: Tally, rng: random.Random) -> None:
        self.crew, self.database, self.tally, self.rng = crew, database, tally, rng
        self.agents: list[Worker] = []
        self.born = 0
        self.killed = 0

    def bear(self) -> None:
        """One agent more."""
        method = self.rng.choices(METHODS, [10, 5, 1])[0]
        seed = self.rng.getrandbits(32)
        worker = self.crew.start(live, self.born, self.database, self.tally, seed, method=method)
        self.born += 1
        self.agents.append(worker)
        self.crew.release([worker])

    def kill(self) -> None:
        """One agent less, and a new one."""
        victim = self.rng.choice(self.agents)
        self.agents.remove(victim)
        victim.kill()
        self.killed += 1
        self.bear()

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.rng.choice(self.agents).signal(signal.SIGINT)

    def stop(self) -> None:
        """One stands still for a while; a forkserver's child is nobody that can be waited for."""
        self.rng.choice(self.agents).signal(signal.SIGSTOP)
        for worker in self.agents:
            if self.rng.random() < 0.5:
                worker.resume()

    def resume_all(self) -> None:
        """Everybody goes on."""
        for worker in self.agents:
            worker.resume()

    def kill_coordinator(self) -> None:
        """Its successor has to come; two may meet."""
        path = self.database.path
        assert path is not None
        info = coordinator.read_info(path)
        if info is not None and info.is_alive():
            os.kill(info.pid, signal.SIGKILL)

    def strike(self) -> None:
        """One of them."""
        choices: list[tuple[Callable[[], None], float]] = [
            (self.kill, 10),
            (self.stop, 6),
            (self.interrupt, 6),
            (self.resume_all, 6),
            (self.kill_coordinator, 1),
        ]
        actions, weights = zip(*choices, strict=True)
        self.rng.choices(actions, weights)[0]()


@pytest.mark.crash
def test_a_store_survives_all_of_it_at_once(
    folder: Path, crew: Crew, tmp_path: Path, rng: random.Random
) -> None:
    tally = Tally(tmp_path / "lives", 2 * LIVES)
    with Database.open(folder, Durability.in_memory(), map_size=MAP_SIZE) as database:
        database.set_retention(RUN, RetentionPolicy.KeepLast(2))
        kv = KVStore(database)
        accounts = [f"account/{number}" for number in range(ACCOUNTS)]
        kv.mset(RUN, dict.fromkeys(accounts, EACH))
        fate = Fate(crew, database, tally, rng)
        for _ in range(3):
            fate.bear()
        until = time.monotonic() + SECONDS
        while time.monotonic() < until and fate.born < LIVES - 1:
            time.sleep(rng.uniform(0.0, 0.05))  # a random moment; nothing waits for it
            fate.strike()
            check_agents(fate)
            assert sum(kv.get_many(RUN, accounts)) == ACCOUNTS * EACH
        fate.resume_all()
        for worker in fate.agents:
            worker.send("stop")
            worker.join()
        acknowledged = sum(tally[number] for number in range(1, 2 * LIVES, 2))
        begun = sum(tally[number] for number in range(0, 2 * LIVES, 2))
        total = kv.get(RUN, "sum")
        assert acknowledged <= total <= begun
        assert sum(kv.get_many(RUN, accounts)) == ACCOUNTS * EACH
        Agent(0, database, tally, 0).read_group()
        wait_until(lambda: database.metrics().handles == 1, "the dead were cleared", 5)
        assert database.metrics().snapshots == 0
        check_structure(database)


def check_agents(fate: Fate) -> None:
    """Nobody ends by himself."""
    for worker in fate.agents:
        if worker.process.exitcode is not None:
            worker.join(0)
            raise AssertionError(f"{worker} ended")
