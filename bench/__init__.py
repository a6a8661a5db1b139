"""bench - the measurements that the goals of the design are judged by.

Why:        A ratio is only worth something when both sides ran on the same machine, in the same
            minute, under the same harness, and when the result of every run was checked for lost
            writes. This package does that and nothing else: `python -m bench`.

                question   what is asked: put, get, ..., append, state, queries, erase, durable
                workload   a loop of calls, run by 1, 2 and 4 processes; most are a question,
                           those that only the engine is asked (alone.py) are a part of one
                peer       who is asked: shm_engine, lmdb, floor (a dict of msgpack, one process)
                harness    light: build a key, encode, call;  checked: clocks and checks as well
                round      every peer once, one after the other; a ratio is taken inside a round
                crew       the spawned processes, released together from one start line
Used by:    make bench, make bench-short, tests/unit/test_bench.py
Cost:       about half an hour in full, under a minute with --short; up to 2 GiB of /dev/shm
"""
